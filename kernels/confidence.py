"""Uncertainty of logits in one pass, no softmax written (Eqs. 9-10).

With e_c = exp(z_c - max z) and S = sum e_c, where the largest term is left out so that nothing cancels:
    least-confidence  1 - max softmax  = (S - 1) / S
    entropy           -sum p log p     = log S - sum e_c (z_c - max z) / S
    margin            -(p_1 - p_2)     = (e_2 - 1) / S
One program owns BLOCK_N rows and walks over the classes, BLOCK_C at a time. What is known of the classes seen so far is
a row's summary: the largest logit, and of the other classes the sum of e, the sum of e z and the largest z, where z is
relative to the largest logit and e = exp(z).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOWEST = tl.constexpr(-3.4e38)  # in the place of -inf, whose difference to itself is not a number
KINDS = {"least-confidence": 0, "entropy": 1, "margin": 2}


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0, without losing a small x in the sum."""
    y = tl.minimum(x, 0.01)
    return tl.where(x < 0.01, y * (1 - y * (1 / 2 - y * (1 / 3 - y / 4))), tl.log(1 + x))


@triton.jit
def _expm1(x):
    """exp(x) - 1 for x <= 0, without cancelling for a small x."""
    y = tl.maximum(x, -0.01)
    return tl.where(x > -0.01, y * (1 + y * (1 / 2 + y * (1 / 6 + y / 24))), tl.exp(x) - 1)


@triton.jit
def nothing_seen(BLOCK_N: tl.constexpr):
    """The summary of no class at all."""
    none = tl.full((BLOCK_N,), float("-inf"), tl.float32)
    return none, tl.zeros((BLOCK_N,), tl.float32), tl.zeros((BLOCK_N,), tl.float32), none


@triton.jit
def see(logits, largest, others, moment, second):
    """The summary of the classes seen so far and those of logits [BLOCK_N, BLOCK_C]; -inf counts nothing."""
    tile_largest = tl.max(logits, 1)
    top = tl.argmax(logits, 1)
    alone = tl.arange(0, logits.shape[1])[None, :] == top[:, None]
    z = tl.where(alone, float("-inf"), logits - tl.maximum(tile_largest, _LOWEST)[:, None])
    e = tl.exp(z)
    tile_others = tl.sum(e, 1)
    tile_moment = tl.sum(e * tl.where(e > 0, z, 0.0), 1)
    tile_second = tl.max(z, 1)

    ahead = largest >= tile_largest  # the summary with the larger logit stays, the other one is taken relative to it
    high = tl.maximum(largest, tile_largest)
    gap = tl.minimum(largest, tile_largest) - tl.maximum(high, _LOWEST)
    low_others, low_moment = tl.where(ahead, tile_others, others), tl.where(ahead, tile_moment, moment)
    e = tl.exp(gap)
    low_moment = e * (low_moment + tl.where(e > 0, gap, 0.0) * (1 + low_others))
    others = tl.where(ahead, others, tile_others) + e * (1 + low_others)
    moment = tl.where(ahead, moment, tile_moment) + low_moment
    return high, others, moment, tl.maximum(tl.where(ahead, second, tile_second), gap)


@triton.jit
def value_of(others, moment, second, KIND: tl.constexpr):
    if KIND == 0:
        value = others / (1 + others)
    elif KIND == 1:
        value = _log1p(others) - moment / (1 + others)
    else:
        value = _expm1(second) / (1 + others)
    return value


@triton.jit
def _uncertainty_kernel(
    logits_ptr, out_ptr, N, C, stride_n, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(offs_n, N - 1)
    largest, others, moment, second = nothing_seen(BLOCK_N)
    for c in range(0, C, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        mask = offs_c[None, :] < C
        logits = tl.load(logits_ptr + rows[:, None] * stride_n + offs_c[None, :], mask=mask, other=float("-inf"))
        largest, others, moment, second = see(logits.to(tl.float32), largest, others, moment, second)
    tl.store(out_ptr + offs_n, value_of(others, moment, second, KIND), mask=offs_n < N)


def _config(classes: int) -> dict[str, int]:
    # 8 logits a thread: with 32 the summaries of 256 short rows would take all registers.
    block_c = min(1024, triton.next_power_of_2(classes))
    return {"BLOCK_N": 1024 // block_c, "BLOCK_C": block_c, "num_warps": 4}


def uncertainty(logits: Tensor, kind: str, out: Tensor, *, config: dict[str, int] | None = None) -> None:
    """`reference.uncertainty` in float32 arithmetic, for float32, float16 and bfloat16 logits."""
    n, classes = logits.shape
    config = _config(classes) | (config or {})
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    with torch.cuda.device_of(logits):
        _uncertainty_kernel[(triton.cdiv(n, config["BLOCK_N"]),)](
            logits, out, n, classes, logits.stride(0), KINDS[kind], **config, enable_fp_fusion=True
        )
