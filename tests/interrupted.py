"""Runs an experiment that ends before its time, again and again, each in a process of its own.

    python interrupted.py FOLDER    the run, uninterrupted: FOLDER/reference
                                    killed at twenty moments and resumed: FOLDER/killed_NN
                                    with files limited in size, as by a full disk, and resumed: FOLDER/full_NN

A moment is the n-th call of a Python or C function, so that it is the same on every machine.
"""

import csv
import os
import random
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from dm2_fast import DM2Config, RunConfig
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.experiment.loop import run

torch.set_num_threads(1)

CONFIG = RunConfig(
    strategy="dm2-at", initial=12, budget=5, rounds=2, pool=60, test=30, threads=1, options=DM2Config(k=3),
    training=TrainingConfig(epochs=3, optimizer="sgd", lr=0.02, augment="flip-crop"),
)  # fmt: skip
MOMENTS = 20
SIZES = (100, 5_000, 31_000, 60_000, 250_000)


class Clock:
    """Counts calls, and kills the process at one of them."""

    def __init__(self, last: int | None) -> None:
        self.calls = 0
        self.last = last

    def __call__(self, frame: object, event: str, argument: object) -> None:
        self.calls += 1
        if self.calls == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(work: Callable[[], None]) -> int:
    """Do the work in a fork and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except OSError as error:
            print(f"refused: {error}", file=sys.stderr)
            os._exit(28)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def attempt(output: Path, *, kill_at: int | None = None, size: int | None = None, count: Path | None = None) -> int:
    def work() -> None:
        checkpoint.SECONDS_BETWEEN_WRITES = 0.0
        clock = Clock(kill_at)
        if size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        if kill_at is not None or count is not None:
            sys.setprofile(clock)
        run(replace(CONFIG, output=output))
        sys.setprofile(None)
        if count is not None:
            count.write_text(str(clock.calls))

    return in_a_process(work)


def without_seconds(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: without_seconds(value) for key, value in content.items() if not str(key).startswith("seconds")}
    if isinstance(content, list):
        return [without_seconds(value) for value in content]
    return content.tolist() if isinstance(content, torch.Tensor) else content


def contents(folder: Path) -> dict[str, Any]:
    """Every file of a run, timings aside."""
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(file.relative_to(folder))
        if name == "rounds.csv":
            with file.open() as lines:
                found[name] = [without_seconds(line) for line in csv.DictReader(lines)]
        elif name.startswith("checkpoints"):
            found[name] = without_seconds(checkpoint.read(file))
        else:
            found[name] = file.read_bytes()
    return found


def main(folder: Path) -> None:
    load("digits")  # what every process would do again, as far as it starts no thread
    Figure().savefig(folder / "warm_up.png")
    assert attempt(folder / "reference", count=folder / "calls") == 0
    calls = int((folder / "calls").read_text())
    draw = random.Random(0)
    for i in range(MOMENTS):
        output = folder / f"killed_{i:02d}"
        assert os.WTERMSIG(attempt(output, kill_at=draw.randrange(1, calls * 97 // 100))) == signal.SIGKILL
        assert attempt(output) == 0
    for i, size in enumerate(SIZES):
        output = folder / f"full_{i:02d}"
        assert os.waitstatus_to_exitcode(attempt(output, size=size)) == 28, size
        assert attempt(output) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
