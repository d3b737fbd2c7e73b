"""All distances, and the k nearest neighbours under the combined distance without storing the distance matrix.

With rows scaled by scale[i] (1 / norm), computes for every query i and row j
    l1, l2_squared = |q_i - x_j|.sum(), ((q_i - x_j) ** 2).sum()
    combine(l1, l2_squared, w1, w2) = w1 * l1 + w2 * sqrt(l2_squared)                                  Eqs. 4-6
Differences are summed directly: a Gram matrix would cancel for near neighbours, which are what is looked for. One
program owns BLOCK_M queries and streams rows past them. The running best k of a query stay in memory, where the largest
(distance, id) is replaced by what is smaller, so the order of visits cannot change which rows are found. They take no
register, and so k is any number; each replacement reads all k.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# The difference tile [BLOCK_D, BLOCK_M, BLOCK_N] is summed over its first axis, which lies within one thread. A thread
# holds 16 pairs: 8 loads of 16 bytes bring 4 dimensions of its 8 rows for 64 differences, and its 32 sums leave room:
# no compiler takes more than 170 of the 255 registers on any target. Larger tiles load less and issue 5 % fewer
# instructions, but each of them spills with some compiler on some target. d and k are no matter, since neither stays in
# registers, and three stages of a tile take 6 KB of shared memory, which every device has, so one tile serves all.
# `benches/static_cost.py` has the numbers.
_TILE = {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_D": 8, "num_warps": 4}
# With a stated limit the assembler does not spill a few registers in order to fit more programs on an SM.
_OPTIONS = {"enable_fp_fusion": True} | ({} if torch.version.hip else {"maxnreg": 224})
_ALIGNED = 16  # dimensions: rows start at multiples of 64 bytes, and the compiler knows it
_BLOCK_K = 16  # places of the running best that are moved at a time
_STAGED = 2**26  # scaled elements held at a time, or more
_FILTERED_PAIRS = 2**26  # from so many on they are filtered, if that leaves few of them


@triton.jit
def combine(l1, l2_squared, w1, w2):
    # Neither maximum changes a value; they keep the compiler from fusing a product into the sum, which would round once
    # less than the other implementations do.
    return tl.maximum(w1 * l1, 0.0) + tl.maximum(w2 * tl.sqrt_rn(l2_squared), 0.0)


@triton.jit
def _tile(
    q_ptr, x_ptr, rows_m, rows_n, D, w1, w2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Distances of queries rows_m to rows rows_n, both 64-bit and within bounds: [BLOCK_M, BLOCK_N] float32."""
    l1 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    l2_squared = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in tl.range(0, D, BLOCK_D, num_stages=3):
        offs_d = d + tl.arange(0, BLOCK_D)
        q = tl.load(q_ptr + rows_m[None, :] * D + offs_d[:, None])  # [BLOCK_D, BLOCK_M]
        x = tl.load(x_ptr + rows_n[None, :] * D + offs_d[:, None])  # [BLOCK_D, BLOCK_N]
        difference = q[:, :, None] - x[:, None, :]
        l1 += tl.sum(tl.abs(difference), 0)
        l2_squared += tl.sum(difference * difference, 0)
    return combine(l1, l2_squared, w1, w2)


