"""The processes that torchrun started: how they find each other, their devices and threads, and who speaks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dm2_fast.distributed.group import Group

_PATIENCE = timedelta(days=7)  # with a process that computes; one that has ended is noticed at once
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


def first_to_fail() -> bool:
    """Whether no other process has said yet why all of them end."""
    if _told is None:
        return speaks()
    try:
        return int(_told.add("dm2_fast: why it ended", 1)) == 1
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
