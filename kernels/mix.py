"""Gather and mix in one pass: out[i] = sum over t of coefficients[i, t] * inputs[indices[i, t]] (Eq. 7).

uint8 inputs are divided by 255 afterwards; then each element becomes (. - mean[c]) / std[c] of its channel
c = element // channel_stride % channels. Grid: rows on axis 0, blocks of elements on axis 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

# 16 elements a thread: one load of 16 bytes from a uint8 pool, four from a float32 one, and stores of 16 bytes. The
# launch does not fuse products into sums: the bits are those of the other implementations, and memory is the limit.
_CONFIG = {"BLOCK": 2048, "num_warps": 4}


@triton.jit
def _mix_kernel(
    inputs_ptr, indices_ptr, coefficients_ptr, mean_ptr, std_ptr, out_ptr,
    WIDTH, TERMS, stride_m, channel_stride, CHANNELS,
    PIXELS: tl.constexpr, NORMALIZE: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < WIDTH
    mixed = tl.zeros((BLOCK,), tl.float32)
    for t in range(TERMS):
        index = tl.load(indices_ptr + row * TERMS + t)
        coefficient = tl.load(coefficients_ptr + row * TERMS + t)
        mixed += coefficient * tl.load(inputs_ptr + index * stride_m + offs, mask=mask, other=0).to(tl.float32)
    if PIXELS:
        mixed = tl.div_rn(mixed, tl.full((BLOCK,), 255.0, tl.float32))
    if NORMALIZE:
        channel = offs // channel_stride % CHANNELS
        mixed = tl.div_rn(mixed - tl.load(mean_ptr + channel), tl.load(std_ptr + channel))
    if LAST:  # channels last, of rows that are one channel after another
        offs = offs % (WIDTH // LAST) * LAST + offs // (WIDTH // LAST)
    tl.store(out_ptr + row * WIDTH + offs, mixed.to(out_ptr.dtype.element_ty), mask=mask)


def mix(
    inputs: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    mean: Tensor,
    std: Tensor,
    channel_stride: int,
    out: Tensor,
    *,
    config: dict[str, int] | None = None,
) -> None:
    """`reference.mix` in float32 arithmetic, for uint8, float32, float16 and bfloat16 inputs."""
    config = config or _CONFIG
    n, width = len(out), inputs.shape[1]
    inputs = inputs if inputs.shape[1] <= 1 or inputs.stride(1) == 1 else inputs.contiguous()
    with torch.cuda.device_of(inputs):
        _mix_kernel[(n, triton.cdiv(width, config["BLOCK"]))](
            inputs, indices.contiguous(), coefficients.contiguous(), mean.contiguous(), std.contiguous(), out,
            width, indices.shape[1], inputs.stride(0), channel_stride, len(mean),
            inputs.dtype == torch.uint8, len(mean) > 0, out.shape[2] if out.ndim == 3 else 0,
            **config, enable_fp_fusion=False,
        )  # fmt: skip
