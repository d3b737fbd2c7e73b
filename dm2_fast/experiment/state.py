"""What a run knows between two steps, and the checkpoints that keep it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dm2_fast.experiment.folder import checkpoint
from dm2_fast.experiment.training import Evaluation
from dm2_fast.experiment.twins import Twins


@dataclass(frozen=True)
class RoundResult:
    """One training and what it reached: a line of rounds.csv.

    Attributes:
        round: 0 for the training on the initial labels.
        labelled: Size of the labelled set.
        evaluation: Accuracy, accuracy under FGSM and loss on the test set.
        epsilon: FGSM step of the newest twins in this training; None without adversarial training.
        seconds: Wall time of each stage, the selection after this training included.
    """

    round: int
    labelled: int
    evaluation: Evaluation
    epsilon: float | None
    seconds: dict[str, float]


@dataclass
class State:
    """A run between two steps.

    Attributes:
        chosen: Rows of the training set; entry r holds those asked for before training r, in order of choice.
        scores: The scores that they were chosen by; None where the strategy has none.
        skipped: Rows that the oracle did not want to label; they are not asked for again.
        remembered: What the strategy keeps from one round to the next.
        labels: Their labels; an entry less than `chosen` while the oracle has not answered.
        twins: Adversarial twins of the chosen rows.
        results: One entry per training.
    """

    chosen: list[Tensor]
    scores: list[Tensor | None]
    labels: list[Tensor] = field(default_factory=list)
    twins: Twins = field(default_factory=Twins)
    results: list[RoundResult] = field(default_factory=list)
    skipped: list[Tensor] = field(default_factory=list)
    remembered: dict[str, Any] = field(default_factory=dict)

    def answer(self, labels: Tensor) -> None:
        """Keep the labels of the rows that were asked for; those labelled -1 are skipped."""
        keep = labels >= 0
        if not bool(keep.all()):
            self.skipped.append(self.chosen[-1][~keep])
            self.chosen[-1] = self.chosen[-1][keep]
            scores = self.scores[-1]
            self.scores[-1] = None if scores is None else scores[keep]
            if self.twins.newest:
                self.twins.keep(keep)
        self.labels.append(labels[keep])

    @property
    def finished(self) -> bool:
        """Whether the last training was a run's last, after which nothing is chosen."""
        return len(self.results) == len(self.chosen)

    @property
    def waiting(self) -> bool:
        """Whether the oracle has been asked and has not answered."""
        return len(self.labels) < len(self.chosen)


def save_state(folder: Path, state: State) -> None:
    """Write the state after the newest training; the one before it is kept, older ones are removed."""
    folder.mkdir(exist_ok=True)
    content = vars(state) | {
        "twins": vars(state.twins),
        "results": [vars(result) | {"evaluation": vars(result.evaluation)} for result in state.results],
    }
    checkpoint.write(_file(folder, len(state.results)), content)
    remove_older(folder, state)


def remove_older(folder: Path, state: State) -> None:
    """Remove all states but this one and the one before it."""
    for old in folder.glob("after_*.pt"):
        if old not in (_file(folder, len(state.results)), _file(folder, len(state.results) - 1)):
            old.unlink()


def newest_state(folder: Path, trainings: int | None = None) -> State | None:
    """Read the newest state of at most so many trainings; damaged files are named in a warning and passed over.

    Raises:
        ValueError: a file was written by a newer version.
    """
    for path in sorted(folder.glob("after_*.pt"), reverse=True):
        if trainings is not None and path > _file(folder, trainings):
            continue
        content = checkpoint.read(path)
        if content is not None:
            results = [RoundResult(**r | {"evaluation": Evaluation(**r["evaluation"])}) for r in content["results"]]
            return State(**content | {"twins": Twins(**content["twins"]), "results": results})
    return None


def _file(folder: Path, trainings: int) -> Path:
    return folder / f"after_{trainings:03d}.pt"
