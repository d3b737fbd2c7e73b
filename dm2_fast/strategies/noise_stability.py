"""NoiseStability: the samples whose predictions noise on the weights changes most and diversely (Li et al. 2024)."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.model.head import model_device
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.preparation import full_precision
from dm2_fast.operations.arguments import number, one_of, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategy import Pass, Strategy
from dm2_fast.threads import guarding


@dataclass(frozen=True)
class NoiseStabilityConfig:
    """Options of noise-stability.

    Args:
        passes: Noisy networks.
        scale: Length of the noise, relative to that of the weights.
        noise: What has noise of this relative length: module = each module's weight on its own (biases have none);
            global = all parameters together, in one direction.
    """

    passes: int = 30
    scale: float = 1e-3
    noise: Literal["module", "global"] = "module"

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", whole("passes", self.passes, 1))
        number("scale", self.scale, "positive and finite", lambda value: value > 0)
        one_of("noise", self.noise, get_args(NoiseStabilityConfig.__annotations__["noise"]))


def choose(round: Round, budget: int, options: NoiseStabilityConfig) -> Picked:
    """Choose the row whose deviation is farthest from zero and from those of the rows chosen before, budget times.

    Noise per module is the default, as in the authors' code: it follows the scale of each layer, which a ReLU network
    can shift from one layer to the next without a change in what it computes. Noise in one direction over all
    parameters is the same for each of them, too much for layers of small weights and little for those of large ones.

    Raises:
        ValueError: no parameter can have noise.
    """
    x = noise(round, options)
    with round.stage("choose"):
        indices = k_center_greedy(x, budget, x.square().sum(1), **round.forward.compute)
    return Picked(indices, None)


def noise(round: Round, options: NoiseStabilityConfig) -> Tensor:
    """The `deviations` of the round's pool, computed once."""
    round.check_model()
    round.one_class()
    return round.once("noise", options, lambda: deviations(round.forward, options, round.seed, round.round))


def deviations(forward: ForwardPass, options: NoiseStabilityConfig, seed: int = 0, round: int = 0) -> Tensor:
    """How each row's softmax changes under noise, (m, passes * C).

    Specifically, with p the softmax of the model and p_t that of noisy network t, this computes
        torch.cat([(p_t - p) / p.norm(dim=1, keepdim=True) for t in range(passes)], 1)
    in the precision of the model, but at least float32 without TF32. Noise is drawn for a copy of the model, keyed by
    (seed, round, t, position of the parameter).
    """
    with guarding(model_device(forward.model)):  # other calls may have hooked it
        model = copy.deepcopy(forward.model)
    if next((p.dtype.itemsize for p in model.parameters() if p.is_floating_point()), 4) < 4:
        model.float()
    weights = _perturbed(model, options.noise)
    if not weights:
        raise ValueError(
            f"the model has no parameters that noise={options.noise!r} can change: choose another strategy"
        )
    originals = [weight.detach().clone() for weight in weights]

    def softmax() -> Tensor:
        return forward.through(model).logits().softmax(1)

    with _no_tf32(model_device(model).type):
        p = softmax()
        m, classes = p.shape
        x = torch.empty(m, options.passes * classes, dtype=p.dtype, device=p.device)
        for t, columns in enumerate(torch.split(x, classes, dim=1)):
            added = _noise(originals, options, seed, round, t)
            for weight, original, direction in zip(weights, originals, added, strict=True):
                weight.data.copy_(original + direction)
            columns.copy_((softmax() - p) / p.norm(dim=1, keepdim=True))
    return x


def _perturbed(model: nn.Module, noise: str) -> list[nn.Parameter]:
    """What is perturbed: the `weight` of every module, BatchNorm's included; or every parameter."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
    return [weight for name, weight in named if noise == "global" or name.rpartition(".")[2] == "weight"]


def _noise(
    originals: list[Tensor], options: NoiseStabilityConfig, seed: int, round: int, number: int
) -> Iterator[Tensor]:
    """Gaussian directions, rescaled to scale times the length of what they are added to."""
    drawn = []
    for position, weight in enumerate(originals):
        generator = draws.generator(seed, round, "noise", number, position)
        drawn.append(torch.from_numpy(generator.standard_normal(weight.shape, "float32")).to(weight))
    lengths = torch.stack([weight.double().norm() for weight in originals])
    drawn_lengths = torch.stack([normal.double().norm() for normal in drawn])
    if options.noise == "global":
        lengths, drawn_lengths = lengths.norm().expand(len(drawn)), drawn_lengths.norm().expand(len(drawn))
    for normal, factor in zip(drawn, options.scale * lengths / drawn_lengths, strict=True):
        yield normal * factor.to(normal.dtype)


@contextmanager
def _no_tf32(device: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    with full_precision(device):
        if before == "highest":  # nothing to change for the whole process
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


NOISE = Pass("noise", noise)
STRATEGY = Strategy("noise-stability", choose, NoiseStabilityConfig, passes=(NOISE,))
