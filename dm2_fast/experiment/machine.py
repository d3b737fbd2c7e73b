"""Where a run computes, with how many threads, and what its timings depend on."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from dm2_fast.operations import backends
from dm2_fast.threads import threads_of_torch, use_here
from dm2_fast.words import count


def usable_device(name: str) -> torch.device:
    """The device of this name; auto is a GPU if there is one.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device must be auto, cpu or a usable GPU, got {name!r}") from error
    return device


@contextmanager
def reproducible(threads: int | None) -> Iterator[None]:
    """Compute with this many CPU threads (None: as many as before) and with deterministic convolutions."""
    before = threads_of_torch()
    try:
        use_here(threads or before)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        use_here(before)


def command() -> str:
    """What was typed to start this process, as far as the process knows: its program and its arguments."""
    program = Path(sys.argv[0])
    if program.parent.name == "dm2_fast":
        first = "python -m dm2_fast"
    elif program.suffix == ".py":
        first = f"python {program.parent.name}/{program.name}"
    else:
        first = program.name
    return shlex.join([*first.split(), *sys.argv[1:]])


def machine(device: torch.device) -> list[str]:
    """What made a result: the command; the processor and threads; the versions, the commit and the date in UTC."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    processors = f"{count(os.cpu_count() or 1, 'core')}, {count(torch.get_num_threads(), 'thread')}"
    installed = [f"{name} {version}" for name, version in versions()]
    return [
        f"`{command()}`",
        f"{model}, {processors}{gpu}, {backends.extension()}",
        ", ".join([*installed, f"commit {commit.stdout.strip() or 'unknown'}", str(datetime.now(timezone.utc).date())]),
    ]


def header(device: torch.device) -> str:
    """`machine` as a Markdown list, to stand above a result."""
    return "".join(f"- {line}\n" for line in machine(device))


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def versions() -> Iterator[tuple[str, str]]:
    """What is installed: (package, version)."""
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in ("dm2_fast", "torch", "torchvision", "triton", "numpy"):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, f"not installed (pip install {package})"
