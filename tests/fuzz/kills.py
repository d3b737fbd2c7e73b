"""Runs and selections that are killed at random times, by SIGKILL: done again, they end with the same files."""

import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import interrupted
import numpy as np
from fuzz.files import quietly
from matplotlib.figure import Figure

from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.experiment.loop import run
from dm2_fast.strategies.qbc import QBCConfig
from dm2_fast.strategies.vaal import VAALConfig


@cache
def pool() -> Path:
    """Files to select from."""
    folder, rng = Path(tempfile.mkdtemp(prefix="dm2-fast-kills-")), np.random.default_rng(0)
    np.save(folder / "pool.npy", rng.integers(0, 256, (300, 3, 4, 4), np.uint8))
    (folder / "labelled.csv").write_text("row,label\n" + "".join(f"{i},{i % 3}\n" for i in range(8)))
    return folder


def select(folder: Path) -> None:
    given = ("--pool", pool() / "pool.npy", "--labelled", pool() / "labelled.csv", "--model", "fuzz.files:network")
    asked = ("--budget", 20, "--batch-size", 8, "--threads", 1, "--output", folder / "selected")
    status, errors = quietly(["select", *map(str, (*given, *asked))])
    assert status == 0, errors


def content(file: Path) -> bytes:
    return file.read_bytes() if file.name == "selected.csv" else b""


# Of DM2-AT; and of what trains a module beside the network, other networks, or remembers.
RUNS: dict[str, dict[str, Any]] = {
    "dm2-at": {},
    "vaal": {"strategy": "vaal", "options": VAALConfig(latent=4, width=4)},
    "ll4al": {"strategy": "ll4al", "options": None},
    "qbc": {"strategy": "qbc", "options": QBCConfig("networks", networks=2)},
    "cluster-margin": {"strategy": "cluster-margin", "options": None},
}

# From a folder for what is written, what is done there; and what it left.
Work = Callable[[Path], object]
Done = tuple[Work, Callable[[Path], Any]]


def a_run(changes: dict[str, Any]) -> Done:
    return (
        lambda folder: run(replace(interrupted.CONFIG, output=folder / "run", **changes)),
        lambda folder: interrupted.contents(folder / "run"),
    )


DONE: dict[str, Done] = {
    **{name: a_run(changes) for name, changes in RUNS.items()},
    "select": (
        select,
        lambda folder: {str(file.relative_to(folder)): content(file) for file in folder.rglob("*")},
    ),
}


@cache
def reference(name: str) -> tuple[Any, float]:
    """What the work leaves where nobody kills it, and the seconds that it takes."""
    pool()
    load("digits")  # what every process would do again, as far as it starts no thread
    with tempfile.TemporaryDirectory() as scratch:
        Figure().savefig(Path(scratch) / "warm_up.png")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.monotonic()
        assert killed(name, Path(scratch), None) == 0
        return DONE[name][1](Path(scratch)), time.monotonic() - start


def killed(name: str, folder: Path, after: float | None) -> int:
    """The wait status of a process that does the work, and is killed after these seconds."""
    child = os.fork()
    if child == 0:
        checkpoint.SECONDS_BETWEEN_WRITES = 0.0
        try:
            DONE[name][0](folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def case(seed: int) -> None:
    draw = random.Random(seed)
    name = draw.choice(list(DONE))
    want, seconds = reference(name)
    with tempfile.TemporaryDirectory() as scratch:
        folder, times = Path(scratch), []
        for _ in range(draw.choice((1, 1, 2))):
            if (folder / "selected").exists():  # a selection that was done is not done again
                break
            times.append(draw.uniform(0, seconds))
            killed(name, folder, times[-1])
        what = f"{name}, killed after {times} of {seconds} s"
        if not (folder / "selected").exists():
            status = killed(name, folder, None)
            assert status == 0, f"{what}, ends with status {status} afterwards"
        left = DONE[name][1](folder)
        wrong = sorted(file for file in {*left, *want} if left.get(file) != want.get(file))
        assert not wrong, f"{what}, leaves others than it should: {wrong}"
