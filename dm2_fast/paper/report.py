"""What several runs say together: a table and a plot of mean and standard deviation over their seeds."""

import csv
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dm2_fast import extras
from dm2_fast.experiment.config import flat, identity
from dm2_fast.experiment.folder.files import read_yaml
from dm2_fast.paper.curves import Curve, read_curves

COLUMNS = (
    "strategy", "labelled", "runs", "accuracy_mean", "accuracy_std", "accuracy_fgsm_mean", "accuracy_fgsm_std",
    "selection_seconds_mean",
)  # fmt: skip
_NOT_SELECTION = ("seconds_train", "seconds_evaluate", "seconds_perturb", "seconds_attack")


@dataclass(frozen=True)
class ReportConfig:
    """What to report on.

    Args:
        folders: Folders of runs, and with --against also of studies, or their files of curves; one that is none is
            named and left out, so that runs/* will do.
        output: Folder to write report.csv and report.png to, or comparison.md and its pictures.
        against: Compare all others with this one, seed by seed: intervals, tests, penalties, ranks.
        measure: What is compared then: accuracy, accuracy_fgsm, or another that the curves have.
    """

    folders: list[Path]
    output: Path = Path(".")
    against: str | None = None
    measure: str = "accuracy"


@dataclass(frozen=True)
class _Training:
    """A line of rounds.csv; seconds is None where no selection followed."""

    labelled: int
    accuracy: float
    accuracy_fgsm: float
    seconds: float | None


@dataclass(frozen=True)
class _Run:
    folder: Path
    seed: int
    settings: dict[str, Any]
    trainings: list[_Training]
    planned: int


@dataclass(frozen=True)
class _Point:
    """Several runs at one number of labels; a standard deviation is None for one run."""

    labelled: int
    runs: int
    accuracy: tuple[float, float | None]
    accuracy_fgsm: tuple[float, float | None]
    seconds: float | None


def write_report(folders: Sequence[Path], output: Path, *, echo: Callable[[str], None] | None = None) -> Path:
    """Write report.csv and report.png over the runs in folders, and tell their last accuracies as a Markdown table.

    Runs that differ in nothing but their seed make one curve; it is named by its strategy, and by as few other
    settings as tell it from the rest. A run that is not finished counts as far as it went, and is named.

    Args:
        folders: Folders of runs; what is no such folder, or cannot be read, is named and left out.
        output: Folder to write to; made if it is not there.
        echo: Called with each line of the table and of what was left out.

    Returns:
        output.

    Raises:
        ValueError: no folder holds a run that can be read, or two folders hold the same run.
        MissingExtra: matplotlib or pyyaml is not installed.
    """
    extras.check("run", "the report", "yaml", "matplotlib")
    echo = echo or (lambda line: None)
    runs, notes = [], []
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            studied = (folder / "curves").is_dir()
            why = "a study: say with --against METHOD what to compare with" if studied else "no folder of a run"
            notes.append(f"left out: {folder} ({why})")
            continue
        try:
            run = _read(folder)
        except ValueError as error:
            notes.append(f"left out: {error}")
            continue
        if len(run.trainings) < run.planned:
            notes.append(f"not finished: {folder} ({len(run.trainings)} of {run.planned} trainings)")
        if run.trainings:
            runs.append(run)
    if not runs:
        left_out = "".join(f"; {note}" for note in notes)
        raise ValueError(f"none of these folders holds a run with a training: {', '.join(map(str, folders))}{left_out}")
    curves = {name: _points(group) for name, group in _groups(runs).items()}
    output.mkdir(parents=True, exist_ok=True)
    _write(output / "report.csv", curves)
    _draw(output / "report.png", curves, _title(runs))
    for line in [*notes, *_table(curves)]:
        echo(line)
    return output


def write_comparison_of(config: ReportConfig, *, echo: Callable[[str], None]) -> Path:
    """Compare everything that config.folders hold with config.against, as `study_report.write_comparison` does.

    Runs that differ in nothing but their seed are a method, named as in `write_report`; their data set and model are
    the cell. Where a study has the same curve as another folder, the first counts.

    Raises:
        ValueError: nothing can be read, or there is no curve to compare with.
    """
    from dm2_fast.paper.study_report import Asked, write_comparison

    extras.check("run", "the report", "yaml", "matplotlib", "scipy")
    runs, curves = [], dict[tuple[str, str, int], Curve]()
    for folder in config.folders:
        if (folder / "config.yaml").is_file():
            runs.append(_read(folder))
        elif folder.name.endswith(".csv.gz") or (folder / "curves").is_dir():
            for curve in read_curves(folder / "curves" if folder.is_dir() else folder):
                curves.setdefault(curve.key, curve)
        else:
            echo(f"left out: {folder} (no folder of a run or a study)")
    for curve in _curves_of(runs):
        curves.setdefault(curve.key, curve)
    asked = Asked(str(config.against), config.measure)
    given = [*map(str, config.folders), "--against", asked.against, "--measure", asked.measure]
    command = shlex.join(["dm2-fast", "report", *given])
    write_comparison(config.output, list(curves.values()), asked, "comparison", [command], echo=echo)
    return config.output


def _curves_of(runs: Sequence[_Run]) -> list[Curve]:
    curves = []
    for name, group in (_groups(runs) if runs else {}).items():
        for run in group:
            cell = f"{run.settings['dataset']}-{run.settings['model']}"
            method = " ".join(part for part in name.split() if not part.startswith(("dataset=", "model=")))
            measures = {
                "accuracy": tuple(t.accuracy for t in run.trainings),
                "accuracy_fgsm": tuple(t.accuracy_fgsm for t in run.trainings),
            }
            seconds = sum(t.seconds or 0.0 for t in run.trainings)
            labelled = tuple(t.labelled for t in run.trainings)
            curves.append(Curve(cell, method, run.seed, labelled, measures, selection_seconds=seconds, seconds=seconds))
    return curves


