"""The folder that a run leaves behind: config.yaml, rounds.csv, selected.csv, curve.png and a contact sheet a round."""

import csv
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from dm2_fast.experiment.files import remove_partial, replacing
from dm2_fast.experiment.state import RoundResult, State
from dm2_fast.mixing import mix, recipe
from dm2_fast.strategies import Round

STAGES = ("train", "evaluate", "logits", "features", "neighbours", "mixed", "choose", "perturb")
ROUND_COLUMNS = ("round", "labelled", "accuracy", "accuracy_fgsm", "loss", "epsilon", *(f"seconds_{s}" for s in STAGES))
SELECTED_COLUMNS = ("round", "order", "row", "score", "label")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @classmethod
    @contextmanager
    def open(cls, config: RunConfig) -> Iterator["RunFolder"]:
        """Make the folder, or enter that of an earlier run of the same configuration, and keep others out meanwhile.

        Raises:
            FileExistsError: the folder holds something else, or another process works in it.
        """
        if config.output is None:
            raise ValueError("config must be resolved, got output=None")
        path, file = config.output, config.output / "config.yaml"
        if path.exists() and not file.exists() and (not path.is_dir() or any(_visible(path))):
            raise FileExistsError(f"output must be new, empty or the folder of a run, got {path}")
        path.mkdir(parents=True, exist_ok=True)
        directory = os.open(path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError as error:
                raise FileExistsError(f"output must be free, got {path}, where another process is at work") from error
            if file.exists():
                _check_same(path, yaml.safe_load(file.read_text()), to_dict(config))
            else:
                # Without its own place: repeated with other options, the run shall not land in this folder.
                with replacing(file) as partial:
                    partial.write_text(yaml.safe_dump({**to_dict(config), "output": None}, sort_keys=False))
            for folder in (path, path / "checkpoints"):
                remove_partial(folder)
            yield cls(path)
        finally:
            os.close(directory)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The file of the last trained weights."""
        return self.path / "model.pt"

    def write_tables(self, state: State) -> None:
        """Write rounds.csv and selected.csv anew."""
        self._write("rounds.csv", [ROUND_COLUMNS, *(_round_line(result) for result in state.results)])
        lines: list[Sequence[Any]] = [SELECTED_COLUMNS]
        for r, (rows, labels) in enumerate(zip(state.chosen, state.labels, strict=False)):
            scores = state.scores[r]
            written = [""] * len(rows) if scores is None else [f"{score:.9g}" for score in scores.tolist()]
            lines += zip([r] * len(rows), range(len(rows)), rows.tolist(), written, labels.tolist(), strict=True)
        self._write("selected.csv", lines)

    def _write(self, name: str, lines: Sequence[Sequence[Any]]) -> None:
        with replacing(self.path / name) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    def draw_curve(self, results: Sequence[RoundResult], title: str) -> None:
        """Draw accuracy against labels as curve.png."""
        labelled = [result.labelled for result in results]
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(labelled, [100 * r.evaluation.accuracy for r in results], "o-", color="#1b6ca8", label="clean")
        fgsm = [100 * r.evaluation.accuracy_fgsm for r in results]
        axes.plot(labelled, fgsm, "s--", color="#d1495b", label="under FGSM")
        axes.set(xlabel="labelled samples", ylabel="test accuracy (%)", title=title)
        axes.title.set_fontsize(9)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        with replacing(self.path / "curve.png") as partial:
            figure.savefig(partial, dpi=120, format="png")

    def draw_sheet(self, round: int, data: Data, state: Round, picked: Picked, options: DM2Config) -> None:
        """Draw the first samples chosen as round_NN.png; beside each its mixed image and its neighbours, for DM2."""
        with replacing(self.path / f"round_{round:02d}.png") as partial:
            self._draw_sheet(partial, round, data, state, picked, options)

    def _draw_sheet(self, file: Path, round: int, data: Data, state: Round, picked: Picked, options: DM2Config) -> None:
        pool = torch.as_tensor(state.forward.inputs)
        rows = picked.indices.cpu()
        labels = data.y[torch.as_tensor(state.ids)]
        if picked.neighbours is None or picked.distances is None or picked.neighbours.shape[1] == 0:
            rows = rows[:40]
            titles = [_name(data, label) for label in labels[rows].tolist()]
            grid = [pool[part] for part in torch.split(rows, 8)]
            draw_images(
                file, grid, [titles[i : i + 8] for i in range(0, len(titles), 8)], f"round {round}: chosen samples"
            )
            return
        rows = rows[:12]
        neighbours = picked.neighbours.cpu()
        mixture = recipe(
            picked.distances.cpu(), neighbours, options.mix, options.lam, options.alpha,
            seed=state.seed, round=state.round, row_ids=state.ids,
        )  # fmt: skip
        weights = None if mixture.weights is None else mixture.weights[rows]
        mixed = mix(pool, mixture.indices[rows], mixture.lam[rows], weights=weights, rows=rows)
        grid, lines = [], []
        for i, row in enumerate(rows.tolist()):
            near = neighbours[row, :8]
            pixels = torch.cat([pool[row][None], pool[near]])
            grid.append(torch.cat([pixels[:1], (mixed[i : i + 1] * 255).round().to(torch.uint8), pixels[1:]]))
            score = "" if picked.scores is None else f"score {picked.scores[row].item():.3f}"
            names = [_name(data, label) for label in labels[[row, *near.tolist()]].tolist()]
            lines.append([names[0], score, *names[1:]])
        draw_images(file, grid, lines, f"round {round}: chosen | mixed with its neighbours | neighbours, nearest first")


def _visible(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if not file.name.startswith(".")]


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    before, now = identity(before), identity(now)
    different = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if different:
        raise FileExistsError(
            f"output must be a folder of the same configuration, got {path}, which differs in "
            + "; ".join(f"{name} ({before.get(name)} there, {now.get(name)} here)" for name in different)
        )


def _round_line(result: RoundResult) -> Sequence[Any]:
    e = result.evaluation
    seconds = (f"{result.seconds[stage]:.3f}" if stage in result.seconds else "" for stage in STAGES)
    epsilon = "" if result.epsilon is None else f"{result.epsilon:.6f}"
    accuracies = (f"{e.accuracy:.6f}", f"{e.accuracy_fgsm:.6f}", f"{e.loss:.6f}")
    return (result.round, result.labelled, *accuracies, epsilon, *seconds)


def _name(data: Data, label: int) -> str:
    """The name of a class; nothing for a label that nobody knows."""
    return data.classes[label] if label >= 0 else ""


def draw_images(file: Path, grid: Sequence[Tensor], titles: Sequence[Sequence[str]], heading: str) -> None:
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
    figure.savefig(file, format="png")
