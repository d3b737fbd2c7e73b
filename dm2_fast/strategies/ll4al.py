"""LL4AL: the samples with the largest loss, as a module beside the network expects it (Yoo and Kweon 2019)."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import threads
from dm2_fast.model.blocks import block_widths, find_blocks, position_means
from dm2_fast.model.head import check_labels, evaluating, model_device
from dm2_fast.operations.arguments import number, whole
from dm2_fast.round import Picked, Round
from dm2_fast.strategies.batch import Batch, check_batch, choose_batch
from dm2_fast.strategy import FEATURES, Pass, Strategy
from dm2_fast.training_part import TrainingStep, no_pool, shuffled_batches, train_alone

WIDTH = 128  # units behind each block
_BATCH, _LR = 64, 1e-3  # of a training in a call


@dataclass(frozen=True)
class LL4ALConfig:
    """Options of ll4al; the defaults are the authors'.

    Args:
        blocks: Names of the network's modules that the loss is told from; null finds the last at each size of its maps.
        margin: How much two expected losses should differ.
        weight: Weight of the module's loss beside that of the network.
        attached: The part of the epochs in which its gradient reaches the network.
        epochs: Passes over the labelled set where the module is trained in a call of select, beside a network that is
            trained already.
        batch: The highest scores, or kmeans = the rows nearest to the centres of a k-means over ten times as many.
    """

    blocks: list[str] | None = None
    margin: float = 1.0
    weight: float = 1.0
    attached: float = 0.6
    epochs: int = 200
    batch: Batch = "highest"

    def __post_init__(self) -> None:
        check_batch(self.batch)
        number("margin", self.margin, "positive and finite", lambda value: value > 0)
        number("weight", self.weight, "positive and finite", lambda value: value > 0)
        number("attached", self.attached, "in [0, 1]", lambda value: 0 <= value <= 1)
        object.__setattr__(self, "epochs", whole("epochs", self.epochs, 1))


class LossModule(nn.Module):
    """Expects the loss of a sample from what the network's blocks return: means over positions, a layer for each, one
    for all."""

    def __init__(self, names: tuple[str, ...], widths: list[int], options: LL4ALConfig) -> None:
        super().__init__()
        self.reads, self.options = names, options
        self.layers = nn.ModuleList(nn.Linear(width, WIDTH) for width in widths)
        self.last = nn.Linear(WIDTH * len(widths), 1)

    def forward(self, outputs: list[Tensor]) -> Tensor:
        """The expected losses, (n,)."""
        hidden = [layer(position_means(output)).relu() for layer, output in zip(self.layers, outputs, strict=True)]
        return self.last(torch.cat(hidden, 1))[:, 0]  # type: ignore[no-any-return]

    def loss(self, step: TrainingStep) -> Tensor:
        """The ranking loss, whose gradient does not reach the network from `attached` of the epochs on."""
        outputs = [step.outputs[name] for name in self.reads]
        if step.epoch >= self.options.attached * step.epochs:
            outputs = [output.detach() for output in outputs]
        true = F.cross_entropy(step.logits.detach(), step.labels, reduction="none")
        return self.options.weight * ranking_loss(self(outputs), true, self.options.margin)


def ranking_loss(expected: Tensor, true: Tensor, margin: float) -> Tensor:
    """How far expected losses (n,) are from ranking the first with the last, the second with the last but one, and so
    on, as the true losses do: the mean of `(margin - sign(true_i - true_j) * (expected_i - expected_j)).clamp(min=0)`.
    The middle one of an odd number has no partner. Zero where there is no pair.
    """
    half = len(expected) // 2
    if half == 0:
        return expected.sum() * 0
    sign = (true - true.flip(0))[:half].sign()
    return (margin - sign * (expected - expected.flip(0))[:half]).clamp(min=0).mean()


def part(model: nn.Module, samples: Tensor, options: LL4ALConfig) -> LossModule:
    """The module that is trained beside a network, made for what its blocks return for these samples."""
    names = tuple(options.blocks or find_blocks(model, samples))
    return LossModule(names, block_widths(model, names, samples), options)


def choose(round: Round, budget: int, options: LL4ALConfig) -> Picked:
    """Choose the budget rows with the largest expected loss.

    A run trains the module together with the network, in whose training it has a part. In a call of select it is
    trained beside the network as that is, by Adam (lr 1e-3, batches of 64), with a warning.

    Raises:
        TypeError: the model is a plain function.
        ValueError: it has no such blocks, or, in a call, there is no labelled set with its labels.
    """
    scores = expected_losses(round, options)
    with round.stage("choose"):
        return Picked(choose_batch(round, scores, budget, options.batch), scores)


def trained(round: Round, options: LL4ALConfig) -> LossModule:
    """The module of the run, or one that is trained now, beside the network as it is."""
    round.one_class()
    model = round.module("ll4al")

    def run(seed: int) -> LossModule:
        if round.labels is None:
            raise ValueError("this strategy learns the loss of labelled samples: pass labels= with their classes")
        over_labelled, labels = round.over_labelled, round.labels
        logits, device = over_labelled.logits(), model_device(model)
        check_labels(round.labels, logits.shape[1])
        with threads.seeded(seed, device):
            module = part(model, round.forward.first_rows(), options).to(device)  # type: ignore[arg-type]
        means = round.block_means(module.reads, labelled=True)
        warnings.warn(
            f"ll4al trains its loss module in this call, {options.epochs} passes over {len(labels)} labelled samples "
            "beside the finished network; dm2-fast run trains both together",
            stacklevel=2,
        )

        def steps(generator: torch.Generator) -> Iterator[TrainingStep]:
            for epoch, rows in shuffled_batches(len(labels), _BATCH, options.epochs, generator):
                outputs = {name: mean[rows] for name, mean in zip(module.reads, means, strict=True)}
                inputs, y = over_labelled.take(rows), labels[rows].to(logits.device)
                yield TrainingStep(epoch, options.epochs, inputs, y, logits[rows], no_pool, outputs)  # type: ignore[arg-type]

        return train_alone(module, steps, _LR, seed)  # type: ignore[return-value]

    return round.trained_part("loss-module", repr(replace(options, batch="highest")), run)  # type: ignore[return-value]


def expected_losses(round: Round, options: LL4ALConfig) -> Tensor:
    """The loss that the module expects of each row, (m,)."""
    module = trained(round, options)
    with evaluating(module):
        return module(round.block_means(module.reads))  # type: ignore[no-any-return]


TRAINING = Pass("loss-module", trained)
BLOCKS = Pass("blocks", lambda round, options: round.block_means(trained(round, options).reads))
STRATEGY = Strategy("ll4al", choose, LL4ALConfig, passes=(TRAINING, BLOCKS, FEATURES), part=part)
