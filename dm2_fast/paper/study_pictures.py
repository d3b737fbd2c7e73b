"""The pictures of a study: curves, differences, the penalty matrix, and ranks with their critical difference."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dm2_fast.experiment.folder.files import replacing
from dm2_fast.paper.colours import GREY, emphasised, style
from dm2_fast.paper.comparison import ALL, Line
from dm2_fast.paper.curves import Curve
from dm2_fast.paper.statistics import Ranks, interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_curves(file: Path, curves: Sequence[Curve], against: str, measure: str, title: str) -> None:
    """Mean of the measure against labels, a panel a cell; a band of the 95 % interval around what is emphasised."""
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(curve.cell for curve in curves))
    methods = list(dict.fromkeys(curve.method for curve in curves))
    columns = min(3, len(cells))
    lines = math.ceil(len(cells) / columns)
    height = max(3.5 * lines, 0.3 + 0.185 * len(methods))  # of the panels, or of the legend
    figure = Figure(figsize=(4.4 * columns + 2.2, height), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, cell in zip(panels, cells, strict=False):
        for method in sorted(methods, key=lambda name: emphasised(name, against)):
            _curve(axes, [c for c in curves if (c.cell, c.method) == (cell, method)], method, against, measure)
        axes.set_title(cell, fontsize=9)
        _plain(axes)
    for axes in panels[len(cells) :]:
        axes.axis("off")
    figure.supxlabel("labelled samples", fontsize=9)
    figure.supylabel(f"{measure.replace('_', ' under ')} (%)", fontsize=9)
    _legend(figure, methods, against)
    figure.suptitle(title, fontsize=10)
    _save(figure, file)


def _curve(axes: "Axes", curves: Sequence[Curve], method: str, against: str, measure: str) -> None:
    curves = [c for c in curves if len(c.measures.get(measure, ())) == len(c.labelled)]
    if not curves:
        return
    if len(curves[0].labelled) == 1:
        axes.axhline(100 * float(np.mean([c.measures[measure][-1] for c in curves])), **style(method))
        return
    labelled = sorted({n for c in curves for n in c.labelled})
    at = [[100 * c.measures[measure][c.labelled.index(n)] for c in curves if n in c.labelled] for n in labelled]
    means = [interval(values) for values in at]
    look = style(method, against)
    axes.plot(labelled, [m.mean for m in means], **look)
    if emphasised(method, against) and len(curves) > 1:
        low, high = (np.clip([getattr(m, end) for m in means], 0, 100) for end in ("low", "high"))
        axes.fill_between(labelled, low, high, color=look["color"], alpha=0.18, linewidth=0)


def draw_differences(file: Path, lines: Sequence[Line], against: str, title: str) -> None:
    """The differences of areas with their 95 % intervals, a panel a cell; filled where Holm's p is at most 0.05.

    Intervals over less than half of a cell's seeds may end outside of its panel.
    """
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(line.cell for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    last = [line for line in lines if line.cell == cells[-1]]
    methods.sort(key=lambda name: next((line.area.mean for line in last if line.method == name), -math.inf))
    columns = min(4, len(cells))
    rows = math.ceil(len(cells) / columns)
    figure = Figure(figsize=(2.5 + 2.6 * columns, 0.9 + (0.6 + 0.24 * len(methods)) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes in panels[len(cells) :]:
        axes.axis("off")
    for axes, cell in zip(panels, cells, strict=False):
        here = [line for line in lines if line.cell == cell]
        most = max(line.seeds for line in here)
        shown = [0.0, *(line.area.mean for line in here)]
        shown += [end for line in here if 2 * line.seeds >= most for end in (line.area.low, line.area.high)]
        low, high = 100 * np.nanmin(shown), 100 * np.nanmax(shown)
        margin = 0.05 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
        for line in here:
            place, colour = methods.index(line.method), style(line.method, against)["color"]
            if not math.isnan(line.area.low):
                axes.plot([100 * line.area.low, 100 * line.area.high], [place] * 2, color=colour, linewidth=1.6)
            face = colour if line.p_holm <= 0.05 else "white"
            axes.plot(100 * line.area.mean, place, "o", markersize=5, color=colour, markerfacecolor=face)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title("mean of the cells" if cell == ALL else cell, fontsize=9)
        _plain(axes)
    for axes in panels[::columns]:
        axes.set_yticks(range(len(methods)), methods, fontsize=8)
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().startswith("dm2") else "normal")
    figure.supxlabel(f"points of mean accuracy above {against}; filled: p (Holm) at most 0.05", fontsize=9)
    figure.suptitle(title, fontsize=10)
    _save(figure, file)


def draw_penalties(file: Path, methods: Sequence[str], matrix: NDArray[np.float64]) -> None:
    """How often the method of a line beats that of a column, in per cent of the rounds; the best come first."""
    from matplotlib.figure import Figure

    order = np.argsort(matrix.mean(0), kind="stable")
    shown = 100 * matrix[np.ix_(order, order)]
    side = 2.2 + 0.36 * len(methods)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(100.0, shown.max()))
    for i, j in np.ndindex(*shown.shape):
        if i != j:
            axes.text(j, i, f"{shown[i, j]:.0f}", ha="center", va="center", fontsize=6.5,
                      color="white" if shown[i, j] > 60 else "black")  # fmt: skip
    ordered = [methods[i] for i in order]
    axes.set_xticks(range(len(ordered)), ordered, rotation=90, fontsize=7)
    axes.set_yticks(range(len(ordered)), ordered, fontsize=7)
    axes.set_title("% of rounds at which the line beats the column (paired t, 5 %)", fontsize=8)
    _save(figure, file)


def draw_ranks(file: Path, methods: Sequence[str], found: Ranks, settings: int, against: str) -> None:
    """Mean ranks on a line; a bar joins methods that the critical difference does not tell apart (Demsar 2006)."""
    from matplotlib.figure import Figure

    order = np.argsort(found.mean, kind="stable")
    mean = found.mean[order]
    groups: list[tuple[int, int]] = []
    for i in range(len(mean)):
        j = int(np.flatnonzero(mean - mean[i] < found.critical)[-1])
        if j > i and (not groups or j > groups[-1][1]):
            groups.append((i, j))
    half = math.ceil(len(mean) / 2)
    figure = Figure(figsize=(8, 1.1 + 0.22 * half + 0.1 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    top = 0.35 + 0.12 * len(groups)
    axes.plot([1, len(mean)], [0, 0], color="black", linewidth=0.8)
    for tick in range(1, len(mean) + 1):
        axes.plot([tick, tick], [0, 0.08], color="black", linewidth=0.8)
        axes.text(tick, 0.12, str(tick), ha="center", va="bottom", fontsize=7)
    axes.plot([1, 1 + found.critical], [0.5, 0.5], color=GREY, linewidth=2)
    axes.text(1, 0.56, f"critical difference {found.critical:.2f}, {settings} settings", fontsize=7, va="bottom")
    for place, (i, rank) in enumerate(zip(order, mean, strict=True)):
        left = place < half
        low = -top - 0.25 * (place if left else len(mean) - 1 - place)
        colour = style(methods[i], against)["color"]
        end = 0.6 if left else len(mean) + 0.4
        axes.plot([rank, rank, end], [0, low, low], color=colour, linewidth=1)
        bold = "bold" if methods[i].startswith("dm2") else "normal"
        axes.text(end + (-0.05 if left else 0.05), low, f"{methods[i]} {rank:.2f}", ha="right" if left else "left",
                  va="center", fontsize=7.5, color=colour, fontweight=bold)  # fmt: skip
    for number, (i, j) in enumerate(groups):
        axes.plot([mean[i] - 0.04, mean[j] + 0.04], [-0.15 - 0.12 * number] * 2, color="black", linewidth=2.4)
    axes.set_xlim(-len(mean) * 0.35, len(mean) * 1.38)
    axes.axis("off")
    _save(figure, file)


def _plain(axes: "Axes") -> None:
    axes.grid(alpha=0.3, linewidth=0.4)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: "Figure", methods: Sequence[str], against: str) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style(method, against)) for method in methods]
    figure.legend(handles, list(methods), loc="outside right upper", frameon=False, fontsize=8, handlelength=3.2)


def _save(figure: "Figure", file: Path) -> None:
    with replacing(file) as partial:
        figure.savefig(partial, dpi=110, format="png", pil_kwargs={"optimize": True})
