"""The paper's Tables 1, 2, 3 and 5 from the curves of a study."""

from collections.abc import Sequence
from pathlib import Path

from dm2_fast import strategies
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.paper.curves import Curve
from dm2_fast.paper.protocol import Protocol
from dm2_fast.paper.statistics import interval
from dm2_fast.paper.study_report import code, mean_and_deviation, origins, points, write_csv
from dm2_fast.words import count

_TITLES = {
    "table1": "Table 1: last accuracy of every method (%)",
    "table2": "Table 2: last accuracy with other networks (%)",
    "table3": "Table 3: adversarial training and attacks, last accuracy (%)",
    "table5": "Table 5: DM2-AT with one part changed, last accuracy (%)",
}
NAMES = {"accuracy": "clean", "accuracy_fgsm": "FGSM", "accuracy_pgd": "PGD-20", "accuracy_autoattack": "AutoAttack"}


def write_table(folder: Path, protocol: Protocol, curves: Sequence[Curve]) -> None:
    """Write the last value of every measure, mean and half width of the 95 % interval over seeds, as .csv and .md.

    A line is a method; a column is a cell and a measure. Where methods differ in adversarial training alone, a second
    table of the .md has what that changes, paired by seed.
    """
    measures = list(dict.fromkeys(name for curve in curves for name in curve.measures))
    shown = [name for name in measures if protocol.show in ("table3", "table5") or not name.startswith("accuracy_")]
    shown = [name for name in shown if not name[-2:].startswith("-")]  # of corruptions, their mean alone
    columns = [(cell, measure) for cell in protocol.cells for measure in shown]
    columns = [one for one in columns if any(c.cell == one[0] and one[1] in c.measures for c in curves)]
    rows, lines = [], []
    for method in protocol.methods:
        line = [method]
        for cell, measure in columns:
            last = [
                c.measures[measure][-1]
                for c in curves
                if (c.cell, c.method) == (cell, method) and measure in c.measures
            ]
            line.append(mean_and_deviation(last) if last else "")
            if last:
                rows.append((cell, measure, method, len(last), float(sum(last) / len(last)), line[-1]))
        if any(line[1:]):
            lines.append(line)
    heads = ["method", *(f"{cell} {NAMES.get(measure, measure)}" for cell, measure in columns)]
    seeds = sorted({sum(c.key[:2] == (cell, method) for c in curves) for cell, method, _ in {c.key for c in curves}})
    each = count(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    text = [f"# {_TITLES[protocol.show]}\n", f"Protocol {protocol.name}; {each} each, with 95 % intervals.\n"]
    made = [*map(code, protocol.commands(curve.key for curve in curves)), *origins(curves)]
    text += [*(f"- {line}" for line in made), ""]
    text += _markdown(heads, lines)
    changes = [
        [name, *(_change(pairs, curves, cell, measure) for cell, measure in columns)]
        for name, pairs in _crossed(protocol).items()
    ]
    if changes := [line for line in changes if any(line[1:])]:
        text += ["\nWhat adversarial training changes: points above the same choice without it, paired by seed\n"]
        text += _markdown(heads, changes)
    write_csv(folder / f"{protocol.show}.csv", ("cell", "measure", "method", "seeds", "mean", "shown"), rows)
    with replacing(folder / f"{protocol.show}.md") as partial:
        partial.write_text("\n".join(text) + "\n")


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)]


def _crossed(protocol: Protocol) -> dict[str, list[tuple[str, str]]]:
    """Each method with adversarial training beside the same one without; and by kind of training all of them."""
    plain = {
        name: options
        for name, options in protocol.methods.items()
        if "adversarial" not in options and strategies.get(options["strategy"]).adversarial == "off"
    }
    single, together = dict[str, list[tuple[str, str]]](), dict[str, list[tuple[str, str]]]()
    for method, options in protocol.methods.items():
        train = options.get("adversarial", {}).get("train", "off")
        rest = {name: value for name, value in options.items() if name != "adversarial"}
        for without in (name for name, other in plain.items() if train != "off" and other == rest):
            single[method] = [(method, without)]
            together.setdefault(f"mean, train={train}", []).append((method, without))
    return single | together


def _change(pairs: Sequence[tuple[str, str]], curves: Sequence[Curve], cell: str, measure: str) -> str:
    """The mean over pairs of methods of the last value's difference, over the seeds that all of them have."""
    last = {curve.key: curve.measures[measure][-1] for curve in curves if measure in curve.measures}
    seeds = [s for s in sorted({s for _, _, s in last}) if all((cell, m, s) in last for pair in pairs for m in pair)]
    if not seeds:
        return ""
    return points(interval([sum(last[cell, a, s] - last[cell, b, s] for a, b in pairs) / len(pairs) for s in seeds]))
