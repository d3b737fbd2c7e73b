"""A clock that keeps every timing in a file: seconds, and the most memory that was in use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch

from dm2_fast.paper.timings import Timing, read_timings, write_timings

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A part of the table: an axis and a place on it."""

    axis: str
    classes: int
    budget: int


class Clock:
    """Times calls and keeps every timing in a file.

    Args:
        file: timings.csv; what it holds already counts as timed.
        device: Synchronised before and after each call.
    """

    def __init__(self, file: Path, device: torch.device) -> None:
        self.file = file
        self.device = device
        self.timings = read_timings(file)

    def of(self, part: Wanted, kind: str, name: str) -> list[Timing]:
        """The timings of a selection, or of a pass (whose budget is 0 if it does not depend on it)."""
        return [
            t
            for t in self.timings
            if (t.axis, t.classes, t.part, t.name) == (part.axis, part.classes, kind, name)
            and t.budget in (0, part.budget)
        ]

    def has(self, part: Wanted, kind: str, name: str, repeat: int = 0) -> bool:
        """Whether this was timed."""
        return any(t.repeat == repeat for t in self.of(part, kind, name))

    def measure(self, call: Callable[[], T]) -> tuple[T, float, int]:
        """`measured` on the device of this clock."""
        return measured(call, self.device)

    def add(self, timing: Timing) -> None:
        """Keep a timing."""
        self.timings.append(timing)
        write_timings(self.file, self.timings)


def measured(call: Callable[[], T], device: torch.device | str = "cpu") -> tuple[T, float, int]:
    """The result of a call, its seconds, and the most bytes that were in use beyond those before it.

    The bytes are those of the GPU for a CUDA device, else those of this process.
    """
    device = torch.device(device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
    start = perf_counter()
    result = call()
    if on_cuda:
        torch.cuda.synchronize(device)
    seconds = perf_counter() - start
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else _resident("VmHWM")
    return result, seconds, max(0, peak - before)


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"cannot measure memory: /proc/self/status has no {name}")
