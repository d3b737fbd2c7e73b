"""The search among the rows that the filter leaves: the same neighbours as the search among all rows, bit for bit.

1. Both sides are put into the order of a partition (`codes.partition`); `TILE` rows beside each other are a tile.
2. The exact distances to the rows of a few near tiles give every query a threshold: its k-th best distance so far.
3. Codes on a grid that leaves the fewest of a sample of pairs, and from each threshold how far codes may be apart.
4. Tiles of pairs whose codes cannot be near are skipped whole; of the others the codes of all pairs are compared, each
   unordered pair once where the queries are the rows. What may be near goes to the lists of the tiles; if one of them
   has no room, half of the tiles are taken at a time.
5. The queries of a tile visit the rows of its list, by the kernel that visits all rows otherwise.
"""

import torch
import triton
from dm2_fast.kernels import codes
from dm2_fast.kernels.codes import TILE, Codes, Grid
from dm2_fast.kernels.knn import search
from torch import Tensor

_SEEDS = 8  # tiles, or as many as hold four times the neighbours, whose exact distances give the thresholds
_CLIPS = (1.0, 0.8, 0.6, 0.5, 0.4)  # parts of the widest range that codes may span
_SAMPLE = 256  # tiles of pairs, and queries, that tell what stays
_TILES = 2**24  # tiles of pairs held at a time
_WORTH = 0.5  # of the pairs at most; an exact distance costs eight times what comparing codes does
_LAST = torch.iinfo(torch.int32).max  # in the places of a list that hold no row


def knn(
    q: Tensor,
    q_ids: Tensor,
    x: Tensor,
    x_ids: Tensor,
    best: Tensor,
    ids: Tensor,
    w1: float,
    w2: float,
    config: dict[str, int],
    d: int,
    *,
    native: bool,
    worth: float = _WORTH,
    room: int = 8192,
) -> bool:
    """`search` for rows of d dimensions and one part, where the filter drops enough pairs; whether it does.

    Args:
        q: The staged queries; x itself if all rows ask.
        native: Whether the device can run the instruction for bytes.
        worth: The share of pairs that may stay.
        room: Rows in the list of a tile, at least TILE; lists that would be longer are made in several passes.
    """
    if TILE % config["BLOCK_M"] or not codes.holds(x.shape[1], config["BLOCK_D"]):
        return False
    symmetric = q is x
    x_order = codes.partition(x)
    q_order = x_order if symmetric else codes.partition(q)
    kth = torch.minimum(_seed(q, q_ids, q_order, x, x_ids, x_order, best.shape[1], w1, w2, config), best[0].amax(0))
    l1 = codes.l1_within(kth, d, x.shape[1], config["BLOCK_D"], w1, w2)
    grid = _grid(q, x, l1)
    x_codes = Codes(x, x_order, grid)
    q_codes = x_codes if symmetric else Codes(q, q_order, grid)
    reach = codes.reach(l1[q_order.long()], q_codes.error, grid.steps)
    x_reach = reach if symmetric else None

    tiles = len(q_codes.centre)
    step = max(1, _TILES // len(x_codes.centre))
    slabs = [range(first, min(first + step, tiles)) for first in range(0, tiles, step)]
    expected: float | None = None  # rows in a list, if the first slab is like the others
    for slab in slabs:
        pairs = codes.pairs_within(q_codes, x_codes, reach, x_reach, slab.start, slab.stop)
        if expected is None:
            sample = pairs[:: max(1, len(pairs) // _SAMPLE)]
            count = codes.lists_of(q_codes, x_codes, reach, x_reach, sample, TILE, native)[1]
            sides = (sample[:, 0] != sample[:, 1]).sum() * symmetric + len(sample)
            expected = float(count.sum() / sides.clamp(min=1)) * len(pairs) / len(slab) * (1 + symmetric)
            if expected > worth * len(x):
                return False
        passes = int(1.5 * expected / room) + 1
        waiting = [pairs[part::passes] for part in range(passes)]
        while waiting:
            now = waiting.pop()
            rows, count = codes.lists_of(q_codes, x_codes, reach, x_reach, now, room, native)
            longest = int(count.max())
            if longest > room:
                waiting += [now[::2], now[1::2]]
            elif longest:
                rows = rows[:, :longest].sort(dim=1).values
                search(q, q_ids, x, x_ids, best, ids, w1, w2, config, (TILE, q_order, rows, count))
    return True


def _means(rows: Tensor, order: Tensor) -> Tensor:
    """The mean row of each tile."""
    return torch.cat([rows[order[places].long()].mean(1) for places in codes.tiles_of(*rows.shape, rows.device)])


def _seed(
    q: Tensor, q_ids: Tensor, q_order: Tensor, x: Tensor, x_ids: Tensor, x_order: Tensor, k: int,
    w1: float, w2: float, config: dict[str, int],
) -> Tensor:  # fmt: skip
    """The k-th smallest distance of each query to the rows of the tiles nearest to its own: (queries,)."""
    means = _means(x, x_order)
    apart = torch.cdist(means if q is x else _means(q, q_order), means, p=1)
    nearest = apart.topk(min(max(_SEEDS, triton.cdiv(4 * k, TILE)), len(means)), largest=False).indices
    places = (nearest[:, :, None] * TILE + torch.arange(TILE, device=x.device)).flatten(1)
    rows = x_order[places.clamp(max=len(x) - 1)].masked_fill(places >= len(x), _LAST).sort(dim=1).values
    best = torch.full((1, k, len(q)), torch.inf, dtype=torch.float32, device=x.device)
    ids = torch.full(best.shape, torch.iinfo(torch.int64).max, device=x.device)
    search(
        q, q_ids, x, x_ids, best, ids, w1, w2, config, (TILE, q_order, rows, (rows < _LAST).sum(1, dtype=torch.int32))
    )
    return best[0].amax(0)


def _grid(q: Tensor, x: Tensor, l1: Tensor) -> Grid:
    """The grid that leaves the fewest pairs of a sample of the queries and rows."""
    rows = x[:: triton.cdiv(len(x), 4 * _SAMPLE)]
    step = triton.cdiv(len(q), _SAMPLE // 4)
    grids = [Grid(rows, clip) for clip in _CLIPS]
    kept = []
    for grid in grids:
        (asked, asked_error), (stored, error) = grid.encode(q[::step]), grid.encode(rows)
        sad = torch.cdist(asked.view(torch.uint8).float(), stored.view(torch.uint8).float(), p=1)
        limit = codes.reach(l1[::step], asked_error, grid.steps)[:, None] + codes.margin(error)
        kept.append(int((sad <= limit).sum()))
    return grids[kept.index(min(kept))]
