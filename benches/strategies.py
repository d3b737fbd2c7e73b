"""Selection time and peak memory of every strategy, forward passes excluded.

    python benches/strategies.py [--features-file FILE.npy] [--rows M] [--features D] [--classes C] [--budget B]
        [--passes T] [--repeats N] [--strategies NAME ...] [--out FOLDER]

The model is dropout and a linear layer, and the pool holds the features themselves (the file's, or synthetic ones), so
that a forward pass is next to nothing. The passes that a strategy names (features, logits, dropout passes, noisy
networks, gradients, mixed samples) are behind it before the clock starts; their seconds stand beside. Each strategy
runs in a process of its own; memory is the most that a choice takes beyond what was resident before it. Writes
strategies.csv and strategies.md into the folder, and strategies.yaml with the settings, the machine, the versions, the
commit and the date.
"""

import argparse
import csv
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from process import in_fresh_process
from torch import Tensor, nn

from dm2_fast import Round, Strategy, select_from, strategies
from dm2_fast.experiment.machine import machine
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.clock import measured

TARGETS = dict.fromkeys(("random", "least-confidence", "entropy", "margin", "bald", "entropy-bayesian"), 1)
TARGETS |= dict.fromkeys(("coreset", "badge"), 20)
TARGETS |= dict.fromkeys(("prob-cover", "alpha-mix", "noise-stability", "uncertain-gcn", "core-gcn"), 60)
TARGETS |= dict.fromkeys(("ent-gn", "exp-gn", "isal", "ll4al", "vaal"), 1) | {"qbc": 5, "cluster-margin": 60}


def synthetic(rows: int, features: int) -> Tensor:
    """Features like those of a network: positive, correlated, in groups."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(32, features, generator=generator)
    groups = torch.randn(100, 32, generator=generator)[torch.randint(100, (rows,), generator=generator)]
    return ((groups + 0.7 * torch.randn(rows, 32, generator=generator)) @ basis).relu_()


def make_round(strategy: Strategy, options: Any, x: Tensor, classes: int, labelled: int) -> Round:
    """A round whose features are x, with the passes of the strategy behind it."""
    generator = torch.Generator().manual_seed(1)
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        weight = torch.randn(classes, x.shape[1], generator=generator)
        weight *= 3 / ((x[:2000] - x[:2000].mean(0)) @ weight.T).std()
        head.weight.copy_(weight)
        head.bias.copy_(-weight @ x.mean(0))
        pairs = torch.randint(len(x), (2, labelled), generator=generator)
        known = (x[pairs[0]] + x[pairs[1]]) / 2
        labels = head(known).argmax(1)
    round = Round(ForwardPass(nn.Sequential(nn.Dropout(0.25), head), x), labelled=known, labels=labels)
    for shared in strategy.passes:
        shared.run(round, options)
    return round


def options_of(strategy: Strategy, passes: int) -> Any:
    """The default options, with this number of passes where there are any."""
    options = strategy.checked(None)
    return replace(options, passes=passes) if hasattr(options, "passes") else options


def run(name: str, args: argparse.Namespace) -> tuple[list[float], int, float]:
    """Warm up on a few rows, then choose: seconds of each repeat, the peak memory, and the seconds of the passes."""
    torch.set_num_threads(args.num_threads)
    x, strategy = load(args), strategies.get(name)
    options = options_of(strategy, args.passes)
    select_from(make_round(strategy, options, x[:2000].clone(), args.classes, 100), 10, strategy, options)
    round = make_round(strategy, options, x, args.classes, args.labelled)
    passes, choices = sum(round.seconds.values()), []
    for _ in range(args.repeats):
        round.remembered.clear()
        choices.append(measured(lambda: select_from(round, args.budget, strategy, options)))
    return [seconds for _, seconds, _ in choices], max(peak for _, _, peak in choices), passes


def load(args: argparse.Namespace) -> Tensor:
    if args.features_file is None:
        return synthetic(args.rows, args.features)
    x = np.load(args.features_file, mmap_mode="r")[: args.rows, : args.features]
    return torch.from_numpy(np.array(x, dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features-file", type=Path)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--labelled", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--passes", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--strategies", nargs="+", default=strategies.names(), choices=strategies.names())
    parser.add_argument("--out", type=Path, default=Path("results/strategies"))
    args = parser.parse_args()
    torch.set_num_threads(args.num_threads)
    m, d = load(args).shape
    made = machine(torch.device("cpu"))
    settings = {
        "rows": m, "features": d, "synthetic": args.features_file is None, "classes": args.classes,
        "labelled": args.labelled, "budget": args.budget, "passes": args.passes, "repeats": args.repeats,
        "threads": args.num_threads,
    }  # fmt: skip
    about = (
        f"{m} x {d} features{'' if args.features_file else ' (synthetic)'}, {args.classes} classes, {args.labelled} "
        f"labelled, budget {args.budget}, {args.passes} passes; median of {args.repeats}"
    )
    table = [f"- {line}" for line in (*made, about)]
    table += ["", "| strategy | seconds | target | peak memory, MB | passes, s |", "| --- | --- | --- | --- | --- |"]
    print("\n".join(table), flush=True)
    rows = []
    for name in args.strategies:
        times, peak, passes = in_fresh_process(run, name, args)
        seconds, megabytes = statistics.median(times), peak / 2**20
        rows.append(
            (name, f"{seconds:.4f}", f"{min(times):.4f}", f"{max(times):.4f}", f"{megabytes:.0f}", f"{passes:.4f}")
        )
        target = f"< {TARGETS[name]}" if name in TARGETS else ""
        table.append(f"| {name} | {seconds:.3g} | {target} | {megabytes:.0f} | {passes:.3g} |")
        print(table[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "strategies.md").write_text("\n".join(table) + "\n")
    (args.out / "strategies.yaml").write_text(yaml.safe_dump(settings | {"machine": made}, sort_keys=False, width=1000))
    with (args.out / "strategies.csv").open("w", newline="") as file:
        columns = ("strategy", "seconds", "seconds_min", "seconds_max", "peak_mb", "seconds_passes")
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    main()
