"""What curves say about methods, compared with one of them seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dm2_fast.paper.curves import Curve
from dm2_fast.paper.statistics import (
    Interval,
    Ranks,
    area,
    holm,
    interval,
    labels_saved,
    penalty_matrix,
    permutation_test,
    ranks,
    smallest_detectable,
)

ALL = "all"  # the mean over the cells, seed by seed


@dataclass(frozen=True)
class Line:
    """A method in a cell, compared with another over the seeds that both have.

    Attributes:
        cell, method: Which; cell is `ALL` for the mean over all cells.
        seeds: How many pairs.
        level: Mean area under the method's own curve.
        area, last: Differences, method less the other, of the area over the labels that both curves span, and of the
            accuracy at the most labels that both have.
        p, p_holm: Permutation test of the area; and adjusted for all methods that are tested in the cell.
        detectable: The difference of areas that so many pairs of this scatter find in four of five studies.
        saved: Labels that the method's mean curve needs less for the other's last mean accuracy; NaN if it does not
            get there, or for `ALL`.
        seconds, selection_seconds, peak_mb: Means of a curve.
    """

    cell: str
    method: str
    seeds: int
    level: float
    area: Interval
    last: Interval
    p: float
    p_holm: float
    detectable: float
    saved: float
    seconds: float
    selection_seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Bound:
    """The mean accuracy of a method that trains once, such as on all data."""

    cell: str
    method: str
    seeds: int
    accuracy: float


Curves = dict[tuple[str, str, int], Curve]


def compare(
    curves: Sequence[Curve], against: str, measure: str = "accuracy", tested: Sequence[str] | None = None
) -> list[Line]:
    """Compare every method with `against` in each cell, and over all cells where there is more than one.

    Args:
        curves: All of them; what has no partner of the same cell and seed is left out.
        measure: Which values of a curve are compared, one per training.
        tested: The methods that Holm's correction counts; None for all. The others get no p-value.

    Raises:
        ValueError: there is no curve of `against`, or none has the measure.
    """
    whole = {c.key: c for c in curves if len(c.labelled) > 1 and len(c.measures.get(measure, ())) == len(c.labelled)}
    methods = list(dict.fromkeys(method for _, method, _ in whole))
    cells = list(dict.fromkeys(cell for cell, _, _ in whole))
    if against not in methods:
        raise ValueError(
            f"no curves of {against} with {measure} to compare with: there are {', '.join(methods) or 'none'}"
        )
    lines = []
    for cell in [*cells, *([ALL] if len(cells) > 1 else [])]:
        here = [
            line
            for method in methods
            if method != against
            and (line := _line(whole, cell, cells if cell == ALL else [cell], method, against, measure)) is not None
        ]
        counted = [line for line in here if tested is None or line.method in tested]
        adjusted = dict(zip((line.method for line in counted), holm([line.p for line in counted]), strict=True))
        lines += [_with(line, adjusted.get(line.method)) for line in here]
    return lines


def _with(line: Line, p_holm: float | None) -> Line:
    values = vars(line) | {"p_holm": math.nan if p_holm is None else float(p_holm)}
    if p_holm is None:
        values["p"] = math.nan
    return Line(**values)


def _line(curves: Curves, cell: str, cells: Sequence[str], method: str, against: str, measure: str) -> Line | None:
    seeds = [
        seed
        for seed in sorted({seed for _, name, seed in curves if name == method})
        if all((c, m, seed) in curves for c in cells for m in (method, against))
    ]
    if not seeds:
        return None
    pairs = [[(curves[c, method, seed], curves[c, against, seed]) for c in cells] for seed in seeds]
    areas, lasts, levels = (np.empty(len(seeds)) for _ in range(3))
    for i, pair in enumerate(pairs):
        found = [_differences(mine, other, measure) for mine, other in pair]
        areas[i], lasts[i], levels[i] = np.mean(found, axis=0)
    own = [mine for pair in pairs for mine, _ in pair]
    saved = math.nan if len(cells) > 1 else _saved(pairs, measure)
    return Line(
        cell, method, len(seeds), float(levels.mean()), interval(areas), interval(lasts), permutation_test(areas),
        math.nan, smallest_detectable(areas), saved,
        *(float(np.mean([getattr(c, name) for c in own])) for name in ("seconds", "selection_seconds", "peak_mb")),
    )  # fmt: skip


def _differences(mine: Curve, other: Curve, measure: str) -> tuple[float, float, float]:
    """Of area and of the last common accuracy; and the own area, over the labels that both span."""
    low, high = max(mine.labelled[0], other.labelled[0]), min(mine.labelled[-1], other.labelled[-1])
    own, others = (area(c.labelled, c.measures[measure], low, high) for c in (mine, other))
    last = [float(np.interp(high, c.labelled, c.measures[measure])) for c in (mine, other)]
    return own - others, last[0] - last[1], own


def _saved(pairs: Sequence[Sequence[tuple[Curve, Curve]]], measure: str) -> float:
    labelled = pairs[0][0][0].labelled
    if any(c.labelled != labelled for pair in pairs for both in pair for c in both):
        return math.nan  # other steps: there is no mean curve
    mine, other = (np.mean([pair[0][i].measures[measure] for pair in pairs], axis=0) for i in (0, 1))
    return labels_saved(labelled, mine, other)


def bounds(curves: Sequence[Curve]) -> list[Bound]:
    """What was trained once only, by cell and method."""
    groups: dict[tuple[str, str], list[float]] = {}
    for curve in curves:
        if len(curve.labelled) == 1:
            groups.setdefault((curve.cell, curve.method), []).append(curve.accuracy[-1])
    return [Bound(cell, method, len(values), float(np.mean(values))) for (cell, method), values in groups.items()]


def table_of_cells(
    curves: Sequence[Curve], measure: str = "accuracy"
) -> tuple[list[str], list[str], list[NDArray[np.float64]]]:
    """The methods and cells that are complete with each other, and per cell the values (methods, seeds, trainings).

    A method that is missing in a cell is left out of all; seeds count where all methods that are left have them.
    """
    whole = {c.key: c for c in curves if len(c.labelled) > 1 and len(c.measures.get(measure, ())) == len(c.labelled)}
    cells = list(dict.fromkeys(cell for cell, _, _ in whole))
    methods = [
        m for m in dict.fromkeys(m for _, m, _ in whole) if all(any(k[:2] == (c, m) for k in whole) for c in cells)
    ]
    values = []
    for cell in cells:
        seeds = [
            s for s in sorted({k[2] for k in whole if k[0] == cell}) if all((cell, m, s) in whole for m in methods)
        ]
        if not seeds or not methods:
            return [], [], []
        steps = {len(whole[cell, m, s].labelled) for m in methods for s in seeds}
        if len(steps) > 1:
            return [], [], []
        values.append(np.array([[whole[cell, m, s].measures[measure] for s in seeds] for m in methods]))
    return methods, cells, values


def ranked(values: Sequence[NDArray[np.float64]], labelled: Sequence[Sequence[int]]) -> Ranks:
    """Ranks of the methods by their mean area, a cell a setting."""
    scores = [
        [np.mean([area(x, curve) for curve in method]) for method in v] for v, x in zip(values, labelled, strict=True)
    ]
    return ranks(np.array(scores))


def penalties(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """`penalty_matrix` of the cells with at least two seeds."""
    return penalty_matrix([v for v in values if v.shape[1] > 1])
