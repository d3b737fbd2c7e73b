"""How long one waits before anything happens: the command's help, and the import beyond torch's own.

    python benches/import_time.py [--repeats 5] [--slowest 10]

CPU seconds (user and system) of fresh processes that take turns, medians; then the slowest modules of ours by
`python -X importtime`, which leaves out what was imported before.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

import torch

from dm2_fast.experiment.machine import header

TORCH = "import torch"
CORE = "import torch, dm2_fast; dm2_fast.select, dm2_fast.knn, dm2_fast.fgsm"
RUN = f"{CORE}; dm2_fast.run"
PROCESSES: dict[str, Sequence[str]] = {
    "python": ("-c", "pass"),
    "dm2-fast --version": ("-m", "dm2_fast", "--version"),
    "dm2-fast --help": ("-m", "dm2_fast", "--help"),
    "dm2-fast run --help": ("-m", "dm2_fast", "run", "--help"),
    "import torch": ("-c", TORCH),
    "import torch and the core": ("-c", CORE),
    "import torch and dm2_fast.run": ("-c", RUN),
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """User and system time of python with these arguments."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def slowest(count: int) -> list[tuple[float, str]]:
    """(own seconds, module) of what the core imports after torch."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", CORE], capture_output=True, text=True, check=True)
    lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines()]
    found = [(int(own) / 1e6, name.strip()) for own, _, name in lines if own.strip().isdigit()]
    after_torch = found[[name for _, name in found].index("torch") + 1 :]
    return sorted(after_torch, reverse=True)[:count]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slowest", type=int, default=10)
    options = parser.parse_args()
    print(header(torch.device("cpu")))
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(options.repeats + 1):
        for name, arguments in PROCESSES.items():
            seconds[name].append(cpu_seconds(arguments))
    for name, times in seconds.items():
        print(f"{statistics.median(times[1:]):6.3f} s  {name}")  # the first reads the files from the disk
    print("\nown seconds of the modules after torch")
    for own, name in slowest(options.slowest):
        print(f"{own:6.3f} s  {name}")


if __name__ == "__main__":
    main()
