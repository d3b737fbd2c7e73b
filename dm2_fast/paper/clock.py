"""A clock that keeps every timing in a file: seconds, and the most memory that was in use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from dm2_fast.paper.timings import Timing, read_timings, write_timings


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

    def measure(self, call: Callable[[], Any]) -> tuple[Any, float, int]:
        """The result of a call, its seconds, and the most bytes that were in use beyond those before it."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before = _resident("VmRSS")
        start = perf_counter()
        result = call()
        if on_cuda:
            torch.cuda.synchronize(self.device)
        seconds = perf_counter() - start
        peak = torch.cuda.max_memory_allocated(self.device) if on_cuda else _resident("VmHWM")
        return result, seconds, max(0, peak - before)

    def add(self, timing: Timing) -> None:
        """Keep a timing."""
        self.timings.append(timing)
        write_timings(self.file, self.timings)


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status must hold {name}, got none")
