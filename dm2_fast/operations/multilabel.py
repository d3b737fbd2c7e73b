"""The uncertainty of a model whose outputs are labels of their own, each with a sigmoid."""

from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dm2_fast.operations.arguments import shown

Over: TypeAlias = Literal["mean", "max"]

_ELEMENTS = 2**20  # in float64 at once


def check_over(over: str | None) -> None:
    """Raise unless this says how the uncertainties of a sample's labels become one."""
    if over is not None and not (isinstance(over, str) and over in get_args(Over)):
        names = ", ".join(get_args(Over))
        raise ValueError(f"multilabel must be one of {names}, or None for one class, got {shown(over)}")


def multilabel_uncertainty(logits: Tensor, kind: str, over: Over) -> Tensor:
    """The uncertainty of each label with its own sigmoid, and their mean or maximum per row.

    Specifically, with `p = logits.sigmoid()`, this computes `torch.minimum(p, 1 - p)` ("least-confidence"),
    `-(p * p.log() + (1 - p) * (1 - p).log())` ("entropy", in nats) or `-(2 * p - 1).abs()` ("margin"), in float64, and
    then `.mean(1)` or `.amax(1)`.

    Args:
        logits: (n, L), L >= 1, floating point.

    Returns:
        (n,) float32 (float64 for float64 logits); larger is more uncertain.
    """
    out = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
    step = max(1, _ELEMENTS // logits.shape[1])
    for start in range(0, len(logits), step):
        distance = logits[start : start + step].double().abs()  # of each logit to the boundary at 0
        least = torch.sigmoid(-distance)
        values = least
        if kind == "entropy":  # log(1 + exp(-z)) + z p, whose second term is 0 at infinity
            values = F.softplus(-distance) + (least * distance).nan_to_num(nan=0.0)
        elif kind == "margin":
            values = 2 * least - 1
        out[start : start + step] = values.mean(1) if over == "mean" else values.amax(1)
    return out.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
