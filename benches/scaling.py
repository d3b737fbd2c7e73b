"""Time of `dm2_fast.knn` on a CPU against the number of rows, of dimensions and of neighbours.

    python benches/scaling.py --features FILE.npy [--vary rows dimensions neighbours] [--out FILE.png]

Rows are a random part of the file's; dimensions are random signed sums of its columns. Each size runs in a process of
its own. Prints the medians of several runs, their peak memory beyond the features and the slope of log time against
log m, and draws them.
"""

import argparse
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from process import in_fresh_process

import dm2_fast
from dm2_fast.experiment.machine import header
from dm2_fast.paper.clock import measured


def rows_of(file: Path, name: str, value: int) -> tuple[np.ndarray, int]:
    """The features of a problem, and its k."""
    rng = np.random.default_rng(0)
    x = rng.permutation(np.load(file))
    m, d = x.shape
    if name == "rows":
        return x[:value], 10
    if name == "neighbours":
        return x, value
    return (x * rng.choice(np.array([-1, 1], np.float32), d)).reshape(m, value, -1).sum(2), 10


def run(file: Path, name: str, value: int, repeats: int) -> tuple[float, int]:
    """Seconds and peak memory of a search, after one in a few rows."""
    x, k = rows_of(file, name, value)
    dm2_fast.knn(x[:2000], min(k, 10))  # start threads
    searches = [measured(lambda: dm2_fast.knn(x, k)) for _ in range(repeats)]
    return statistics.median(seconds for _, seconds, _ in searches), max(peak for _, _, peak in searches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("data/cifar10_features.npy"))
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("--repeats", type=int, default=3)
    names = ["rows", "dimensions", "neighbours"]
    parser.add_argument("--vary", nargs="+", default=names, choices=names)
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    m, d = np.load(args.features, mmap_mode="r").shape
    vary = {
        "rows": [m // 8, m // 4, m // 2, m],
        "dimensions": [width for width in (32, 64, 128, 256, 512, 1024, 2048) if width <= d],
        "neighbours": [1, 10, 50, 200],
    }
    print(f"{m} x {d}, {torch.get_num_threads()} threads; k = 10 where it does not vary\n")
    print("| | seconds | peak memory, MB |\n| --- | --- | --- |")
    slope = None
    figure, axes = plt.subplots(1, len(args.vary), figsize=(4 * len(args.vary), 4), squeeze=False)
    for axis, name in zip(axes[0], args.vary, strict=True):
        times = []
        for value in vary[name]:
            seconds, peak = in_fresh_process(run, args.features, name, value, args.repeats)
            times.append(seconds)
            print(f"| {value} {name} | {seconds:.2f} | {peak / 2**20:.0f} |", flush=True)
        axis.loglog(vary[name], times, "o-")
        axis.set(xlabel=name, ylabel="seconds")
        if name == "rows":
            slope = np.polyfit(np.log(vary[name]), np.log(times), 1)[0]
            axis.set_title(f"slope {slope:.2f}")
    if slope is not None:
        print(f"\nslope of log seconds against log rows: {slope:.2f}")
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
