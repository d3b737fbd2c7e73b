"""What a machine grants a forward pass: threads and memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """Threads that an operator of torch uses, when called from this thread or from one that is yet to start."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory."""
    cpu = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux and on Windows
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in cpu)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error) or type(error).__name__).splitlines()[0]
