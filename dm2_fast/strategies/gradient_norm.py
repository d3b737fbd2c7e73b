"""How long the gradients are that losses of a sample's own prediction cause: what ent-gn and exp-gn score by."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dm2_fast.round import Round

Layers = Literal["all", "last"]

_BLOCK = 2**22  # elements of the slopes that are there at once


def entropy_slope(logits: Tensor) -> Tensor:
    """The derivative of the entropy of the softmax p in the logits, `-p * (log(p) + entropy)`; (..., 1, C) float64."""
    logarithm = logits.double().log_softmax(-1)
    p = logarithm.exp()
    return (-p * (logarithm - (p * logarithm).sum(-1, keepdim=True)))[..., None, :]


def label_slopes(logits: Tensor) -> Tensor:
    """The derivatives of the cross-entropy in the logits for each class as the label, `p - onehot`; (..., C, C)."""
    p = logits.double().softmax(-1)
    return p[..., None, :] - torch.eye(logits.shape[-1], dtype=p.dtype, device=p.device)


def gradient_norms(round: Round, who: str, layers: Layers, slopes: Callable[[Tensor], Tensor]) -> Tensor:
    """The norms of the gradients of each row's losses, summed over the parameter tensors; (m, L) float64.

    Args:
        round: The round, which keeps them as `entropy_slope` or `label_slopes`.
        who: The strategy, as an error names it.
        layers: all = every parameter; last = weight and bias of the head, whose gradients are `s[:, None] * f` and `s`.
        slopes: From logits (..., C) to the derivatives s of L losses in them, (..., L, C).

    Raises:
        TypeError: the model is a plain function.
        ValueError: layers is last, and the head is not linear.
    """
    round.one_class()
    round.module(who)
    if layers == "all":
        derivatives = round.derivatives()
        return round.once(slopes.__name__, None, lambda: derivatives.norms(lambda z: slopes(z).to(z.dtype)))
    if not isinstance(round.head, nn.Linear):
        raise ValueError(f"head must be a linear layer for layers='last', got {type(round.head).__name__}")
    features, logits = round.features.double(), round.logits
    size = max(1, _BLOCK // logits.shape[1] ** 2)
    lengths = torch.cat([slopes(part).norm(dim=-1) for part in logits.split(size)])
    norms: Tensor = lengths * (features.norm(dim=1) + (round.head.bias is not None))[:, None]
    return norms
