"""The learned variant of Alpha-Mix: alpha is optimised for each row and anchor (Parvaneh et al. 2022, Eq. 5)."""

import torch
from torch import Tensor, nn

from dm2_fast import draws, extras
from dm2_fast.round import Round

LEARNING_RATES = (0.1, 0.1, 0.1, 0.1, 0.01)
_PENALTY, _LEAST, _ADAM_EPSILON = 0.01, 1e-8, 1e-8
_ROWS = 1024  # in work at once; part of the result's last bits, so it never changes with the machine


def start(round: Round, features: Tensor) -> Tensor:
    """Standard normal numbers (m, d), keyed by row and feature, that every cap's first alpha is made from."""
    with extras.needed("strategies", "alpha-mix with alpha='learned'"):
        from scipy.special import ndtri

    m, d = features.shape
    cells = (round.ids[:, None] * d + torch.arange(d).numpy()).ravel()
    uniform = draws.uniform(round.seed, round.round, cells, "alpha").reshape(m, d)
    return torch.from_numpy(ndtri(uniform)).to(features.device, torch.float32)


def learned_flips(features: Tensor, head: nn.Linear, anchors: Tensor, cap: float, noise: Tensor) -> Tensor:
    """Whether an alpha that was looked at changes the prediction of each row, (m,) bool.

    For each anchor a, alpha in [1e-8, cap]^d starts at cap / 2 * (1 + noise). In each of five steps the prediction of
    `(1 - alpha) * u + alpha * a` is compared with that of u; then alpha follows the gradient of
    `-cross_entropy(prediction of u) + 0.01 * alpha.norm()` by one step of a new Adam (rates 0.1, and 0.01 in the last),
    which is nearly its sign, and is clamped. As in the authors' code, what the last step leads to is not looked at.

    Args:
        features: u, (m, d).
        head: The linear head.
        anchors: (C, d).
        cap: In (0, 1].
        noise: (m, d), see `start`.
    """
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    flips = []
    for u, drawn in zip(torch.split(features, _ROWS), torch.split(noise, _ROWS), strict=True):
        u = u.to(weight.dtype)
        drawn = drawn.to(weight.dtype)
        predicted = nn.functional.linear(u, weight, bias).argmax(1)
        flipped = torch.zeros(len(u), dtype=torch.bool, device=u.device)
        for anchor in anchors.to(weight.dtype):
            alpha = (cap / 2 * (1 + drawn)).clamp(_LEAST, cap)
            for i, rate in enumerate(LEARNING_RATES):
                logits = nn.functional.linear(u + alpha * (anchor - u), weight, bias)
                flipped |= logits.argmax(1) != predicted
                if i + 1 < len(LEARNING_RATES):
                    p = logits.softmax(1)
                    p[torch.arange(len(p), device=p.device), predicted] -= 1
                    gradient = _PENALTY * alpha / alpha.norm(dim=1, keepdim=True) - (anchor - u) * (p @ weight)
                    alpha = (alpha - rate * gradient / (gradient.abs() + _ADAM_EPSILON)).clamp(_LEAST, cap)
        flips.append(flipped)
    return torch.cat(flips)
