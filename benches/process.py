"""A call in a fresh process: nothing is compiled, cached or left in memory by what ran before."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(*args, **kwargs)` in a process of its own, which ends with the call.

    For seconds and peak memory, call `dm2_fast.paper.clock.measured` in the function, after warming up.

    Raises:
        RuntimeError: the process died. What the function raises is raised here, with the traceback of the process.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *args, **kwargs).result()
        except BrokenProcessPool as error:
            name = getattr(function, "__qualname__", function)
            raise RuntimeError(f"the process of {name} died: it crashed, or was killed for want of memory") from error
