"""Where the memory of a machine ends."""

import torch
from torch import cuda

from dm2_fast.operations.memory import as_bytes

_LISTS = 2**11  # bytes that the search of neighbours on a GPU keeps for each row beside a copy of its features


def room(device: torch.device, memory: int | str | None = None) -> int:
    """Bytes that are free on a CUDA device, or as many as `memory` allows, if that is less."""
    free = cuda.mem_get_info(device)[0] + cuda.memory_reserved(device) - cuda.memory_allocated(device)
    return free if memory is None else min(free, as_bytes(memory))


def wanted(m: int, features: int, logits: int) -> int:
    """Bytes that the features and logits of m rows take on a device, given the bytes of each in a row.

    Both are there twice while their parts become one, and then the search of neighbours copies the features.
    """
    return m * (2 * (features + logits) + features + _LISTS)


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory."""
    cpu = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux and on Windows
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in cpu)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error) or type(error).__name__).splitlines()[0]
