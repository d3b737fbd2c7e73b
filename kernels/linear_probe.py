"""From frozen features to scores under a linear head, in one launch: gather, mix, logits, uncertainty.

    mixed[i] = sum over t of coefficients[i, t] * features[indices[i, t]]                              Eq. 7
    logits[i] = weight @ mixed[i] + bias                                                               Eq. 8
    out[i] = uncertainty(logits[i], kind)                                                              Eqs. 9-10
One program owns BLOCK_M rows. It walks over the classes, BLOCK_C at a time, mixes BLOCK_D dimensions at a time and
multiplies them with the weights of these classes; the classes end in the running summary of `confidence.see`. Neither
the mixtures nor the logits are written. Where the classes take several blocks, the mixtures are made again for each.
"""

import torch
import triton
import triton.language as tl
from dm2_fast.kernels.confidence import KINDS, nothing_seen, see, value_of
from torch import Tensor


def _config(classes: int) -> dict[str, int]:
    # Up to 128 classes the mixtures are made once. A thread holds at most 16 logits and 4 mixed dimensions; blocks of
    # 32 or 64 classes, 32 dimensions or twice the rows spill on one of sm_80, sm_90 and sm_100.
    block_c, warps = (16, 4) if classes <= 16 else (128, 8)
    return {"BLOCK_M": 32, "BLOCK_C": block_c, "BLOCK_D": 16, "num_warps": warps}


@triton.jit
def _linear_probe_kernel(
    features_ptr, indices_ptr, coefficients_ptr, weight_ptr, bias_ptr, out_ptr, R, TERMS, D, C, stride_m,
    KIND: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = tl.minimum(offs_m, R - 1)
    largest, others, moment, second = nothing_seen(BLOCK_M)
    for c in range(0, C, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        classes = tl.minimum(offs_c, C - 1).to(tl.int64)
        bias = tl.load(bias_ptr + classes).to(tl.float32)
        logits = tl.zeros((BLOCK_M, BLOCK_C), tl.float32) + bias[None, :]
        for d in range(0, D, BLOCK_D):
            offs_d = d + tl.arange(0, BLOCK_D)
            mask = offs_d[None, :] < D
            mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for t in range(TERMS):
                index = tl.load(indices_ptr + rows * TERMS + t)
                coefficient = tl.load(coefficients_ptr + rows * TERMS + t)
                part = tl.load(features_ptr + index[:, None] * stride_m + offs_d[None, :], mask=mask, other=0.0)
                mixed += coefficient[:, None] * part.to(tl.float32)
            place = weight_ptr + classes[None, :] * D + offs_d[:, None]
            weight = tl.load(place, mask=offs_d[:, None] < D, other=0.0)
            logits = tl.dot(mixed, weight.to(tl.float32), logits, input_precision="ieee")
        logits = tl.where(offs_c[None, :] < C, logits, float("-inf"))
        largest, others, moment, second = see(logits, largest, others, moment, second)
    tl.store(out_ptr + offs_m, value_of(others, moment, second, KIND), mask=offs_m < R)


def linear_probe(
    features: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    kind: str,
    out: Tensor,
    *,
    config: dict[str, int] | None = None,
) -> None:
    """`reference.linear_probe` in float32 arithmetic, for float32, float16 and bfloat16 features and weights."""
    classes, d = weight.shape
    config = _config(classes) | (config or {})
    features = features if d <= 1 or features.stride(1) == 1 else features.contiguous()
    with torch.cuda.device_of(features):
        _linear_probe_kernel[(triton.cdiv(len(out), config["BLOCK_M"]),)](
            features, indices.contiguous(), coefficients.contiguous(), weight.contiguous(), bias.contiguous(), out,
            len(out), indices.shape[1], d, classes, features.stride(0), KINDS[kind],
            **config, enable_fp_fusion=True,
        )  # fmt: skip
