"""The arithmetic of Table 4: single timings in, a line per method out; and how they are shown."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

from dm2_fast.experiment.folder.files import replacing

AXES = ("budget", "classes")


@dataclass(frozen=True)
class Timing:
    """One thing, timed once: a line of timings.csv.

    Attributes:
        axis: The part of the table that it belongs to: budget (the real model), or classes (a synthetic head).
        classes: C.
        part: "pass" for a forward pass, "selection" for what a method does with them; "estimate" of both, for what was
            not run.
        name: The pass, or the method.
        budget: B of a selection or of a pass that depends on it; 0 otherwise.
        repeat: 0, 1, 2, ... of a selection.
        seconds: Wall time.
        peak_bytes: Most memory in use, beyond what was in use before.
        passes: The forward passes that a method needs, joined by +.
    """

    axis: str
    classes: int
    part: str
    name: str
    budget: int
    repeat: int
    seconds: float
    peak_bytes: int
    passes: str = ""

    @property
    def key(self) -> tuple[str, int, str, str, int, int]:
        """Unique key of a timing."""
        return (self.axis, self.classes, self.part, self.name, self.budget, self.repeat)


@dataclass(frozen=True)
class Line:
    """One acquisition of a method: a line of table4.csv.

    Attributes:
        axis, classes, method, budget: As in `Timing`.
        forward_seconds: Sum of the passes that the method needs, each timed once and charged in full; None on the
            classes axis, whose head is synthetic.
        selection_seconds: Median over the repeats.
        total_seconds: Their sum.
        peak_megabytes: The most that any of them needed.
        samples_per_second: Rows of the pool by total_seconds.
        estimated_seconds: Of a line that was not run, whose other numbers are NaN.
    """

    axis: str
    classes: int
    method: str
    budget: int
    forward_seconds: float | None
    selection_seconds: float
    total_seconds: float
    peak_megabytes: float
    samples_per_second: float
    estimated_seconds: float | None = None


def summarise(timings: Iterable[Timing], pool: int) -> list[Line]:
    """Charge every method with its passes and its median selection, in the order of the first timings.

    Raises:
        ValueError: a pass that a method needs was not timed.
    """
    timings = list(timings)
    passes = {(t.axis, t.classes, t.name, t.budget): t for t in timings if t.part == "pass"}
    selections: dict[tuple[str, int, str, int], list[Timing]] = {}
    for timing in timings:
        if timing.part == "selection":
            key = (timing.axis, timing.classes, timing.name, timing.budget)
            selections.setdefault(key, []).append(timing)
    lines = []
    for (axis, classes, method, budget), repeats in selections.items():
        charged = []
        for name in filter(None, repeats[0].passes.split("+")):
            found = passes.get((axis, classes, name, budget)) or passes.get((axis, classes, name, 0))
            if found is None:
                raise ValueError(f"the pass {name!r}, which {method} needs, was not timed")
            charged.append(found)
        forward = sum(t.seconds for t in charged) if axis == "budget" else None
        selection = median(t.seconds for t in repeats)
        total = selection + (forward or 0)
        peak = max(t.peak_bytes for t in [*charged, *repeats]) / 1e6
        lines.append(Line(axis, classes, method, budget, forward, selection, total, peak, pool / total))
    nan = math.nan
    estimates = [t for t in timings if t.part == "estimate"]
    return lines + [
        Line(t.axis, t.classes, t.name, t.budget, None, nan, nan, nan, nan, estimated_seconds=t.seconds)
        for t in estimates
    ]


def read_timings(file: Path) -> list[Timing]:
    """The timings of a file, without a last line that was not written to its end."""
    if not file.exists():
        return []
    try:
        text = file.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1].splitlines()
        return [
            Timing(
                t["axis"], int(t["classes"]), t["part"], t["name"], int(t["budget"]), int(t["repeat"]),
                float(t["seconds"]), int(t["peak_bytes"]), t["passes"],
            )
            for t in csv.DictReader(complete)
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(f"{file} is damaged: remove it, or name another --output") from error


def write_timings(file: Path, timings: Iterable[Timing]) -> None:
    """Write one line per timing."""
    _write(file, [field.name for field in fields(Timing)], [list(asdict(timing).values()) for timing in timings])


def write_lines(file: Path, lines: Iterable[Line]) -> None:
    """Write table4.csv."""
    _write(file, [field.name for field in fields(Line)], [list(asdict(line).values()) for line in lines])


def _write(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with replacing(file) as partial, partial.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(["" if value is None or value != value else value for value in row])


def markdown(lines: Sequence[Line], header: Sequence[str]) -> str:
    """The whole table, under the description of the machine."""
    parts = ["# Time of one acquisition\n", *(f"- {line}" for line in header), ""]
    for axis in AXES:
        rows = [line for line in lines if line.axis == axis]
        if not rows:
            continue
        if axis == "budget":
            parts += ["## By budget\n", "| method | B | forward s | selection s | total s | peak MB | samples/s |"]
            parts += ["| --- | --- | --- | --- | --- | --- | --- |"]
            parts += [
                f"| {r.method} | {r.budget} | {digits(r.forward_seconds)} | {digits(r.selection_seconds)} | "
                f"{digits(r.total_seconds)} | {r.peak_megabytes:.0f} | {digits(r.samples_per_second)} |"
                if r.estimated_seconds is None
                else f"| {r.method} | {r.budget} | | not run | about {digits(r.estimated_seconds)} | | |"
                for r in rows
            ]
        else:
            parts += ["## By classes: selection alone, a synthetic linear head on the model's features\n"]
            parts += ["| method | C | B | selection s | peak MB |", "| --- | --- | --- | --- | --- |"]
            parts += [
                f"| {r.method} | {r.classes} | {r.budget} | {digits(r.selection_seconds)} | {r.peak_megabytes:.0f} |"
                if r.estimated_seconds is None
                else f"| {r.method} | {r.classes} | {r.budget} | not run: about {digits(r.estimated_seconds)} | |"
                for r in rows
            ]
        parts.append("")
    return "\n".join(parts)


def digits(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    if value is None or value == 0:
        return "0" if value == 0 else ""
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
