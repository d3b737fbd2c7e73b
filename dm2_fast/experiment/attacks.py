"""What a trained model withstands: its accuracy under PGD, and under AutoAttack where that is asked for."""

import logging
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dm2_fast import extras
from dm2_fast.adversarial import fgsm, pgd, to_pixels
from dm2_fast.model.head import evaluating, model_device
from dm2_fast.operations.mix import Normalize, channel_statistics

STEPS = 20
_OVERFITTED = 0.1


def accuracies_under_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    normalize: Normalize,
    epsilon: float,
    attack: Literal["pgd", "autoattack"] = "pgd",
    batch_size: int = 256,
    *,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Accuracy under 20 steps of PGD, `accuracy_pgd`, and for attack="autoattack" also `accuracy_autoattack`.

    Warns where the accuracy under FGSM is ten points higher than that under PGD: the model has then learned to look
    good under one step (catastrophic overfitting; Kim et al. 2021), and its accuracy under FGSM says nothing.

    Raises:
        MissingExtra: the package of AutoAttack is not installed.
    """
    options: dict[str, Any] = {"normalize": normalize, "batch_size": batch_size, "progress": progress}
    step, many = fgsm(model, x, y, epsilon, **options), pgd(model, x, y, epsilon, steps=STEPS, seed=seed, **options)
    under_fgsm, under_pgd = (_accuracy(model, images, y, normalize, batch_size) for images in (step, many))
    if under_fgsm - under_pgd > _OVERFITTED:
        warnings.warn(
            f"of {len(x)} test samples, {under_fgsm:.0%} are right under FGSM but {under_pgd:.0%} under PGD: the model "
            "has learned to look good under one step (catastrophic overfitting); judge it by PGD",
            stacklevel=2,
        )
    found = {"accuracy_pgd": under_pgd}
    if attack == "autoattack":
        found["accuracy_autoattack"] = _under_autoattack(model, x, y, normalize, epsilon, batch_size, seed)
    return found


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, normalize: Normalize, batch_size: int) -> float:
    network = _OfPixels(model, normalize, x.shape[1])
    right = 0
    with evaluating(model), torch.no_grad():
        for images, labels in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
            right += int((network(images.to(network.mean.device)).argmax(1).cpu() == labels).sum())
    return right / len(x)


class _OfPixels(nn.Module):
    """A model of normalised inputs as one of pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, normalize: Normalize, channels: int) -> None:
        super().__init__()
        self.model = model
        device = model_device(model)
        for name, values in zip(("mean", "std"), channel_statistics(normalize, channels), strict=True):
            self.register_buffer(name, values.to(device, torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def _under_autoattack(
    model: nn.Module, x: Tensor, y: Tensor, normalize: Normalize, epsilon: float, batch_size: int, seed: int
) -> float:
    """Accuracy under the standard AutoAttack (Croce and Hein 2020) within epsilon in every pixel."""
    with extras.needed("robust", "--attack autoattack"):
        from pyautoattack import AutoAttack

    network = _OfPixels(model, normalize, x.shape[1])
    device = network.mean.device
    images, labels = to_pixels(x).contiguous().to(device), y.to(device)
    level = logging.getLogger("auto-attack").level
    with evaluating(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        logging.getLogger("auto-attack").setLevel(logging.WARNING)
        try:
            attack = AutoAttack(network, eps=epsilon, norm="Linf", seed=seed, device=device, version="standard")
            adversarial, *_ = attack.run_standard_evaluation(images, labels, batch_size=batch_size)
        finally:
            logging.getLogger("auto-attack").setLevel(level)
    return _accuracy(model, adversarial.detach().cpu(), y, normalize, batch_size)
