"""Uncertainty of logits in one pass, no softmax written (Eqs. 9-10).

With e_c = exp(z_c - max z) and S = sum e_c, where the largest term is left out so that nothing cancels:
    least-confidence  1 - max softmax  = (S - 1) / S
    entropy           -sum p log p     = log S - sum e_c (z_c - max z) / S
    margin            -(p_1 - p_2)     = (e_2 - 1) / S
One program owns BLOCK_N rows and all classes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_KINDS = {"least-confidence": 0, "entropy": 1, "margin": 2}


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
def _uncertainty_kernel(
    logits_ptr, out_ptr, N, C, stride_n, KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.minimum(offs_n, N - 1)
    offs_c = tl.arange(0, BLOCK_C)
    classes = tl.broadcast_to(offs_c[None, :], (BLOCK_N, BLOCK_C))
    logits = tl.load(
        logits_ptr + rows[:, None] * stride_n + offs_c[None, :], mask=offs_c[None, :] < C, other=float("-inf")
    ).to(tl.float32)  # [BLOCK_N, BLOCK_C]
    largest = tl.max(logits, 1)
    top = tl.min(tl.where(logits == largest[:, None], classes, BLOCK_C), 1)
    z = tl.where(classes == top[:, None], float("-inf"), logits - largest[:, None])
    e = tl.exp(z)
    others = tl.sum(e, 1)
    if KIND == 0:
        value = others / (1 + others)
    elif KIND == 1:
        value = _log1p(others) - tl.sum(e * tl.where(e > 0, z, 0.0), 1) / (1 + others)
    else:
        value = _expm1(tl.max(z, 1)) / (1 + others)
    tl.store(out_ptr + offs_n, value, mask=offs_n < N)


def uncertainty(logits: Tensor, kind: str, out: Tensor, *, config: dict[str, int] | None = None) -> None:
    """`reference.uncertainty` in float32 arithmetic, for float32, float16 and bfloat16 logits."""
    n, classes = logits.shape
    block_c = triton.next_power_of_2(classes)
    config = config or {"BLOCK_N": max(1, 4096 // block_c), "num_warps": 4}
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    with torch.cuda.device_of(logits):
        _uncertainty_kernel[(triton.cdiv(n, config["BLOCK_N"]),)](
            logits, out, n, classes, logits.stride(0), _KINDS[kind], **config, BLOCK_C=block_c, enable_fp_fusion=True
        )
