"""Which rows can be among the k nearest of which queries, from codes of 8 bits a dimension.

Rows are staged: scaled, float32, with zeros behind their d dimensions. The code of x is q_t = round(v_t), with
v_t = clip((x_t - o_t) c, 0, 255), and SAD is the sum of |q_t(x) - q_t(y)|, four dimensions an instruction. Why no
neighbour is lost, with A and L the exact L1 and L2 distances of two rows, D^ what the search computes, u = 2^-24:

1. A term meets one subtraction, at most n = BLOCK_D - 1 + D / BLOCK_D additions in any order (fusing only leaves
   roundings out), a square two roundings more, and what follows three. Results below 2^-126 may become zero. So
       D^ >= (w1 A + w2 L)(1 - u)^(n + 5) - eta,  eta = w1 D 2^-125 + w2 sqrt(D) 2^-62 + 2^-125.
2. L >= A / sqrt(d) and (1 - u)^-N <= 1 + 1.01 N u for N u < 0.01. So D^ <= T implies
       A <= (T + eta)(1 + 1.01 (n + 5) u) / (w1 + w2 / sqrt(d)).                                      `l1_within`
3. Clipping brings no two numbers further apart: sum of |v_t(x) - v_t(y)| <= c A. The float v^ is within 255 * 3 u <
   2^-14 of v, so E = (sum of |v^_t - q_t|) + D 2^-14 is at least the sum of |v_t - q_t|, and c A >= SAD - E(x) - E(y).
4. So a pair may be dropped if SAD > a(x) + e(y), a = floor((c A + E)(1 + 2^-20)) and e = ceil(E (1 + 2^-20)): SAD is an
   integer, and floor(p + q) <= floor(p) + ceil(q). 2^-20 covers what these double sums round. What is too large for an
   integer becomes a limit that keeps every pair.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # rows that share a list, and rows and columns of a tile of pairs
_CONFIG = {"BLOCK_W": 8, "num_warps": 8, "enable_fp_fusion": True}
_MOST = 2**29  # of a and e; above every SAD


@triton.jit
def _sad4(a, b, NATIVE: tl.constexpr):
    """The sum of absolute differences of the four bytes of each element."""
    if NATIVE:
        sad = tl.inline_asm_elementwise(
            "vabsdiff4.u32.u32.u32.add $0, $1, $2, $3;", "=r,r,r,r", [a, b, 0], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        sad = tl.abs((a & 255) - (b & 255))
        for shift in tl.static_range(8, 32, 8):
            sad += tl.abs(((a >> shift) & 255) - ((b >> shift) & 255))
    return sad


@triton.jit
def _append(wanted, rows, count_ptr, list_ptr, block, ROOM):
    """Append the wanted ones of rows [TILE] to the list of a block; what has no room is counted only."""
    wanted = wanted.to(tl.int32)
    number = tl.sum(wanted, 0)
    if number > 0:
        place = tl.atomic_add(count_ptr + block, number) + tl.cumsum(wanted, 0) - wanted
        tl.store(list_ptr + block * ROOM + place, rows, mask=(wanted > 0) & (place < ROOM))


@triton.jit
def _filter_kernel(
    q_ptr, reach_ptr, q_order_ptr, x_ptr, x_reach_ptr, margin_ptr, x_margin_ptr, order_ptr, pairs_ptr,
    count_ptr, list_ptr, x_count_ptr, x_list_ptr, M, N, W, ROOM,
    SYMMETRIC: tl.constexpr, NATIVE: tl.constexpr, TILE: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program compares the codes of two tiles, and appends what may be near to the lists of the tiles."""
    one = tl.load(pairs_ptr + 2 * tl.program_id(0)).to(tl.int64)
    other = tl.load(pairs_ptr + 2 * tl.program_id(0) + 1).to(tl.int64)
    offs = tl.arange(0, TILE)
    places_m, places_n = one * TILE + offs, other * TILE + offs
    rows_m, rows_n = tl.minimum(places_m, M - 1), tl.minimum(places_n, N - 1)
    sad = tl.zeros((TILE, TILE), tl.int32)
    for w in tl.range(0, W, BLOCK_W, num_stages=3):
        offs_w = w + tl.arange(0, BLOCK_W)
        q = tl.load(q_ptr + rows_m[None, :] * W + offs_w[:, None])  # [BLOCK_W, TILE]
        x = tl.load(x_ptr + rows_n[None, :] * W + offs_w[:, None])
        sad += tl.sum(_sad4(q[:, :, None], x[:, None, :], NATIVE), 0)
    inside = (places_m < M)[:, None] & (places_n < N)[None, :]
    near = inside & (sad <= tl.load(reach_ptr + rows_m)[:, None] + tl.load(x_margin_ptr + rows_n)[None, :])
    _append(tl.max(near.to(tl.int32), 0), tl.load(order_ptr + rows_n), count_ptr, list_ptr, one, ROOM)
    if SYMMETRIC:
        near = inside & (sad <= tl.load(margin_ptr + rows_m)[:, None] + tl.load(x_reach_ptr + rows_n)[None, :])
        if one != other:
            _append(tl.max(near.to(tl.int32), 1), tl.load(q_order_ptr + rows_m), x_count_ptr, x_list_ptr, other, ROOM)


