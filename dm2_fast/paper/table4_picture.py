"""The picture of Table 4: a bar a method, and how its selection grows with the budget and the classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dm2_fast.experiment.folder.files import replacing
from dm2_fast.paper.timings import Line, digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FORWARD, _SELECTION, _OURS = "#b8c4d0", "#1b6ca8", "#d1495b"
_LEAST = 1e-3  # seconds: less is drawn at the edge of a logarithmic axis


def draw(file: Path, lines: Sequence[Line], title: str) -> None:
    """Draw forward and selection seconds of every method that ran, stacked, and selection by budget and classes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    lines = [line for line in lines if line.estimated_seconds is None]
    budgets = sorted({line.budget for line in lines if line.axis == "budget"})
    if not budgets:
        return
    middle = budgets[len(budgets) // 2]
    bars = sorted((r for r in lines if (r.axis, r.budget) == ("budget", middle)), key=lambda line: -line.total_seconds)
    figure = Figure(figsize=(12, 1.6 + 0.3 * len(bars)), layout="constrained")
    whole, by_budget, by_classes = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
    _bars(whole, bars, middle)
    for axes, axis in ((by_budget, "budget"), (by_classes, "classes")):
        ends = sorted({getattr(line, axis) for line in lines if line.axis == axis})
        for place, bar in enumerate(bars):
            points = [
                (getattr(r, axis), r.selection_seconds) for r in lines if (r.axis, r.method) == (axis, bar.method)
            ]
            seconds = [max(_LEAST, value) for _, value in sorted(points)]
            colour = _colour(bar.method)
            axes.plot(seconds, [place] * len(seconds), "-", color=colour, linewidth=1.2)
            for i, value in enumerate(seconds):
                axes.plot(value, place, "o", color=colour, markersize=3 + 4 * i / max(1, len(seconds) - 1))
        axes.set(xscale="log", xlabel="selection alone, without forward passes")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _time(seconds)))
        axes.set_title(f"{axis} {', '.join(map(str, ends))}: small to large dot", fontsize=9)
        axes.grid(alpha=0.3, axis="x", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    with replacing(file) as partial:
        figure.savefig(partial, dpi=100, format="png", pil_kwargs={"optimize": True})


def _time(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{1000 * seconds:g} ms"


def _rounded(seconds: float) -> str:
    return digits(seconds) if seconds >= 0.01 else "<0.01"


def _colour(method: str) -> str:
    return _OURS if method.startswith("dm2") else _SELECTION


def _bars(axes: "Axes", bars: Sequence[Line], budget: int) -> None:
    """Stacked bars with their numbers; one that is many times longer than the others is cut short, and says so."""
    totals = sorted(bar.total_seconds for bar in bars)
    longest = max(total for total in totals if total <= 4 * totals[len(totals) // 2])
    for place, bar in enumerate(bars):
        forward = bar.forward_seconds or 0.0
        cut = bar.total_seconds > longest * 1.05
        shown = min(forward, longest * 1.1)
        axes.barh(place, shown, color=_FORWARD, label="forward passes" if place == 0 else None)
        rest = min(bar.selection_seconds, longest * 1.1 - shown)
        axes.barh(place, rest, left=shown, color=_colour(bar.method), label="selection" if place == 0 else None)
        if cut:
            axes.text(shown * 0.5, place, "not to scale", va="center", ha="center", fontsize=8)
        text = f"{digits(forward)} + {_rounded(bar.selection_seconds)}"
        axes.text(shown + rest + longest * 0.01, place, text, va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [bar.method for bar in bars])
    for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if bar.method.startswith("dm2") else "normal")
    axes.set(xlim=(0, longest * 1.45), xlabel="seconds of forward passes + of selection")
    axes.set_title(f"one acquisition of {budget} samples", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
