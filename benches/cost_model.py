"""What the neighbours of very many rows cost on several machines: a model, fitted to the tables of results/scale.

    python benches/cost_model.py [--results DIR] [--machines P] [--cores C] [--gbit-per-s G]

CPU seconds of one process are e^c m^a d^b for m rows of d features, by least squares of the logarithms of
approximate.md, growth.md and wide.md (benches/approximate.py). The largest number of rows is left out and predicted,
as a check.
Several processes take a measured multiple of that (benches/shards.py). The bytes that a process sends and has are
counted; of each count one term is fitted to one measurement and predicts the others. Prints it all, and what follows
for 10^7, 10^8 and 10^9 rows of 128 features on P machines, each one process with C cores.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dm2_fast.experiment.machine import header
from dm2_fast.operations.approximate import slots

RESULTS = Path(__file__).resolve().parents[1] / "results" / "scale"
K = 10
NUMBER, ID = 4, 8  # bytes of a distance and of a row's number
METHODS = {"exact": "exact engine", "recall 0.95": "dm2_fast, recall 0.95"}
Row = dict[str, str]


def table(file: Path) -> list[Row]:
    """The lines of the tables of a Markdown file, by the names of their columns."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file.read_text().splitlines() if "|" in line]
    names = lines[0]
    return [dict(zip(names, line, strict=True)) for line in lines[2:]]


@dataclass(frozen=True)
class Seconds:
    """CPU seconds of one process: e^c m^a d^b."""

    a: float
    b: float
    c: float

    @classmethod
    def fitted(cls, rows: list[Row]) -> "Seconds":
        m, d, s = (np.log([float(row[name]) for row in rows]) for name in ("rows", "d", "CPU s"))
        a, b, c = np.linalg.lstsq(np.stack((m, d, np.ones_like(m)), 1), s, rcond=None)[0]
        return cls(float(a), float(b), float(c))

    def of(self, m: float, d: float) -> float:
        return float(np.exp(self.c) * m**self.a * d**self.b)


def sent_exactly(d: int, processes: int, codes: float) -> float:
    """Bytes a row that one process sends: rows to their part of space, then shards with the best so far, and back."""
    p = processes
    moved = (NUMBER * d + (NUMBER + ID) * K + 24) * (1 - 1 / p)
    round_ = p / 2 * (NUMBER * d + 16 + codes + (NUMBER + ID) * K)
    return (moved + round_ + (NUMBER + ID) * K) / p


def sent_by_codes(rows: float, d: int, processes: int, fetched: float) -> float:
    """Bytes a row that one process sends: codes to all, lists to all before three joins, rows that others fetch."""
    p = processes
    return ((p - 1) * (32 + d + 3 * 4 * slots(K, int(rows))) + fetched * (1 - 1 / p)) / p


def held_exactly(d: int, processes: int, codes: float) -> float:
    """Bytes a row of one process: its features, and its shard, the one that it meets and the one that comes."""
    return (3 * (NUMBER * d + 24 + codes + (NUMBER + ID) * K) + NUMBER * d) / processes


def held_by_codes(rows: float, d: int, processes: int) -> float:
    """Bytes a row of one process: codes of all rows, twice while the cells are made; its features, lists and graph."""
    return 2 * (32 + d) + 60 + (NUMBER * d + 2 * ID * slots(K, int(rows)) + (NUMBER + ID) * K) / processes


def three_digits(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{float(f'{number:.3g}'):,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--machines", type=int, default=8)
    parser.add_argument("--cores", type=int, default=32)
    parser.add_argument("--gbit-per-s", type=float, default=10)
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    every = (row for name in ("approximate.md", "growth.md", "wide.md") for row in table(args.results / name))
    one = list({(row["rows"], row["d"], row["method"]): row for row in every}.values())  # the later of two
    most = max(int(row["rows"]) for row in one)
    several = {"exact": table(args.results / "shards.md"), "recall 0.95": table(args.results / "shards_recall.md")}

    print("CPU seconds of one process, m rows of d features; the last two columns were not fitted:\n")
    print("| search | model | rows | d | predicted | measured |\n| --- | --- | --- | --- | --- | --- |")
    seconds = {}
    for search, method in METHODS.items():
        rows = [row for row in one if row["method"] == method]
        model = seconds[search] = Seconds.fitted([row for row in rows if int(row["rows"]) < most])
        unit = model.of(1e6, 128)
        for row in rows:
            if int(row["rows"]) == most:
                m, d = int(row["rows"]), int(row["d"])
                form = f"{unit:.3g} (m / 10^6)^{model.a:.2f} (d / 128)^{model.b:.2f}"
                print(f"| {search} | {form} | {m} | {d} | {model.of(m, d):.0f} | {row['CPU s']} |")

    print("\nSeveral processes: CPU seconds of all, of those of one, and MB that one sends.\n")
    print("| search | rows | processes | times one | MB sent | predicted |\n| --- | --- | --- | --- | --- | --- |")
    times, fitted = {}, {}
    for search, rows in several.items():
        rows = [row for row in rows if row["search"].endswith("processes") and row["MB sent by one"] != "0"]
        sizes = [int(row["search"].split()[0]) for row in rows]
        slope, start = np.polyfit(sizes, [float(row["of one"]) for row in rows], 1)
        times[search] = start + max(0.0, slope) * args.machines
        count = sent_exactly if search == "exact" else partial(sent_by_codes, float(rows[0]["rows"]))
        last = float(rows[-1]["MB sent by one"]) * 1e6 / int(rows[-1]["rows"])
        without, with_one = count(128, sizes[-1], 0.0), count(128, sizes[-1], 1.0)
        fitted[search] = (last - without) / (with_one - without)
        for row, size in zip(rows, sizes, strict=True):
            moved = row["MB sent by one"]
            guess = "fitted" if row is rows[-1] else f"{count(128, size, fitted[search]) * int(row['rows']) / 1e6:.0f}"
            print(f"| {search} | {row['rows']} | {size} | {row['of one']} | {moved} | {guess} |")
    print(f"\nFitted: codes of {fitted['exact']:.0f} bytes a row; {fitted['recall 0.95']:.0f} bytes a row are fetched.")

    p, d = args.machines, 128
    print(f"\n{p} machines of {args.cores} cores, rows of {d} features, k = {K}; none of this was run:\n")
    wire = f"seconds at {args.gbit_per_s:g} Gbit/s"
    print(f"| search | rows | CPU s of all | seconds | GB sent by one | {wire} | GB of one |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for search in METHODS:
        for power in (7, 8, 9):
            rows_of_all = 10.0**power
            cpu = times[search] * seconds[search].of(rows_of_all, d)
            if search == "exact":
                sent, held = sent_exactly(d, p, fitted[search]), held_exactly(d, p, fitted[search])
            else:
                sent, held = sent_by_codes(rows_of_all, d, p, fitted[search]), held_by_codes(rows_of_all, d, p)
            gb = sent * rows_of_all / 1e9
            numbers = cpu, cpu / p / args.cores, gb, 8 * gb / args.gbit_per_s, held * rows_of_all / 1e9
            print(f"| {search} | 10^{power} | {' | '.join(map(three_digits, numbers))} |")


if __name__ == "__main__":
    main()