def holds(width: int, block_d: int) -> bool:
    """Whether the bound holds for so many dimensions: few roundings, and no SAD above _MOST."""
    return (block_d + width / block_d + 4) * 2.0**-24 < 0.01 and 256 * width < _MOST


def l1_within(distance: Tensor, d: int, width: int, block_d: int, w1: float, w2: float) -> Tensor:
    """The L1 distance below which a pair of staged rows is if its computed distance is at most `distance`; float64."""
    roundings = block_d + width / block_d + 4
    eta = w1 * width * 2.0**-125 + w2 * width**0.5 * 2.0**-62 + 2.0**-125
    weight = (w1 + w2 / d**0.5) * (1 - 2.0**-50)
    return (distance.double() + eta) * ((1 + 1.01 * roundings * 2.0**-24) / weight)


def reach(l1: Tensor, error: Tensor, steps: float) -> Tensor:
    """a of rows with the error E, for an L1 distance and c = steps: int32."""
    return ((l1 * steps + error) * (1 + 2.0**-20)).clamp(max=_MOST).floor().int()


def margin(error: Tensor) -> Tensor:
    """e of rows with the error E: int32."""
    return (error * (1 + 2.0**-20)).clamp(max=_MOST).ceil().int()


class Grid:
    """o and c of the codes, from a sample of staged rows and the part of the widest range that a code spans."""

    def __init__(self, sample: Tensor, clip: float) -> None:
        low, high = sample.amin(0), sample.amax(0)
        span = max(clip * float((high - low).max()), 2.0**-19)
        self.steps = float(torch.tensor(255 / span, dtype=torch.float32))
        middle = sample.mean(0) - span / 2
        self.low = torch.where(high - low > span, torch.minimum(torch.maximum(middle, low), high - span), low)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The codes (rows, words) int32, four dimensions a word, and the errors E (rows,) float64."""
        words = triton.cdiv(rows.shape[1], 4 * _CONFIG["BLOCK_W"]) * _CONFIG["BLOCK_W"]
        codes = torch.zeros(len(rows), 4 * words, dtype=torch.uint8, device=rows.device)
        error = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        step = max(1, 2**24 // rows.shape[1])
        for i in range(0, len(rows), step):
            v = ((rows[i : i + step] - self.low) * self.steps).clamp_(0, 255)
            q = v.round()
            error[i : i + step] = (v - q).abs_().sum(1, dtype=torch.float64) + rows.shape[1] * 2.0**-14
            codes[i : i + step, : rows.shape[1]] = q.to(torch.uint8)
        return codes.view(torch.int32), error


def partition(rows: Tensor) -> Tensor:
    """An order of the rows in which near ones are beside each other, (rows,) int32: halves of halves, down to tiles."""
    m, d = rows.shape
    groups = triton.cdiv(d, min(d, 32))
    short = torch.nn.functional.pad(rows, (0, -d % groups)).view(m, -1, groups).sum(2)  # at most 32 numbers a row
    levels = (triton.cdiv(m, TILE) - 1).bit_length()
    order = torch.arange(TILE << levels, device=rows.device)
    for level in range(levels):
        order = order.view(1 << level, -1)
        node = short[order.clamp(max=m - 1)]  # [nodes, rows, dimensions]
        ends = [node.mean(1)]
        for _ in range(2):  # the row farthest from the mean, and the one farthest from that
            far = (node - ends[-1][:, None]).square().sum(2).argmax(1)
            ends.append(node[torch.arange(len(node), device=far.device), far])
        along = (node * (ends[2] - ends[1])[:, None]).sum(2)
        order = order.gather(1, along.masked_fill(order >= m, torch.inf).sort(dim=1, stable=True).indices)
    order = order.flatten()
    return order[order < m].int()


def tiles_of(rows: int, words: int, device: torch.device) -> tuple[Tensor, ...]:
    """The places of the rows in each tile, [tiles, TILE], a few tiles at a time; the last row fills the last tile."""
    places = torch.arange(triton.cdiv(rows, TILE) * TILE, device=device).clamp(max=rows - 1).view(-1, TILE)
    return places.split(max(1, 2**24 // (TILE * words)))


class Codes:
    """Rows in an order of theirs: their codes, their errors, and around which code and how far each tile lies."""

    def __init__(self, rows: Tensor, order: Tensor, grid: Grid) -> None:
        self.order = order
        codes, error = grid.encode(rows)
        self.codes, self.error = codes[order.long()], error[order.long()]
        self.margin = margin(self.error)
        centres, radii = [], []
        for places in tiles_of(len(rows), self.codes.shape[1], rows.device):
            tile = self.codes[places].view(torch.uint8).float()  # [tiles, TILE, dimensions]
            centres.append(tile.mean(1).round())
            radii.append((tile - centres[-1][:, None]).abs_().sum(2, dtype=torch.float64).amax(1))
        self.centre, self.radius = torch.cat(centres), torch.cat(radii)

    def __len__(self) -> int:
        return len(self.order)

    def largest(self, values: Tensor) -> Tensor:
        """The largest of a value of the rows of each tile, float64."""
        whole = torch.nn.functional.pad(values.double(), (0, -len(values) % TILE), value=-torch.inf)
        return whole.view(-1, TILE).amax(1)


def pairs_within(q: Codes, x: Codes, reaches: Tensor, x_reaches: Tensor | None, first: int, last: int) -> Tensor:
    """The tiles of pairs, (n, 2) int32, of the tiles first to last of q whose codes may be near enough.

    With x_reaches q is x, and of the two tiles the first does not come after the second.
    """
    part = slice(first, last)
    apart = torch.cdist(q.centre[part].double(), x.centre.double(), p=1)
    apart -= q.radius[part, None] + x.radius
    near = apart <= q.largest(reaches)[part, None] + x.largest(x.margin)
    if x_reaches is not None:
        near |= apart <= q.largest(q.margin)[part, None] + x.largest(x_reaches)
        near = near.triu(first)
    pairs = near.nonzero()
    pairs[:, 0] += first
    return pairs.int()


def lists_of(
    q: Codes, x: Codes, reaches: Tensor, x_reaches: Tensor | None, pairs: Tensor, room: int, native: bool
) -> tuple[Tensor, Tensor]:
    """For each tile of q the rows of x within reach of one of its queries.

    Returns:
        lists: (tiles, room) int32, in any order; the largest int32 where there are fewer.
        count: How many rows belong there, (tiles,) int32, which may be more than have room.
    """
    count = torch.zeros(len(q.centre), dtype=torch.int32, device=pairs.device)
    rows = torch.full((len(count), room), torch.iinfo(torch.int32).max, dtype=torch.int32, device=pairs.device)
    if len(pairs):
        with torch.cuda.device_of(pairs):
            _filter_kernel[(len(pairs),)](
                q.codes, reaches, q.order, x.codes, reaches if x_reaches is None else x_reaches, q.margin, x.margin,
                x.order, pairs.contiguous(), count, rows, count, rows, len(q), len(x), x.codes.shape[1], room,
                SYMMETRIC=x_reaches is not None, NATIVE=native, TILE=TILE, **_CONFIG,
            )  # fmt: skip
    return rows, count