@triton.jit
def _pairwise_kernel(
    q_ptr, x_ptr, out_ptr, M, N, D, stride_out, w1, w2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows_m, rows_n = tl.minimum(offs_m, M - 1), tl.minimum(offs_n, N - 1)  # clamped, so that loads need no mask
    distance = _tile(q_ptr, x_ptr, rows_m, rows_n, D, w1, w2, BLOCK_M, BLOCK_N, BLOCK_D)
    mask = (offs_m[:, None] < M) & (offs_n[None, :] < N)
    tl.store(out_ptr + offs_m[:, None] * stride_out + offs_n[None, :], distance, mask=mask)


@triton.jit
def _worst(best_ptr, ids_ptr, first_place, M, K, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """(distance, id, number) of the entry of each running best that is replaced next: the largest (distance, id)."""
    worst = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    worst_id = tl.full((BLOCK_M,), -1, tl.int64)
    number = tl.zeros((BLOCK_M,), tl.int32)
    for k in tl.range(0, K, BLOCK_K, num_stages=1):
        offs_k = tl.minimum(k + tl.arange(0, BLOCK_K), K - 1)[None, :]
        place = first_place[:, None] + offs_k.to(tl.int64) * M
        held, held_id = tl.load(best_ptr + place), tl.load(ids_ptr + place)
        far = tl.max(held, 1)
        far_id = tl.max(tl.where(held == far[:, None], held_id, -1), 1)
        at = tl.max(tl.where((held == far[:, None]) & (held_id == far_id[:, None]), offs_k, 0), 1)
        farther = (far > worst) | ((far == worst) & (far_id > worst_id))
        number = tl.where(farther, at, number)
        worst, worst_id = tl.where(farther, far, worst), tl.where(farther, far_id, worst_id)
    return worst, worst_id, number


@triton.jit
def _knn_kernel(
    q_ptr, q_ids_ptr, x_ptr, x_ids_ptr, best_ptr, ids_ptr, order_ptr, list_ptr, count_ptr, M, N, D, K, PART, w1, w2,
    LISTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All rows, in parts; or, LISTED, for each LISTED queries in the order of order_ptr the rows of a list of its own.

    A list has room for N rows and holds count_ptr of them, in ascending order.
    """
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_m = tl.minimum(offs_m, M - 1)
    part = tl.program_id(1)  # of the rows, with a running best of its own: [part, K, M]
    start, stop = part * PART, tl.minimum(part * PART + PART, N)
    if LISTED:
        block = tl.program_id(0).to(tl.int64) * BLOCK_M // LISTED
        rows_m = tl.load(order_ptr + rows_m).to(tl.int64)
        list_ptr += block * N
        stop = tl.load(count_ptr + block)
    q_ids = tl.load(q_ids_ptr + rows_m)
    first_place = part.to(tl.int64) * K * M + rows_m
    worst, worst_id, number = _worst(best_ptr, ids_ptr, first_place, M, K, BLOCK_M, BLOCK_K)
    columns = tl.arange(0, BLOCK_N)
    for n in tl.range(start, stop, BLOCK_N, num_stages=1):
        rows_n = _row(list_ptr, n + columns, stop, LISTED)
        distance = _tile(q_ptr, x_ptr, rows_m, rows_n, D, w1, w2, BLOCK_M, BLOCK_N, BLOCK_D)
        counts = ((n + columns)[None, :] < stop) & (tl.load(x_ids_ptr + rows_n)[None, :] != q_ids[:, None])
        distance = tl.where(counts, distance, float("inf"))
        near, column = tl.min(distance, 1, return_indices=True)  # a tie goes to the leftmost: ids ascend
        near_id = tl.load(x_ids_ptr + _row(list_ptr, n + column, stop, LISTED))
        better = (near < worst) | ((near == worst) & (near_id < worst_id) & (near < float("inf")))
        while tl.max(better.to(tl.int32), 0) > 0:
            place = first_place + number.to(tl.int64) * M
            tl.store(best_ptr + place, near, mask=better & (offs_m < M))
            tl.store(ids_ptr + place, near_id, mask=better & (offs_m < M))
            tl.debug_barrier()  # a thread reads what another one wrote
            worst, worst_id, number = _worst(best_ptr, ids_ptr, first_place, M, K, BLOCK_M, BLOCK_K)
            tl.debug_barrier()
            distance = tl.where(columns[None, :] == column[:, None], float("inf"), distance)
            near, column = tl.min(distance, 1, return_indices=True)
            near_id = tl.load(x_ids_ptr + _row(list_ptr, n + column, stop, LISTED))
            better = (near < worst) | ((near == worst) & (near_id < worst_id) & (near < float("inf")))


@triton.jit
def _row(list_ptr, places, stop, LISTED: tl.constexpr):
    """The rows at these places, which are clamped, so that loads need no mask."""
    places = tl.minimum(places, stop - 1)
    if LISTED:
        places = tl.load(list_ptr + places)
    return places.to(tl.int64)


def _staged(rows: Tensor, scale: Tensor, block_d: int) -> Tensor:
    """Scaled rows in float32, with zeros up to whole blocks of dimensions and to a multiple of 16.

    In the kernel the compiler would fuse the product into the difference, and equal rows would not be at distance zero.
    """
    n, d = rows.shape
    step = max(block_d, _ALIGNED)  # both are powers of two
    staged = torch.zeros(n, triton.cdiv(d, step) * step, dtype=torch.float32, device=rows.device)
    torch.mul(rows, scale[:, None], out=staged[:, :d])
    return staged


def _room(device: torch.device) -> int:
    """Scaled elements held at a time: those of a quarter of a GPU's free memory, so that most pools are one piece."""
    return max(_STAGED, torch.cuda.mem_get_info(device)[0] // 16) if device.type == "cuda" else _STAGED


def _parts(queries: int, rows: int, device: torch.device, config: dict[str, int]) -> int:
    """How many parts the rows are cut into, so that few queries fill a large device too."""
    if device.type != "cuda":
        return 1
    wanted = 8 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(wanted // triton.cdiv(queries, config["BLOCK_M"]), rows // (4 * config["BLOCK_N"])))


def _running(distances: Tensor, indices: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """The running best (q, k) as (parts, k, q), of which the first part starts with what is known."""
    best = torch.full((parts, *distances.T.shape), torch.inf, dtype=torch.float32, device=distances.device)
    ids = torch.full(best.shape, torch.iinfo(torch.int64).max, device=distances.device)
    best[0], ids[0] = distances.T, indices.T
    return best, ids


def _first(best: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first k by (distance, id) of the entries of all parts, (parts, k, q): (q, k) each."""
    k = best.shape[1]
    ids, order = ids.flatten(0, 1).sort(dim=0)
    best, by_distance = best.flatten(0, 1).gather(0, order).sort(dim=0, stable=True)
    return best[:k].T, ids.gather(0, by_distance)[:k].T


def pairwise(
    queries: Tensor,
    query_scale: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    out: Tensor,
    w1: float,
    w2: float,
    *,
    config: dict[str, int] | None = None,
) -> None:
    """`reference.pairwise` in float32 arithmetic, for float32, float16 and bfloat16 rows."""
    config = config or _TILE
    step = max(1, _room(rows.device) // max(rows.shape[1], _ALIGNED))
    for j in range(0, len(rows), step):
        x = _staged(rows[j : j + step], row_scale[j : j + step], config["BLOCK_D"])
        for i in range(0, len(queries), step):
            q = _staged(queries[i : i + step], query_scale[i : i + step], config["BLOCK_D"])
            grid = (triton.cdiv(len(q), config["BLOCK_M"]), triton.cdiv(len(x), config["BLOCK_N"]))
            with torch.cuda.device_of(x):
                _pairwise_kernel[grid](
                    q, x, out[i : i + step, j : j + step], len(q), len(x), x.shape[1], out.stride(0), w1, w2,
                    **config, **_OPTIONS,
                )  # fmt: skip


def search(
    q: Tensor,
    q_ids: Tensor,
    x: Tensor,
    x_ids: Tensor,
    best: Tensor,
    ids: Tensor,
    w1: float,
    w2: float,
    config: dict[str, int],
    lists: tuple[int, Tensor, Tensor, Tensor] | None = None,
) -> None:
    """Put the staged rows x, with ascending ids, into the running best (parts, k, queries) of the staged queries q.

    Args:
        lists: Look at these rows only: how many queries share a list, the order in which queries do so (queries,)
            int32, the lists (blocks, room) int32, each ascending, and how long they are (blocks,) int32.
    """
    parts, k, m = best.shape
    share, order, rows, count = lists or (0, x_ids, x_ids, x_ids)
    room = rows.shape[1] if lists else len(x)
    part = triton.cdiv(triton.cdiv(room, parts), config["BLOCK_N"]) * config["BLOCK_N"]
    with torch.cuda.device_of(x):
        _knn_kernel[triton.cdiv(m, config["BLOCK_M"]), parts](
            q, q_ids, x, x_ids, best, ids, order, rows, count, m, room, x.shape[1], k, part, w1, w2,
            LISTED=share, **config, BLOCK_K=_BLOCK_K, **_OPTIONS,
        )  # fmt: skip


def knn(
    queries: Tensor,
    query_scale: Tensor,
    query_ids: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    row_ids: Tensor,
    distances: Tensor,
    indices: Tensor,
    w1: float,
    w2: float,
    *,
    config: dict[str, int] | None = None,
    parts: int | None = None,
    filtered: bool | None = None,
) -> None:
    """`reference.knn` in float32 arithmetic, for float32, float16 and bfloat16 rows.

    Args:
        config: Another tile than `_TILE`.
        parts: How many programs share the rows for each block of queries; None for what fills the device. The result
            is the same.
        filtered: Whether to look only at the rows that codes of 8 bits a dimension leave; None for whether there are
            many pairs and a sample says that few of them stay. The result is the same.
    """
    from dm2_fast.kernels import filtered as filtering

    config = config or _TILE
    how = {"native": rows.is_cuda and not torch.version.hip} | ({"worth": torch.inf} if filtered else {})
    step = max(1, _room(rows.device) // max(rows.shape[1], _ALIGNED))
    if bool((row_ids.diff() < 0).any()):
        row_ids, order = row_ids.sort()
        rows, row_scale = rows[order], row_scale[order]
    everyone = queries.data_ptr() == rows.data_ptr() and query_scale.data_ptr() == row_scale.data_ptr()
    everyone &= queries.shape == rows.shape and queries.stride() == rows.stride() and torch.equal(query_ids, row_ids)
    for j in range(0, len(rows), step):
        x = _staged(rows[j : j + step], row_scale[j : j + step], config["BLOCK_D"])
        x_ids = row_ids[j : j + step].contiguous()
        for i in range(0, len(queries), step):
            same = everyone and i == j
            q = x if same else _staged(queries[i : i + step], query_scale[i : i + step], config["BLOCK_D"])
            part = slice(i, i + step)
            staged = q, query_ids[part].contiguous(), x, x_ids
            few = len(q) * len(x) < _FILTERED_PAIRS if filtered is None else not filtered
            best, ids = _running(distances[part], indices[part], 1)
            if few or not filtering.knn(*staged, best, ids, w1, w2, config, rows.shape[1], **how):
                cut = parts or _parts(len(q), len(x), x.device, config)
                best, ids = _running(distances[part], indices[part], cut)
                search(*staged, best, ids, w1, w2, config)
            distances[part], indices[part] = _first(best, ids)
