"""The paper's Tables 1, 2, 3 and 5 from the curves of a study."""

from collections.abc import Sequence
from pathlib import Path

from dm2_fast.experiment.folder.files import replacing
from dm2_fast.paper.curves import Curve
from dm2_fast.paper.protocol import Protocol
from dm2_fast.paper.study_report import code, mean_and_deviation, origins, write_csv
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

    A line is a method; a column is a cell and a measure.
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
    text += [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *lines)]
    write_csv(folder / f"{protocol.show}.csv", ("cell", "measure", "method", "seeds", "mean", "shown"), rows)
    with replacing(folder / f"{protocol.show}.md") as partial:
        partial.write_text("\n".join(text) + "\n")