def _read(folder: Path) -> _Run:
    try:
        settings = flat(identity(read_yaml(folder / "config.yaml")))
        seed = int(settings.pop("seed"))
        for name in ("strategy", "dataset", "model"):  # by which curves are named
            settings[name] = str(settings[name])
        with (folder / "rounds.csv").open(newline="") as file:
            trainings = [_training(line) for line in csv.DictReader(file)]
        return _Run(folder, seed, settings, trainings, planned=int(settings["rounds"]) + 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ValueError(f"cannot read run {folder}: {reason}") from error


def _training(line: dict[str, str]) -> _Training:
    seconds = [
        float(value)
        for name, value in line.items()
        if name.startswith("seconds_") and name not in _NOT_SELECTION and value
    ]
    accuracy, accuracy_fgsm = float(line["accuracy"]), float(line["accuracy_fgsm"])
    return _Training(int(line["labelled"]), accuracy, accuracy_fgsm, sum(seconds) if seconds else None)


def _groups(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """The runs that differ in their seed only, by as few of their settings as tell them from the other groups."""
    told = ["strategy"]
    for name in ("dataset", "model", *sorted({name for run in runs for name in run.settings})):
        if len({_values(run, [*told, name]) for run in runs}) > len({_values(run, told) for run in runs}):
            told.append(name)
    groups: dict[str, list[_Run]] = {}
    for run in runs:
        known = [f"{name}={run.settings[name]}" for name in told[1:] if name in run.settings]
        label = " ".join([str(run.settings["strategy"]), *known])
        group = groups.setdefault(label, [])
        for other in group:
            if other.seed == run.seed:
                raise ValueError(f"{other.folder} and {run.folder} hold the same run: leave one out")
        group.append(run)
    return groups


def _values(run: _Run, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(run.settings.get(name)) for name in names)


def _points(runs: Sequence[_Run]) -> list[_Point]:
    points = []
    for labelled in sorted({training.labelled for run in runs for training in run.trainings}):
        here = [training for run in runs for training in run.trainings if training.labelled == labelled]
        seconds = [training.seconds for training in here if training.seconds is not None]
        accuracy = _mean_and_std([training.accuracy for training in here])
        accuracy_fgsm = _mean_and_std([training.accuracy_fgsm for training in here])
        points.append(
            _Point(labelled, len(here), accuracy, accuracy_fgsm, statistics.fmean(seconds) if seconds else None)
        )
    return points


def _mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _write(file: Path, curves: dict[str, list[_Point]]) -> None:
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, points in curves.items():
            for point in points:
                numbers = (*point.accuracy, *point.accuracy_fgsm, point.seconds)
                cells = ("" if value is None else f"{value:.6f}" for value in numbers)
                writer.writerow((name, point.labelled, point.runs, *cells))


def _table(curves: dict[str, list[_Point]]) -> list[str]:
    """The last point of every curve, in Markdown; selection is the mean over all rounds."""
    rows = [("strategy", "labelled", "runs", "accuracy (%)", "under FGSM (%)", "selection (s)")]
    for name, points in curves.items():
        last = points[-1]
        seconds = [point.seconds for point in points if point.seconds is not None]
        selection = f"{statistics.fmean(seconds):.1f}" if seconds else ""
        accuracies = (_percent(*last.accuracy), _percent(*last.accuracy_fgsm))
        rows.append((name, str(last.labelled), str(last.runs), *accuracies, selection))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return lines


def _percent(mean: float, std: float | None) -> str:
    return f"{100 * mean:.2f}" if std is None else f"{100 * mean:.2f} ± {100 * std:.2f}"


def _title(runs: Sequence[_Run]) -> str:
    shared = [{str(run.settings.get(name)) for run in runs} for name in ("dataset", "model")]
    return ", ".join(next(iter(values)) for values in shared if len(values) == 1)


def _draw(file: Path, curves: dict[str, list[_Point]], title: str) -> None:
    """Accuracy against labels, clean and under FGSM: the mean, and a band of one standard deviation."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for i, points in enumerate(curves.values()):
        style = {"color": colours[i % 10], "linestyle": ("-", "--", ":", "-.")[i // 10 % 4]}
        labelled = [point.labelled for point in points]
        for axes, values in zip(panels, ([p.accuracy for p in points], [p.accuracy_fgsm for p in points]), strict=True):
            mean = [100 * value for value, _ in values]
            std = [100 * (value or 0) for _, value in values]
            axes.plot(labelled, mean, marker="o", markersize=3, **style)
            low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
            axes.fill_between(labelled, low, high, color=style["color"], alpha=0.15, linewidth=0)
    for axes, name in zip(panels, ("clean", "under FGSM"), strict=True):
        axes.set(xlabel="labelled samples", title=name)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("test accuracy (%)")
    counts = [[point.runs for point in points] for points in curves.values()]
    fewest, most = min(map(min, counts)), max(map(max, counts))
    runs = f"{most} run{'s' if most > 1 else ''}" if fewest == most else f"{fewest} to {most} runs"
    band = ", mean and standard deviation" if most > 1 else ""
    figure.suptitle(f"{title}{', ' if title else ''}{runs} each{band}", fontsize=10)
    figure.legend(panels[0].lines, list(curves), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(file, dpi=120)
