"""From frozen features to the uncertainty of mixed samples under a linear head, in one step (Eqs. 7-10)."""

from typing import get_args

import torch
from torch import Tensor

from dm2_fast.operations import backends
from dm2_fast.operations.arguments import one_of
from dm2_fast.operations.arrays import as_floats, name_rows
from dm2_fast.operations.mix import terms
from dm2_fast.operations.uncertainty import Uncertainty


def linear_probe(
    features: Tensor,
    indices: Tensor,
    lam: float | Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kind: Uncertainty = "least-confidence",
    *,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Tensor:
    """Mix features with their neighbours and return the uncertainty of the mixtures under a linear head.

    Specifically, this computes `uncertainty(F.linear(mix(features, indices, lam), weight, bias), kind)`, on a GPU in
    one launch. Neither all mixtures nor all logits are stored.

    Args:
        features: Input of the head, (m, d), float16 | bfloat16 | float32 | float64, finite.
        indices, lam, weights, rows: As in `dm2_fast.mix`.
        weight: (C, d), C >= 2, finite, on the device of features; as in `torch.nn.Linear`.
        bias: (C,), finite; None for zero.
        kind: "least-confidence", "entropy" or "margin".
        backend, num_threads: As in `dm2_fast.knn`.

    Returns:
        (r,) float32 (float64 for float64 features); larger is more uncertain.

    Raises:
        ValueError: shapes do not match, something is not finite, an index is not a row of features, or lam, the weights
            or kind are out of range.
        TypeError: a dtype is not listed above, or indices are not int64.
        RuntimeError: a forced backend cannot run on features.
    """
    one_of("kind", kind, get_args(Uncertainty))
    features, weight = as_floats(features, "features"), as_floats(weight, "weight")
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty (m, d) matrix, got shape {tuple(features.shape)}")
    d = features.shape[1]
    if weight.ndim != 2 or weight.shape[0] < 2 or weight.shape[1] != d:
        raise ValueError(f"weight must be (C, {d}) with at least two classes, got shape {tuple(weight.shape)}")
    classes = len(weight)
    bias = weight.new_zeros(classes) if bias is None else as_floats(bias, "bias")
    if bias.shape != (classes,):
        raise ValueError(f"bias must be ({classes},), got shape {tuple(bias.shape)}")
    for name, value in (("features", features), ("weight", weight), ("bias", bias[:, None])):
        if value.device != features.device:
            raise ValueError(f"{name} must be on the device of features, {features.device}, got {value.device}")
        bad = torch.nonzero(~torch.linalg.vector_norm(value, torch.inf, dim=1).isfinite())[:, 0].tolist()
        if bad:
            raise ValueError(f"{name} must be finite, got NaN or infinity in {name_rows(bad)}")
    who, coefficients = terms(len(features), indices, lam, weights, rows)
    module = backends.resolve(backend, features, "linear_probe")
    options = backends.thread_options(module, num_threads)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    out = torch.empty(len(who), dtype=dtype, device=features.device)
    if len(out):
        who, coefficients = who.to(features.device), coefficients.to(features.device, dtype)
        weight = weight.contiguous()  # matrix products round by layout
        module.linear_probe(features, who, coefficients, weight, bias, kind, out, **options)
    return out
