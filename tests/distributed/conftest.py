"""Processes of a gloo group that stay for the session and run what a test asks of them."""

import multiprocessing
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from processes import PROCESSES, serve


@pytest.fixture(scope="session")
def in_processes() -> Iterator[Callable[..., list[Any]]]:
    """Call `in_processes(work, [arguments of each process])`: what work(group, *arguments) returns in each process, or
    the error of the first that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "dm2_fast", "dm2_fast.distributed.ring"])
    pipes = [context.Pipe() for _ in range(PROCESSES)]
    workers = [context.Process(target=serve, args=(i, port, there)) for i, (_, there) in enumerate(pipes)]
    for worker in workers:
        worker.start()

    def call(work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
        for (here, _), given in zip(pipes, arguments, strict=False):
            here.send((work, len(arguments), given))
        found = [here.recv() for (here, _), _ in zip(pipes, arguments, strict=False)]
        for _, error in found:
            if error is not None:
                raise error
        return [result for result, _ in found]

    yield call
    for here, _ in pipes:
        here.send(None)
    for worker in workers:
        worker.join(20)
        worker.kill()
