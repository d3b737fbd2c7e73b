"""Selection time and peak memory of every strategy, forward passes excluded.

    python benches/strategies.py [--features-file FILE.npy] [--rows M] [--features D] [--classes C] [--budget B]
        [--passes T] [--repeats N] [--strategies NAME ...] [--out FOLDER]

The model is dropout and a linear layer, and the pool holds the features themselves (the file's, or synthetic ones), so
that a forward pass is next to nothing. What strategies share (features, logits, the labelled set's features, dropout
passes, noisy networks) is in the round before the clock starts; the pass that DM2 makes on its own (mixed samples) is
taken off. Each strategy runs in a process of its own; memory is the peak beyond what was resident before
the call, over all repeats. Writes strategies.csv and strategies.md into the folder.
"""

import argparse
import csv
import multiprocessing
import platform
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dm2_fast import Round, strategies
from dm2_fast.experiment.config import RunConfig, strategy_options
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.noise_stability import NoiseStabilityConfig, noise

WITH_DROPOUT = ("bald", "entropy-bayesian")
TARGETS = dict.fromkeys(("random", "least-confidence", "entropy", "margin", "bald", "entropy-bayesian"), 1)
TARGETS |= dict.fromkeys(("coreset", "badge"), 20)
TARGETS |= dict.fromkeys(("prob-cover", "alpha-mix", "noise-stability", "uncertain-gcn", "core-gcn"), 60)


def synthetic(rows: int, features: int) -> Tensor:
    """Features like those of a network: positive, correlated, in groups."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(32, features, generator=generator)
    groups = torch.randn(100, 32, generator=generator)[torch.randint(100, (rows,), generator=generator)]
    return ((groups + 0.7 * torch.randn(rows, 32, generator=generator)) @ basis).relu_()


def make_round(name: str, x: Tensor, classes: int, labelled: int, passes: int) -> Round:
    """A round whose features are x, with what the strategy shares with others computed."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Dropout(0.25), nn.Linear(x.shape[1], classes))
    with torch.no_grad():
        weight = torch.randn(classes, x.shape[1], generator=generator)
        weight *= 3 / ((x[:2000] - x[:2000].mean(0)) @ weight.T).std()
        model[1].weight.copy_(weight)
        model[1].bias.copy_(-weight @ x.mean(0))
        pairs = torch.randint(len(x), (2, labelled), generator=generator)
        known = (x[pairs[0]] + x[pairs[1]]) / 2
        labels = model.eval()(known).argmax(1)
    round = Round(ForwardPass(model, x), labelled=known, labels=labels)
    _ = round.features, round.logits, round.head, round.labelled_features
    if name in WITH_DROPOUT:
        round.dropout(passes)
    if name == "noise-stability":
        noise(round, NoiseStabilityConfig(passes=passes))
    return round


def options_of(name: str, passes: int) -> object:
    """The default options, with this number of passes where there are any."""
    options = strategy_options(RunConfig(strategy=name))
    return replace(options, passes=passes) if hasattr(options, "passes") else options


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def measure(name: str, args: argparse.Namespace, send: Connection) -> None:
    """Warm up on a few rows, then choose; send the times and the peak memory."""
    torch.set_num_threads(args.num_threads)
    x = load(args)
    options, choose = options_of(name, args.passes), strategies.get(name)
    choose(make_round(name, x[:2000].clone(), args.classes, 100, args.passes), 10, options)
    round = make_round(name, x, args.classes, args.labelled, args.passes)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, times = _memory("VmRSS"), []
    for _ in range(args.repeats):
        start = time.perf_counter()
        picked = choose(round, args.budget, options)
        seconds = time.perf_counter() - start
        times.append(seconds - picked.seconds.get("mixed", 0))
        assert len(picked.indices.unique()) == args.budget
    send.send((times, _memory("VmHWM") - before))


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
    m, d = load(args).shape
    head = (
        f"{m} x {d} features{'' if args.features_file else ' (synthetic)'}, {args.classes} classes, {args.labelled} "
        f"labelled, budget {args.budget}, {args.passes} passes; median of {args.repeats}; {args.num_threads} threads, "
        f"{platform.machine()}, torch {torch.__version__}"
    )
    table = [head, "", "| strategy | seconds | target | peak memory, MB |", "| --- | --- | --- | --- |"]
    print("\n".join(table), flush=True)
    context, rows = multiprocessing.get_context("spawn"), []
    for name in args.strategies:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(name, args, send))
        process.start()
        send.close()
        try:
            times, memory = receive.recv()
        except EOFError:
            table.append(f"| {name} | failed | | |")
        else:
            seconds, megabytes = statistics.median(times), memory / 2**20
            rows.append((name, f"{seconds:.4f}", f"{min(times):.4f}", f"{max(times):.4f}", f"{megabytes:.0f}"))
            target = f"< {TARGETS[name]}" if name in TARGETS else ""
            table.append(f"| {name} | {seconds:.3g} | {target} | {megabytes:.0f} |")
        finally:
            process.join()
        print(table[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "strategies.md").write_text("\n".join(table) + "\n")
    with (args.out / "strategies.csv").open("w", newline="") as file:
        columns = ("strategy", "seconds", "seconds_min", "seconds_max", "peak_mb")
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


if __name__ == "__main__":
    main()
