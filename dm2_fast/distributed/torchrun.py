"""The processes that torchrun started: how they find each other, their devices and threads, and who speaks."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dm2_fast.distributed.group import Group

_PATIENCE = timedelta(days=7)  # with a process that computes; one that has ended is noticed at once
_LAST_WORDS = 10.0  # seconds
_told: Any = None  # the store of all processes


def started() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


@contextmanager
def processes() -> Iterator[Group]:
    """The group of all processes that were started together."""
    global _told
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    _told = store
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device("auto"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        yield Group()
    finally:
        dist.destroy_process_group()


def speaks() -> bool:
    """Whether this process is the one that prints: that of rank 0, or any that torchrun did not start."""
    return not started() or os.environ["RANK"] == "0"


def first_to_fail(lost: bool) -> bool:
    """Whether no other process has said yet why all of them end; lost: whether one of them has ended without a word.

    Rank 0 keeps the store in which this is noted, so it stays until the others have asked, for _LAST_WORDS at most.
    """
    if _told is None:
        return speaks()
    note, others = "dm2_fast: why it ended", int(os.environ["WORLD_SIZE"]) - lost
    try:
        first = int(_told.add(note, 1)) == 1
        until = time.monotonic() + _LAST_WORDS
        while os.environ["RANK"] == "0" and int(_told.add(note, 0)) < others and time.monotonic() < until:
            time.sleep(0.02)
        return first
    except RuntimeError:  # the process that keeps the store has ended
        return True


def threads() -> int:
    """Threads of this process: its share of the cores that it may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def device(name: str) -> str:
    """The device of this process where a GPU is not named."""
    if name != "auto" or not torch.cuda.is_available():
        return name
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
