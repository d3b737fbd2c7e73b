"""Where a run computes, and with how many threads."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            yield
    finally:
        torch.set_num_threads(before)
