"""Probabilities where logits are meant: made into logits, and recognised."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dm2_fast.operations.arrays import as_tensor

_ROWS = 1024  # looked at first: they nearly always say that these are logits


def logits_of(probabilities: Any, *, multilabel: bool = False) -> Tensor:
    """Logits whose softmax are these probabilities, as those of `predict_proba`.

    Specifically, with p no smaller than the smallest normal number, this computes `p.log()`, or for multilabel
    `p.log() - (1 - p).log()`, whose sigmoid they then are.

    Args:
        probabilities: (n, C) floating point in [0, 1], each row with sum 1 unless multilabel; a tensor or an array.
        multilabel: Each column is a label of its own, which a sample has or has not.

    Returns:
        (n, C) logits, finite, in the dtype of probabilities.

    Raises:
        ValueError: they are not (n, C) probabilities.
        TypeError: they are not floating point.
    """
    p = as_tensor(probabilities if isinstance(probabilities, Tensor) else np.asanyarray(probabilities), "probabilities")
    if p.ndim != 2:
        hint = " (take the column of each label, as (n, C))" if p.ndim == 3 else ""
        raise ValueError(f"probabilities must be (n, C), got shape {tuple(p.shape)}{hint}")
    if not p.is_floating_point():
        raise TypeError(f"probabilities must be floating point, got {p.dtype}")
    wrong = torch.nonzero(~((p >= 0) & (p <= 1)).all(1))[:, 0]
    if len(wrong):
        row = wrong[0].item()
        raise ValueError(f"probabilities must be in [0, 1], got others in row {row}: are they logits already?")
    least = torch.finfo(p.dtype).tiny
    if multilabel:
        return p.clamp(min=least).log() - (1 - p).clamp(min=least).log()
    sums = p.double().sum(1)
    wrong = torch.nonzero((sums - 1).abs() > tolerance(p))[:, 0]
    if len(wrong):
        raise ValueError(
            f"probabilities must have sum 1 in each row, got {sums[wrong[0]].item():.6g} in row {wrong[0].item()}: "
            "pass multilabel=True where each column is a label of its own"
        )
    return p.clamp(min=least).log()


def refuse_probabilities(logits: Tensor, who: str) -> None:
    """Raise if what is meant as logits looks like probabilities: non-negative rows with sum 1.

    Raises:
        ValueError: they do.
    """
    if logits.ndim != 2 or len(logits) == 0 or not are_distributions(logits[:_ROWS]) or not are_distributions(logits):
        return
    raise ValueError(
        f"{who} look like probabilities, since every row is non-negative with sum 1: pass the values before the "
        "softmax, or dm2_fast.logits_of(probabilities); if they are logits nevertheless, pass these_are_logits=True"
    )


def are_distributions(values: Tensor) -> bool:
    """Whether every row is non-negative and has sum 1."""
    return bool((values >= 0).all()) and bool(((values.double().sum(1) - 1).abs() <= tolerance(values)).all())


def tolerance(values: Tensor) -> float:
    """How far a sum of so many rounded probabilities may be from 1."""
    return max(1e-4, 4.0 * math.sqrt(values.shape[1]) * torch.finfo(values.dtype).eps)
