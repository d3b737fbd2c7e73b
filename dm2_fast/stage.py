"""The clock of a stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Store the wall time of a stage in seconds, with the device synchronised at both ends."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    yield
    seconds[name] = now() - start
