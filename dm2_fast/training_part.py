"""What a strategy trains beside the network: its part in a training, and its training alone, beside a finished one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from dm2_fast import threads


@dataclass(frozen=True)
class TrainingStep:
    """One step of a training, as a strategy's part in it sees it.

    Attributes:
        epoch, epochs: Passes over the labelled set before this one, and in all.
        inputs: The samples of the step, (n, ...), as the network took them: augmented, normalised, on its device.
        labels: Their classes, (n,) int64.
        logits: What the network returned, (n, C), with its graph.
        unlabelled: Called with a number, draws so many samples of the unlabelled pool, as the network would take them.
        outputs: What the modules that the part `reads` returned in this step, (n, ...) each, with their graph.
        left: Samples of the unlabelled pool.
    """

    epoch: int
    epochs: int
    inputs: Tensor
    labels: Tensor
    logits: Tensor
    unlabelled: Callable[[int], Tensor]
    outputs: dict[str, Tensor] = field(default_factory=dict)
    left: int = 0


class TrainingPart(Protocol):
    """An `nn.Module` that is trained beside the network: its parameters join those of the run's optimizer, and its
    state dict the checkpoints. Optimizers of its own belong into `get_extra_state` and `set_extra_state`. With an
    attribute `reads`, the names of modules of the network, a step has what these returned."""

    def loss(self, step: TrainingStep) -> Tensor:
        """What is added to the network's loss in this step."""
        ...


def no_pool(number: int) -> Tensor:
    """Stands for the unlabelled samples of a step that has none.

    Raises:
        ValueError: always.
    """
    raise ValueError("this training has no unlabelled samples")


def train_alone(
    part: nn.Module, steps: Callable[[torch.Generator], Iterator[TrainingStep]], lr: float, seed: int
) -> nn.Module:
    """Train a part beside a network that is trained already, by Adam, and return it in eval mode.

    Args:
        part: A `TrainingPart`.
        steps: The steps of its training, made with a generator for their draws.
        lr: Learning rate of Adam.
        seed: Key of the generator and of everything else that is random.
    """
    device = next(part.parameters()).device
    optimizer = torch.optim.Adam(part.parameters(), lr)
    with threads.seeded(seed, device), torch.enable_grad():
        part.train()
        for step in steps(torch.Generator().manual_seed(seed)):
            loss = cast(TrainingPart, part).loss(step)
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
                optimizer.step()
    return part.eval()


def shuffled_batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[tuple[int, Tensor]]:
    """(epoch, rows) of every step of so many passes over n rows, each in an order of its own."""
    for epoch in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(batch_size):
            yield epoch, rows
