"""What lets several threads call this library at once, on the same models and on others.

- One call at a time runs a caller's models on a device, since it switches their mode, hooks them and may draw from the
  device's random state. What runs on copies of models, or on none, runs side by side.
- Batches that run side by side do so on threads that are kept, each with one thread of torch. How many threads torch
  uses in any other thread does not change.
- What scikit-learn clusters with has one number of threads for the whole process: one call at a time changes it.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from threading import Lock, RLock, Thread
from typing import TypeVar

import torch

from dm2_fast import extras

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST = 2**15  # threads that are kept; a call uses as many of them as it has threads


class _Process:
    """The locks and threads of this process; a forked child has its own, since a lock may be held in the parent."""

    def __init__(self) -> None:
        self.guards: dict[torch.device, RLock] = {}
        self.counting = Lock()
        self.clustering = Lock()
        self.tracing = Lock()
        self.starting = Lock()
        self.executor: ThreadPoolExecutor | None = None


_process = _Process()


def _forget() -> None:
    global _process
    _process = _Process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def guarding(device: torch.device) -> Iterator[None]:
    """Keep all other calls from the callers' models on a device, and from its random state."""
    with _process.guards.setdefault(device, RLock()):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let what draws from torch's random state draw from a seed, and leave that state as it was.

    Other calls on models of the device wait meanwhile.
    """
    with guarding(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def threads_of_torch() -> int:
    """`torch.get_num_threads()`. The first call in a thread decides for good, and must not meet `use_here`."""
    with _process.counting:
        return torch.get_num_threads()


def _in_another(work: Callable[[], Result]) -> Result:
    """What work returns in a new thread."""
    found: list[Result] = []
    thread = Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def use_here(count: int) -> None:
    """Let torch use so many threads when called from this thread, but as many as before when called from a new one."""
    with _process.counting:
        everywhere = _in_another(torch.get_num_threads)
        torch.get_num_threads()  # the first use in a thread takes over the number for all
        torch.set_num_threads(count)
        _in_another(partial(torch.set_num_threads, everywhere))


def submit(work: Callable[[], Result]) -> "Future[Result]":
    """Run work on a kept thread, in which torch uses one thread."""
    process = _process
    with process.starting:
        if process.executor is None:
            process.executor = ThreadPoolExecutor(_MOST, "dm2_fast", partial(use_here, 1))
        return process.executor.submit(work)


def each(work: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> Generator[Result, None, None]:
    """What work returns for each item, in order, on kept threads, of which at most num_threads are busy.

    An error ends the call: what has not begun is left out, what has begun is waited for.
    """
    results: list[Future[Result]] = [Future() for _ in items]
    left, taking = iter(zip(items, results, strict=True)), Lock()
    stopped = False

    def run() -> None:
        nonlocal stopped
        while True:
            with taking:
                item, result = (None, None) if stopped else next(left, (None, None))
            if result is None:
                return
            try:
                result.set_result(work(item))  # type: ignore[arg-type]
            except BaseException as error:
                with taking:
                    stopped = True
                result.set_exception(error)

    runs = [submit(run) for _ in range(min(num_threads, len(results)))]
    try:
        for result in results:
            yield result.result()
    finally:
        with taking:
            stopped = True
        wait(runs)


@contextmanager
def tracing() -> Iterator[None]:
    """Keep other calls from tracing, which marks functions of modules that all threads see."""
    with _process.tracing:
        yield


@contextmanager
def clustering() -> Iterator[None]:
    """Keep other calls from clustering by scikit-learn, on one thread meanwhile: its sums depend on their number."""
    with extras.needed("strategies", "clustering"):
        from threadpoolctl import threadpool_limits

    with _process.clustering, threadpool_limits(1):
        yield
