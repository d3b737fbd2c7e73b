"""What is written about the curves of a study: comparison, pictures, and the table or figure of the paper."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dm2_fast.experiment.folder.files import replacing
from dm2_fast.paper import study_pictures
from dm2_fast.paper.comparison import ALL, Bound, Line, bounds, compare, penalties, ranked, table_of_cells
from dm2_fast.paper.curves import Curve
from dm2_fast.paper.protocol import Protocol
from dm2_fast.paper.statistics import Interval, interval

COLUMNS = (
    "cell", "method", "seeds", "level", "area", "area_low", "area_high", "last", "last_low", "last_high", "p", "p_holm",
    "detectable", "labels_saved", "seconds", "selection_seconds", "peak_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What is compared: with which method, by which measure, and which methods are tested."""

    against: str
    measure: str = "accuracy"
    tested: tuple[str, ...] | None = None


def show(
    folder: Path,
    protocol: Protocol,
    curves: Sequence[Curve],
    data_dir: Path,
    device: str,
    *,
    echo: Callable[[str], None],
) -> None:
    """Write what the study shows, as far as its curves go."""
    asked = Asked(protocol.against, protocol.primary, protocol.tested)
    curves = _in_order(protocol, curves)
    if any(curve.method == protocol.against for curve in curves):
        commands = protocol.commands(curve.key for curve in curves)
        write_comparison(folder, curves, asked, protocol.name, commands, echo=echo)
    if protocol.show.startswith("table"):
        from dm2_fast.paper.tables import write_table

        write_table(folder, protocol, curves)
        echo((folder / f"{protocol.show}.md").read_text())
    elif protocol.show == "figure1":
        from dm2_fast.paper.figure1 import draw_figure1

        draw_figure1(folder, protocol, curves, data_dir, device)
    elif protocol.show == "figure4":
        study_pictures.draw_curves(folder / "figure4.png", curves, protocol.against, protocol.primary, protocol.name)


def _in_order(protocol: Protocol, curves: Sequence[Curve]) -> list[Curve]:
    cells, methods = list(protocol.cells), list(protocol.methods)
    return sorted(curves, key=lambda c: (cells.index(c.cell), methods.index(c.method), c.seed))


def write_comparison(
    folder: Path,
    curves: Sequence[Curve],
    asked: Asked,
    title: str,
    commands: Sequence[str],
    *,
    echo: Callable[[str], None],
) -> None:
    """Write comparison.csv, comparison.md, curves.png, differences.png and, where they have a meaning, mean.png (of the
    cells), penalty.csv, penalty.png and ranks.png, and tell the table.

    Args:
        commands: What made the curves, as comparison.md says.

    Raises:
        ValueError: there is no curve to compare with.
    """
    lines = compare(curves, asked.against, asked.measure, asked.tested)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "comparison.csv", COLUMNS, [_row(line) for line in lines])
    text = markdown(lines, bounds(curves), asked, title, [*map(code, commands), *origins(curves)])
    study_pictures.draw_curves(folder / "curves.png", curves, asked.against, asked.measure, title)
    if lines:
        study_pictures.draw_differences(folder / "differences.png", lines, asked.against, title)
    if mean := [line for line in lines if line.cell == ALL]:
        study_pictures.draw_differences(folder / "mean.png", mean, asked.against, title)
    counted = [c for c in curves if asked.tested is None or c.method in (asked.against, *asked.tested)]
    methods, cells, values = table_of_cells(counted, asked.measure)
    if len(methods) > 1 and any(v.shape[1] > 1 for v in values):
        matrix = penalties(values)
        write_csv(
            folder / "penalty.csv", ("method", *methods), [(m, *row) for m, row in zip(methods, matrix, strict=True)]
        )
        study_pictures.draw_penalties(folder / "penalty.png", methods, matrix)
    if len(methods) > 2 and len(cells) > 1:
        steps = [next(c.labelled for c in curves if c.cell == cell and len(c.labelled) > 1) for cell in cells]
        found = ranked(values, steps)
        study_pictures.draw_ranks(folder / "ranks.png", methods, found, len(cells), asked.against)
        listed = ", ".join(f"{methods[i]} {found.mean[i]:.2f}" for i in np.argsort(found.mean, kind="stable"))
        text += (
            f"\nMean ranks over {len(cells)} cells: {listed}. Critical difference {found.critical:.2f} (Nemenyi, 5 %), "
            f"Friedman p = {found.p:.2g}.\n"
        )
    with replacing(folder / "comparison.md") as partial:
        partial.write_text(text)
    echo(text)


def _row(line: Line) -> tuple[object, ...]:
    return (
        line.cell, line.method, line.seeds, line.level, line.area.mean, line.area.low, line.area.high, line.last.mean,
        line.last.low, line.last.high, line.p, line.p_holm, line.detectable, line.saved, line.seconds,
        line.selection_seconds, line.peak_mb,
    )  # fmt: skip


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table; NaN is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    with replacing(file) as partial:
        partial.write_text(text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def code(command: str) -> str:
    """A command as Markdown."""
    return f"`{command}`"


def origins(curves: Sequence[Curve]) -> list[str]:
    """What curves were made with and when: machine, versions, commit, date, each once."""
    return sorted({f"{c.machine}; {c.versions}; commit {c.commit}, {c.date}" for c in curves if c.machine})


def markdown(lines: Sequence[Line], limits: Sequence[Bound], asked: Asked, title: str, made: Sequence[str]) -> str:
    """The comparison as text: what made it, and a table a cell, the best first."""
    parts = [f"# {title}: {asked.measure} against {asked.against}\n", *(f"- {line}" for line in made)]
    parts.append(
        "\nPoints (hundredths) of the mean height of the curve and of its last value, less those of "
        f"{asked.against}, with paired 95 % intervals; p of a permutation test of the area, and after Holm's correction"
    )
    for cell in dict.fromkeys(line.cell for line in lines):
        here = sorted((line for line in lines if line.cell == cell), key=lambda line: -line.area.mean)
        parts += [
            f"\n## {cell}\n",
            "| method | seeds | area | last | p | p (Holm) | detectable | labels saved | s | MB |",
        ]
        parts.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for line in here:
            name = f"**{line.method}**" if line.method.startswith("dm2") else line.method
            saved = "" if math.isnan(line.saved) else f"{line.saved:.0f}"
            parts.append(
                f"| {name} | {line.seeds} | {points(line.area)} | {points(line.last)} | {_p(line.p)} | "
                f"{_p(line.p_holm)} | {_number(100 * line.detectable)} | {saved} | {line.seconds:.2f} | "
                f"{line.peak_mb:.0f} |"
            )
        parts += [
            f"\n{limit.method}: {limit.accuracy:.2%} over {limit.seeds} seeds."
            for limit in limits
            if limit.cell == cell
        ]
    return "\n".join(parts) + "\n"


def points(found: Interval) -> str:
    """ "+0.32 ± 0.14" of parts of one, in hundredths, with the half width of the interval."""
    half = (found.high - found.low) / 2
    return f"{100 * found.mean:+.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")


def _p(value: float) -> str:
    return "" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def mean_and_deviation(values: Sequence[float]) -> str:
    """ "84.11 ± 0.35" of parts of one, in per cent, with the half width of the 95 % interval."""
    found = interval(values)
    half = (found.high - found.low) / 2
    return f"{100 * found.mean:.2f}" + ("" if math.isnan(half) else f" ± {100 * half:.2f}")
