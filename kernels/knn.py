"""All distances, and the k nearest neighbours under the combined distance without storing the distance matrix.

With rows scaled by scale[i] (1 / norm) as they are read, computes for every query i and row j
    l1, l2_squared = |q_i - x_j|.sum(), ((q_i - x_j) ** 2).sum()
    combine(l1, l2_squared, w1, w2) = w1 * l1 + w2 * sqrt(l2_squared)                                  Eqs. 4-6
One program owns BLOCK_M queries and streams all rows past them. Differences are summed directly: a Gram matrix would
cancel for near neighbours, which are what is looked for. The running best k stay in registers and are replaced by
(distance, id), so the order of visits cannot change which rows are found.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_NOBODY = tl.constexpr(2**62)  # ids of empty places, above every real id


# (largest k_pad, BLOCK_M, num_warps): the difference tile [BLOCK_D, BLOCK_M, BLOCK_N] shares the registers with the
# running best [BLOCK_M, k_pad], so a longer one takes fewer rows. None of them spills on sm_80, sm_90 or sm_100.
_TILES = ((32, 32, 8), (64, 16, 4), (128, 16, 8), (256, 8, 4), (512, 4, 8))


def _config(k_pad: int) -> dict[str, int]:
    _, block_m, num_warps = next((tile for tile in _TILES if k_pad <= tile[0]), _TILES[-1])
    return {"BLOCK_M": block_m, "BLOCK_N": 64, "BLOCK_D": 8, "num_warps": num_warps}


@triton.jit
def combine(l1, l2_squared, w1, w2):
    return w1 * l1 + w2 * tl.sqrt_rn(l2_squared)


@triton.jit
def _tile(
    q_ptr, x_ptr, q_scale, x_scale, offs_m, offs_n, D, stride_q, stride_x, w1, w2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Distances of queries offs_m to rows offs_n, both within bounds: [BLOCK_M, BLOCK_N] float32."""
    l1 = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    l2_squared = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d in range(0, D, BLOCK_D):
        offs_d = d + tl.arange(0, BLOCK_D)
        mask = offs_d[:, None] < D
        q = tl.load(q_ptr + offs_m[None, :] * stride_q + offs_d[:, None], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offs_n[None, :] * stride_x + offs_d[:, None], mask=mask, other=0.0).to(tl.float32)
        q = q * q_scale[None, :]  # [BLOCK_D, BLOCK_M]
        x = x * x_scale[None, :]  # [BLOCK_D, BLOCK_N]
        difference = q[:, :, None] - x[:, None, :]
        l1 += tl.sum(tl.abs(difference), 0)
        l2_squared += tl.sum(difference * difference, 0)
    return combine(l1, l2_squared, w1, w2)


