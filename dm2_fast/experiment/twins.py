"""Adversarial twins of the chosen samples (Algorithm 2), and the training that uses them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dm2_fast import draws
from dm2_fast.adversarial import fgsm
from dm2_fast.experiment.config import RunConfig
from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.folder.checkpoint import TrainingFile
from dm2_fast.experiment.training import Labelled, evaluate, train

SEARCHED_EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


@dataclass
class Twins:
    """The twins made so far.

    Attributes:
        rows, images: Rows of the training set and their adversarial images, one entry per round.
        newest: Images of the last chosen rows for each epsilon that is still to be decided between.
    """

    rows: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    newest: dict[float, Tensor] = field(default_factory=dict)

    def add(self, model: nn.Module, rows: Tensor, data: Data, config: RunConfig) -> None:
        """Perturb the rows just chosen with the model that chose them (Algorithm 2, lines 9-12)."""
        x = data.x[rows]
        y = data.y[rows] if config.adversarial.label == "true" else None
        size = config.eval_batch_size
        self.rows.append(rows)
        self.newest = {
            epsilon: fgsm(model, x, y, epsilon, normalize=data.normalize, batch_size=size, progress=True)
            for epsilon in _epsilons(config)
        }

    def labelled(self, chosen: Tensor, data: Data, epsilon: float | None) -> Labelled:
        """The labelled set with its twins, the newest of them made with epsilon."""
        images = [*self.images, *([] if epsilon is None else [self.newest[epsilon]])]
        if not images:
            nobody = torch.empty(0, *data.x.shape[1:]), torch.empty(0, dtype=torch.int64)
            return Labelled(data.x[chosen], data.y[chosen], *nobody)
        position = torch.full((len(data.x),), -1)
        position[chosen] = torch.arange(len(chosen))
        return Labelled(data.x[chosen], data.y[chosen], torch.cat(images), position[torch.cat(self.rows)])

    def keep(self, keep: Tensor) -> None:
        """Keep some of the newest twins, (n,) bool."""
        self.rows[-1] = self.rows[-1][keep]
        self.newest = {epsilon: images[keep] for epsilon, images in self.newest.items()}

    def settle(self, epsilon: float) -> None:
        """Keep the newest twins that were made with epsilon."""
        self.images.append(self.newest[epsilon])
        self.newest = {}


def train_round(
    fresh: Callable[[], tuple[nn.Module, nn.Module | None]],
    chosen: Tensor,
    unlabelled: Tensor,
    twins: Twins,
    data: Data,
    config: RunConfig,
    round: int,
    file: TrainingFile,
) -> tuple[nn.Module, nn.Module | None, float | None]:
    """Train a fresh model on the chosen rows, with the strategy's part, if it has one.

    Args:
        fresh: Makes the model and the part.
        chosen, unlabelled: Rows of the training set.
        file: Keeps the training that goes on.

    Returns:
        The model, the part, and the epsilon of its adversarial training, if any.
    """
    every_step = config.adversarial.train == "step"
    candidates = _epsilons(config) if every_step else tuple(twins.newest)

    def trained(epsilon: float | None, rows: Tensor | None = None) -> tuple[nn.Module, nn.Module | None]:
        labelled = twins.labelled(chosen, data, None if every_step else epsilon)
        model, part = fresh()
        train(
            model,
            labelled if rows is None else labelled.subset(rows),
            config.training,
            data.normalize,
            config.seed,
            adversarial=config.adversarial,
            step_epsilon=epsilon if every_step else None,
            part=part,
            unlabelled=None if part is None else data.x[unlabelled],
            file=file.of(f"round {round}, epsilon {epsilon}, {len(labelled) if rows is None else len(rows)} rows"),
            progress=True,
            prepare=config.prepare,
        )
        return model, part

    if not candidates:
        return *trained(None), None
    epsilon = candidates[0]
    if len(candidates) > 1:
        epsilon = _search(trained, candidates, chosen, data, config, round)
    model, part = trained(epsilon)
    if not every_step:
        twins.settle(epsilon)
    return model, part, epsilon


def train_companions(
    fresh: Callable[[int], nn.Module],
    number: int,
    chosen: Tensor,
    twins: Twins,
    data: Data,
    config: RunConfig,
    round: int,
    epsilon: float | None,
    file: TrainingFile,
) -> list[nn.Module]:
    """Train more networks on what the model of the round was trained on, each with a seed of its own.

    Args:
        fresh: Makes a network from a seed.
        number: How many.
        epsilon: That of the round's adversarial training.
        file: Keeps the training of the model; each companion has one beside it.
    """
    companions = []
    labelled = twins.labelled(chosen, data, None)
    for i in range(number):
        seed = int(draws.generator(config.seed, 0, "companion", i).integers(2**31))
        companion = fresh(seed)
        train(
            companion,
            labelled,
            config.training,
            data.normalize,
            seed,
            adversarial=config.adversarial,
            step_epsilon=epsilon if config.adversarial.train == "step" else None,
            file=file.beside(i + 1).of(f"round {round}, companion {i + 1}, {len(labelled)} rows"),
            progress=True,
            prepare=config.prepare,
        )
        companions.append(companion)
    return companions


def _epsilons(config: RunConfig) -> tuple[float, ...]:
    epsilon = config.adversarial.epsilon
    return SEARCHED_EPSILONS if epsilon == "search" else (epsilon,)


def _search(
    trained: Callable[[float, Tensor], tuple[nn.Module, nn.Module | None]],
    candidates: Sequence[float],
    chosen: Tensor,
    data: Data,
    config: RunConfig,
    round: int,
) -> float:
    """The epsilon whose training is most accurate under FGSM on a held-out tenth of the labelled set.

    All are attacked with the same eval_epsilon; ties go to the smaller epsilon. The test set is never looked at.
    """
    order = torch.from_numpy(draws.uniform(config.seed, round, chosen.numpy(), "held-out")).argsort(stable=True)
    held_out, rest = order[: max(1, len(order) // 10)], order[max(1, len(order) // 10) :].sort().values
    rows = chosen[held_out]
    accuracy = []
    for epsilon in candidates:
        model, _ = trained(epsilon, rest)
        x, y = data.x[rows], data.y[rows]
        size, prepare = config.eval_batch_size, config.prepare
        evaluation = evaluate(model, x, y, data.normalize, config.eval_epsilon, size, prepare=prepare)
        accuracy.append(evaluation.accuracy_fgsm)
    return candidates[accuracy.index(max(accuracy))]
