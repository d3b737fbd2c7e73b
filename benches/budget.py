"""A selection from features in a file within a budget of memory: seconds, what the audit found, and memory.

    python benches/budget.py --features FILE.npy [--rows M] [--memory SIZE] [--recall R] [--budget B]

The rows are averages of two random rows of the file, in float16; the head has ten normal rows of length 4. Memory is
that of the process of `dm2-fast select`, once the command was imported and at most: VmHWM of /proc/self/status, with
the pages of files that are mapped, and RssAnon, without them.
"""

import argparse
import contextlib
import io
import os
import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from process import in_fresh_process

from dm2_fast.experiment.machine import header

_TOGETHER = 100_000  # rows that are written at a time


def write(base: np.ndarray, rows: int, folder: Path) -> None:
    """x.npy and head.npz."""
    pairs = np.random.default_rng(rows).integers(0, len(base), (rows, 2))
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float16, (rows, base.shape[1]))
    for i in range(0, rows, _TOGETHER):
        one, other = pairs[i : i + _TOGETHER].T
        x[i : i + _TOGETHER] = (base[one].astype(np.float32) + base[other]) / 2
    weight = np.random.default_rng(0).standard_normal((10, base.shape[1])).astype(np.float32)
    weight *= 4 / np.linalg.norm(weight, axis=1, keepdims=True)
    np.savez(folder / "head.npz", weight=weight, bias=np.zeros(10, np.float32))


def megabytes() -> dict[str, float]:
    """What the system says of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1e3 for words in lines if words[-1] == "kB"}


def select(folder: Path, command: list[str]) -> tuple[dict[str, str], str]:
    """What is measured, and what the command said."""
    import dm2_fast.selecting.command  # noqa: F401
    from dm2_fast.cli import main

    os.chdir(folder)
    before, most, over = megabytes(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            most[0] = max(most[0], megabytes()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said):
        main(command)
    seconds, cpu = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    over.set()
    watcher.join()
    return {
        "seconds": f"{seconds:.0f}",
        "CPU seconds, user and system": f"{cpu.ru_utime:.0f} and {cpu.ru_stime:.0f}",
        "VmHWM before, MB": f"{before['VmHWM']:.0f}",
        "VmHWM at the end, MB": f"{megabytes()['VmHWM']:.0f}",
        "more, MB": f"{megabytes()['VmHWM'] - before['VmHWM']:.0f}",
        "RssAnon before, MB": f"{before['RssAnon']:.0f}",
        "RssAnon at most, MB": f"{most[0]:.0f}",
    }, said.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--memory", default="250MB", metavar="SIZE")
    parser.add_argument("--recall", type=float)
    parser.add_argument("--budget", type=int, default=1000)
    args = parser.parse_args()
    print(header(torch.device("cpu")))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(np.load(args.features, mmap_mode="r"), args.rows, folder)
        command = f"select --features x.npy --head head.npz --budget {args.budget} --memory {args.memory} --output out"
        found, said = in_fresh_process(
            select, folder, [*command.split(), *([] if args.recall is None else ["--dm2.recall", str(args.recall)])]
        )
    print("".join(f"    {line}\n" for line in said.splitlines() if line))
    print("| what | value |\n| --- | --- |")
    for what, value in found.items():
        print(f"| {what} | {value} |")


if __name__ == "__main__":
    main()
