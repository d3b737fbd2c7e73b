"""The folder that a run leaves behind: config.yaml, rounds.csv, selected.csv, curve.png and a contact sheet a round."""

import csv
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dm2_fast.experiment.config import RunConfig, flat, identity, to_dict
from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.folder.files import differences, read_yaml, remove_partial, replacing
from dm2_fast.experiment.folder.sheet import draw_chosen, short
from dm2_fast.experiment.state import RoundResult, State
from dm2_fast.round import Picked

ROUND_COLUMNS = ("round", "labelled", "accuracy", "accuracy_fgsm", "loss", "epsilon")
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
        import yaml

        if config.output is None:
            raise ValueError("config must be resolved, got output=None")
        path, file = config.output, config.output / "config.yaml"
        if path.exists() and not file.exists() and (not path.is_dir() or any(_visible(path))):
            raise FileExistsError(f"{path} holds something else than a run: name another --output")
        path.mkdir(parents=True, exist_ok=True)
        directory = os.open(path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except BlockingIOError as error:
                raise FileExistsError(f"another process is using {path}") from error
            if file.exists():
                before = read_yaml(file)
                _check_same(path, before, to_dict(config))
                new = before["rounds"] != config.rounds
            else:
                new = True
            if new:
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
    def training(self) -> Path:
        """The file of a training that goes on."""
        return self.checkpoints / "training.pt"

    @property
    def model(self) -> Path:
        """The file of the last trained weights."""
        return self.path / "model.pt"

    def write_tables(self, state: State, ids: Sequence[str] | None = None) -> None:
        """Write rounds.csv and selected.csv anew; ids are what rows are called, if there are some."""
        stages = list(dict.fromkeys(stage for result in state.results for stage in result.seconds))
        others = list(dict.fromkeys(name for result in state.results for name in result.evaluation.others))
        columns = (*ROUND_COLUMNS, *others, *(f"seconds_{stage}" for stage in stages))
        self._write("rounds.csv", [columns, *(_round_line(result, others, stages) for result in state.results)])
        lines: list[Sequence[Any]] = [(*SELECTED_COLUMNS, *(() if ids is None else ("id",)))]
        for r, (rows, labels) in enumerate(zip(state.chosen, state.labels, strict=False)):
            scores = state.scores[r]
            written = [""] * len(rows) if scores is None else [f"{score:.9g}" for score in scores.tolist()]
            columns_of = [[r] * len(rows), range(len(rows)), rows.tolist(), written, labels.tolist()]
            if ids is not None:
                columns_of.append([ids[row] for row in rows.tolist()])
            lines += zip(*columns_of, strict=True)
        self._write("selected.csv", lines)

    def _write(self, name: str, lines: Sequence[Sequence[Any]]) -> None:
        with replacing(self.path / name) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)

    def draw_curve(self, results: Sequence[RoundResult], title: str) -> None:
        """Draw accuracy against labels as curve.png."""
        from matplotlib.figure import Figure

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

    def draw_sheet(self, round: int, data: Data, rows: Tensor, picked: Picked) -> None:
        """Draw the first samples chosen from these rows as round_NN.png, each beside what it was mixed with."""

        def names(places: Tensor) -> list[str]:
            if data.ids is not None:
                return [short(data.ids[row]) for row in rows[places].tolist()]
            labels = data.y[rows[places]].tolist()
            return [data.classes[label] if label >= 0 else "" for label in labels]  # -1: nobody knows it

        draw_chosen(self.path / f"round_{round:02d}.png", data.x[rows], picked, names, f"round {round}")


def _visible(path: Path) -> list[Path]:
    return [file for file in path.iterdir() if not file.name.startswith(".")]


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    try:
        before, now = flat(identity(before)), flat(identity(now))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / 'config.yaml'} is damaged: it does not say which data set the run used") from error
    if isinstance(before.get("rounds"), int) and before["rounds"] < now["rounds"]:
        before["rounds"] = now["rounds"]  # more of them go on from there
    different = differences(before, now)
    if different:
        raise FileExistsError(f"{path} holds a run of another configuration, name another --output: {different}")


def _round_line(result: RoundResult, others: Sequence[str], stages: Sequence[str]) -> Sequence[Any]:
    e = result.evaluation
    more = (f"{e.others[name]:.6f}" if name in e.others else "" for name in others)
    seconds = (f"{result.seconds[stage]:.3f}" if stage in result.seconds else "" for stage in stages)
    epsilon = "" if result.epsilon is None else f"{result.epsilon:.6f}"
    accuracies = (f"{e.accuracy:.6f}", f"{e.accuracy_fgsm:.6f}", f"{e.loss:.6f}")
    return (result.round, result.labelled, *accuracies, epsilon, *more, *seconds)
