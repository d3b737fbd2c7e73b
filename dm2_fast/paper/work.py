"""Work that several processes share: who does which job is decided by locks that end with their process."""

import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_PINNED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Claims:
    """Claims on numbered jobs, one byte of a file each. All are given up when the block or the process ends.

    One process must not open the same file twice: the system then gives up the claims of both.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator["Claims"]:
        """Open the file of the claims, or make it."""
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            yield cls(descriptor)
        finally:
            os.close(descriptor)

    def take(self, job: int) -> bool:
        """Claim a job, if no other process has."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, job)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def leave(self, job: int) -> None:
        """Give up a claim."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, job)


def side_by_side(work: Callable[..., None], arguments: Sequence[object], jobs: int) -> None:
    """Call work(*arguments) in so many new processes, each on a core and with one thread of its own.

    Raises:
        RuntimeError: one of them failed; the others end what they are at.
    """
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in _PINNED}
    os.environ |= dict.fromkeys(_PINNED, "1")  # before a library in the new process reads it
    try:
        processes = [context.Process(target=_pinned, args=(i, work, arguments)) for i in range(jobs)]
        for process in processes:
            process.start()
        try:
            while any(process.is_alive() for process in processes):
                time.sleep(0.05)
                if any(process.exitcode for process in processes):
                    break
        except KeyboardInterrupt:
            for process in processes:
                process.join(10)
            raise
        finally:
            for process in processes:
                process.terminate() if any(p.exitcode for p in processes) else process.join()
                process.join()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    failed = [process.exitcode for process in processes if process.exitcode]
    if failed:
        raise RuntimeError(f"{len(failed)} of {jobs} processes failed; what they said stands above")


def _pinned(number: int, work: Callable[..., None], arguments: Sequence[object]) -> None:
    import torch

    with suppress(OSError, AttributeError):  # where the system has no such call, or allows none
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[number % len(cores)]})
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, _interrupt)  # what is done is kept
    with suppress(KeyboardInterrupt):
        work(*arguments)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
