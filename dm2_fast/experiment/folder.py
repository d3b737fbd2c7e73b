"""The folder that a run leaves behind: config.yaml, rounds.csv, selected.csv, curve.png and a contact sheet a round."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from dm2_fast.acquire import DM2Config, Picked
from dm2_fast.experiment.config import RunConfig, identity, to_dict
from dm2_fast.experiment.data import Data
from dm2_fast.experiment.training import Evaluation
from dm2_fast.mixing import mix, recipe
from dm2_fast.strategies import Round

STAGES = (
    "train", "evaluate", "logits", "features", "labelled", "dropout", "noise",
    "neighbours", "mixed", "choose", "perturb",
)  # fmt: skip
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
        file = self.path / f"round_{round:02d}.png"
        pool = torch.as_tensor(state.forward.inputs)
        rows = picked.indices.cpu()
        labels = data.y[torch.as_tensor(state.ids)]
        if picked.neighbours is None or picked.distances is None or picked.neighbours.shape[1] == 0:
            rows = rows[:40]
            titles = [data.classes[label] for label in labels[rows].tolist()]
            grid = [pool[part] for part in torch.split(rows, 8)]
            _draw(file, grid, [titles[i : i + 8] for i in range(0, len(titles), 8)], f"round {round}: chosen samples")
            return
        rows = rows[:12]
        neighbours = picked.neighbours.cpu()
        mixture = recipe(
            picked.distances.cpu(), neighbours, options.mix, options.lam, options.alpha,
            seed=state.seed, round=state.round, row_ids=state.ids,
        )  # fmt: skip
        weights = None if mixture.weights is None else mixture.weights[rows]
        mixed = mix(pool, mixture.indices[rows], mixture.lam[rows], weights=weights, rows=rows)
        grid, titles = [], []
        for i, row in enumerate(rows.tolist()):
            near = neighbours[row, :8]
            pixels = torch.cat([pool[row][None], pool[near]])
            grid.append(torch.cat([pixels[:1], (mixed[i : i + 1] * 255).round().to(torch.uint8), pixels[1:]]))
            score = "" if picked.scores is None else f"score {picked.scores[row].item():.3f}"
            titles.append([data.classes[labels[row]], score, *(data.classes[label] for label in labels[near].tolist())])
        _draw(file, grid, titles, f"round {round}: chosen | mixed with its neighbours | neighbours, nearest first")


def _draw(file: Path, grid: Sequence[Tensor], titles: Sequence[Sequence[str]], heading: str) -> None:
    """Draw lines of (n, C, H, W) uint8 images with a title above each, as one picture."""
    size, gap = 64, 18
    columns = max(len(line) for line in grid)
    canvas = np.full((len(grid) * (size + gap), columns * (size + 6), 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / 72, canvas.shape[0] / 72 + 0.35), dpi=144)
    axes = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    for i, line in enumerate(grid):
        for j, image in enumerate(line):
            pixels = image.permute(1, 2, 0).numpy()
            height, width = pixels.shape[:2]
            enlarged = pixels[np.arange(size) * height // size][:, np.arange(size) * width // size]
            top, left = i * (size + gap) + gap, j * (size + 6) + 3
            canvas[top : top + size, left : left + size] = enlarged
            axes.text(left + size / 2, top - 4, titles[i][j], ha="center", va="bottom", fontsize=7)
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.axis("off")
    figure.text(0.5, 1 - 0.1 / figure.get_figheight(), heading, ha="center", va="top", fontsize=9)
    figure.savefig(file)
