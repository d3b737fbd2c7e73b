"""A linear head from arrays: those of a `torch.nn.Linear`, or those that scikit-learn keeps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def linear_head(weight: Any, bias: Any, d: int, dtype: torch.dtype) -> nn.Linear:
    """The head of d features that has these weights.

    Args:
        weight: (C, d), finite floating point, such as `coef_` of a linear classifier of scikit-learn; (1, d) is the
            head of two classes, whose softmax is the sigmoid of the one logit.
        bias: (C,), such as `intercept_`; (1,) for a weight of (1, d).
        d, dtype: Those of the features.

    Raises:
        ValueError: the shapes do not fit, or something is not finite.
    """
    arrays = []
    for name, value in (("weight", weight), ("bias", bias)):
        array = value.detach().cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
        if not array.is_floating_point() or not bool(array.isfinite().all()):
            raise ValueError(f"{name} of the head must be finite floating point, got {array.dtype}")
        arrays.append(array.to(dtype))
    w, b = arrays
    if w.ndim != 2 or w.shape[1] != d or len(w) == 0:
        raise ValueError(f"weight of the head must be (C, {d}) for {d} features, got shape {tuple(w.shape)}")
    if b.shape != (len(w),):
        raise ValueError(f"bias of the head must be ({len(w)},), got shape {tuple(b.shape)}")
    if len(w) == 1:
        w, b = torch.cat([torch.zeros_like(w), w]), torch.cat([torch.zeros_like(b), b])
    head = nn.Linear(d, len(w), device="meta")  # without drawing weights
    head.load_state_dict({"weight": w, "bias": b}, assign=True)
    return head
