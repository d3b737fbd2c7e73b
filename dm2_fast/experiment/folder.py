"""The folder that a run leaves behind: config.yaml, rounds.csv, selected.csv, curve.png and a contact sheet a round."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from dm2_fast.acquire import DM2Config, Picked
from dm2_fast.experiment.config import RunConfig, identity, to_dict
from dm2_fast.experiment.data import Data
from dm2_fast.experiment.sheet import draw_chosen
from dm2_fast.experiment.training import Evaluation
from dm2_fast.strategies import Round

STAGES = ("train", "evaluate", "logits", "features", "neighbours", "mixed", "choose", "perturb")
ROUND_COLUMNS = ("round", "labelled", "accuracy", "accuracy_fgsm", "loss", "epsilon", *(f"seconds_{s}" for s in STAGES))
SELECTED_COLUMNS = ("round", "order", "row", "score", "label")


@dataclass(frozen=True)
class RoundResult:
    """One training and what it reached: a line of rounds.csv.

    Attributes:
        round: 0 for the training on the initial labels.
        labelled: Size of the labelled set.
        evaluation: Accuracy, accuracy under FGSM and loss on the test set.
        epsilon: FGSM step of the newest twins in this training; None without adversarial training.
        seconds: Wall time of each stage of `STAGES`, the selection after this training included.
    """

    round: int
    labelled: int
    evaluation: Evaluation
    epsilon: float | None
    seconds: dict[str, float]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @classmethod
    def create(cls, config: RunConfig) -> "RunFolder":
        """Make the folder and write config.yaml; a folder of the same configuration is written anew.

        Raises:
            FileExistsError: the folder holds something else.
        """
        if config.output is None:
            raise ValueError("config must be resolved, got output=None")
        path, old = config.output, config.output / "config.yaml"
        if old.exists():
            before, now = identity(yaml.safe_load(old.read_text())), identity(to_dict(config))
            different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            if different:
                raise FileExistsError(
                    f"output must be a folder of the same configuration, got {path}, which differs in "
                    + "; ".join(f"{name} ({before.get(name)} there, {now.get(name)} here)" for name in different)
                )
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(f"output must be new, empty or the folder of a run, got {path}")
        path.mkdir(parents=True, exist_ok=True)
        for stale in path.glob("round_*.png"):
            stale.unlink()
        # Without its own place: repeated with other options, the run shall not land in this folder.
        old.write_text(yaml.safe_dump({**to_dict(config), "output": None}, sort_keys=False))
        folder = cls(path)
        for name, columns in (("rounds.csv", ROUND_COLUMNS), ("selected.csv", SELECTED_COLUMNS)):
            (path / name).write_text("")
            folder._append(name, [columns])
        return folder

    def _append(self, name: str, lines: Sequence[Sequence[Any]]) -> None:
        with (self.path / name).open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    def add_round(self, result: RoundResult) -> None:
        """Append a line to rounds.csv."""
        e = result.evaluation
        seconds = (f"{result.seconds[stage]:.3f}" if stage in result.seconds else "" for stage in STAGES)
        epsilon = "" if result.epsilon is None else f"{result.epsilon:.6f}"
        line = (result.round, result.labelled, f"{e.accuracy:.6f}", f"{e.accuracy_fgsm:.6f}", f"{e.loss:.6f}", epsilon)
        self._append("rounds.csv", [(*line, *seconds)])

    def add_selected(self, round: int, rows: Tensor, y: Tensor, picked: Picked | None = None) -> None:
        """Append the rows labelled before training `round` to selected.csv, in order of choice."""
        scores = [""] * len(rows)
        if picked is not None and picked.scores is not None:
            scores = [f"{score:.9g}" for score in picked.scores[picked.indices].tolist()]
        labels = y[rows].tolist()
        lines = [(round, i, row, scores[i], labels[i]) for i, row in enumerate(rows.tolist())]
        self._append("selected.csv", lines)

    def draw_curve(self, results: Sequence[RoundResult]) -> None:
        """Draw accuracy against labels as curve.png."""
        labelled = [result.labelled for result in results]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(labelled, [100 * r.evaluation.accuracy for r in results], "o-", color="#1b6ca8", label="clean")
        fgsm = [100 * r.evaluation.accuracy_fgsm for r in results]
        axes.plot(labelled, fgsm, "s--", color="#d1495b", label="under FGSM")
        axes.set(xlabel="labelled samples", ylabel="test accuracy (%)", title=self.path.name)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(self.path / "curve.png", dpi=120)

    def draw_sheet(self, round: int, data: Data, state: Round, picked: Picked, options: DM2Config) -> None:
        """Draw the first samples chosen as round_NN.png; beside each its mixed image and its neighbours, for DM2."""

        def names(rows: Tensor) -> list[str]:
            return [data.classes[label] for label in data.y[torch.as_tensor(state.ids)[rows]].tolist()]

        draw_chosen(self.path / f"round_{round:02d}.png", state, picked, options, names)