@triton.jit
def _pairwise_kernel(
    q_ptr, q_scale_ptr, x_ptr, x_scale_ptr, out_ptr, M, N, D, stride_q, stride_x, w1, w2,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_m = tl.minimum(offs_m, M - 1)  # clamped, so that loads need no row mask
    q_scale = tl.load(q_scale_ptr + rows_m)
    for n in range(0, N, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N).to(tl.int64)
        rows_n = tl.minimum(offs_n, N - 1)
        x_scale = tl.load(x_scale_ptr + rows_n)
        distance = _tile(
            q_ptr, x_ptr, q_scale, x_scale, rows_m, rows_n, D, stride_q, stride_x, w1, w2, BLOCK_M, BLOCK_N, BLOCK_D
        )
        mask = (offs_m[:, None] < M) & (offs_n[None, :] < N)
        tl.store(out_ptr + offs_m[:, None] * N + offs_n[None, :], distance, mask=mask)


@triton.jit
def _worst(best, ids):
    """The place in each running best that is replaced next: the largest (distance, id)."""
    distance = tl.max(best, 1)
    return distance, tl.max(tl.where(best == distance[:, None], ids, -1), 1)


@triton.jit
def _nearest(distances, ids, NOBODY: tl.constexpr):
    """The candidate of each row that is inserted next: the smallest (distance, id)."""
    distance = tl.min(distances, 1)
    return distance, tl.min(tl.where(distances == distance[:, None], ids, NOBODY), 1)


@triton.jit
def _knn_kernel(
    q_ptr, q_scale_ptr, q_ids_ptr, x_ptr, x_scale_ptr, x_ids_ptr, best_ptr, ids_ptr,
    M, N, D, K, stride_q, stride_x, w1, w2, NOBODY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, K_PAD: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows_m = tl.minimum(offs_m, M - 1)
    q_scale = tl.load(q_scale_ptr + rows_m)
    q_ids = tl.load(q_ids_ptr + rows_m)
    offs_k = tl.arange(0, K_PAD)
    places = rows_m[:, None] * K + tl.minimum(offs_k, K - 1)[None, :]
    used = tl.broadcast_to(offs_k[None, :] < K, (BLOCK_M, K_PAD))
    best = tl.where(used, tl.load(best_ptr + places), float("-inf"))  # unused places are never the worst
    ids = tl.load(ids_ptr + places)
    ids = tl.where(ids < NOBODY, ids, NOBODY + offs_k[None, :].to(tl.int64))  # distinct, so one place is replaced
    worst, worst_id = _worst(best, ids)
    for n in range(0, N, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N).to(tl.int64)
        rows_n = tl.minimum(offs_n, N - 1)
        x_scale = tl.load(x_scale_ptr + rows_n)
        x_ids = tl.load(x_ids_ptr + rows_n)
        distance = _tile(
            q_ptr, x_ptr, q_scale, x_scale, rows_m, rows_n, D, stride_q, stride_x, w1, w2, BLOCK_M, BLOCK_N, BLOCK_D
        )
        counts = (offs_n[None, :] < N) & (x_ids[None, :] != q_ids[:, None])
        distance = tl.where(counts, distance, float("inf"))
        candidate_ids = tl.broadcast_to(x_ids[None, :], (BLOCK_M, BLOCK_N))
        near, near_id = _nearest(distance, candidate_ids, NOBODY)
        better = (near < worst) | ((near == worst) & (near_id < worst_id) & (near < float("inf")))
        while tl.max(better.to(tl.int32), 0) > 0:
            replaced = better[:, None] & (best == worst[:, None]) & (ids == worst_id[:, None])
            best = tl.where(replaced, near[:, None], best)
            ids = tl.where(replaced, near_id[:, None], ids)
            distance = tl.where(better[:, None] & (candidate_ids == near_id[:, None]), float("inf"), distance)
            worst, worst_id = _worst(best, ids)
            near, near_id = _nearest(distance, candidate_ids, NOBODY)
            better = (near < worst) | ((near == worst) & (near_id < worst_id) & (near < float("inf")))
    mask = used & (offs_m[:, None] < M)
    tl.store(best_ptr + places, best, mask=mask)
    tl.store(ids_ptr + places, ids, mask=mask)


def _dense(rows: Tensor) -> Tensor:
    """Rows that are strided inside are copied; any stride between rows is fine."""
    return rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()


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
    config = config or _config(2)
    queries, rows = _dense(queries), _dense(rows)
    grid = (triton.cdiv(len(queries), config["BLOCK_M"]),)
    with torch.cuda.device_of(rows):
        _pairwise_kernel[grid](
            queries, query_scale, rows, row_scale, out,
            len(queries), len(rows), rows.shape[1], queries.stride(0), rows.stride(0), w1, w2,
            **config, enable_fp_fusion=True,
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
) -> None:
    """`reference.knn` in float32 arithmetic, for float32, float16 and bfloat16 rows."""
    k_pad = max(2, triton.next_power_of_2(distances.shape[1]))
    config = config or _config(k_pad)
    queries, rows = _dense(queries), _dense(rows)
    grid = (triton.cdiv(len(queries), config["BLOCK_M"]),)
    with torch.cuda.device_of(rows):
        _knn_kernel[grid](
            queries, query_scale, query_ids, rows, row_scale, row_ids, distances, indices,
            len(queries), len(rows), rows.shape[1], distances.shape[1], queries.stride(0), rows.stride(0), w1, w2,
            _NOBODY, **config, K_PAD=k_pad, enable_fp_fusion=True,
        )  # fmt: skip
    by_id = indices.argsort(dim=1)
    by_distance = distances.gather(1, by_id).argsort(dim=1, stable=True)
    order = by_id.gather(1, by_distance)
    distances.copy_(distances.gather(1, order))
    indices.copy_(indices.gather(1, order))
