"""Time of `dm2_fast.knn` on a CPU against the number of rows, of dimensions and of neighbours.

    python benches/scaling.py --features FILE.npy [--vary rows dimensions neighbours] [--out FILE.png]

Rows are a random part of the file's; dimensions are random signed sums of its columns. Prints the medians of several
runs, the slope of log time against log m and the peak memory of the process, and draws them.
"""

import argparse
import resource
import statistics
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import dm2_fast


def seconds(x: np.ndarray, k: int, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        dm2_fast.knn(x, k)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, default=Path("data/cifar10_features.npy"))
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vary", nargs="+", default=["rows", "dimensions", "neighbours"])
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    x = rng.permutation(np.load(args.features))
    m, d = x.shape

    sizes = [m // 8, m // 4, m // 2, m]
    widths = [width for width in (32, 64, 128, 256, 512, 1024, 2048) if width <= d]
    mix = rng.choice(np.array([-1, 1], np.float32), d)
    vary = {
        "rows": (sizes, lambda n: (x[:n], 10)),
        "dimensions": (widths, lambda width: ((x * mix).reshape(m, width, -1).sum(2), 10)),
        "neighbours": ([1, 10, 50, 200], lambda k: (x, k)),
    }
    print(f"{m} x {d}, {torch.get_num_threads()} threads; k = 10 where it does not vary\n")
    print("| | seconds |\n| --- | --- |")
    figure, axes = plt.subplots(1, len(args.vary), figsize=(4 * len(args.vary), 4), squeeze=False)
    for axis, name in zip(axes[0], args.vary, strict=True):
        values, problem = vary[name]
        times = []
        for value in values:
            times.append(seconds(*problem(value), args.repeats))
            print(f"| {value} {name} | {times[-1]:.2f} |", flush=True)
        axis.loglog(values, times, "o-")
        axis.set(xlabel=name, ylabel="seconds")
        if name == "rows":
            slope = np.polyfit(np.log(values), np.log(times), 1)[0]
            axis.set_title(f"slope {slope:.2f}")
    if "rows" in args.vary:
        print(f"\nslope of log seconds against log rows: {slope:.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, {x.nbytes / 2**30:.1f} GB of features included: {peak:.1f} GB")
    figure.tight_layout()
    figure.savefig(args.out)


if __name__ == "__main__":
    main()
