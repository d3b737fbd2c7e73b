"""Where the memory of a machine ends."""

import torch


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is not enough memory."""
    cpu = ("can't allocate memory", "not enough memory")  # of torch's allocator on Linux and on Windows
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(words in str(error) for words in cpu)


def first_line(error: Exception) -> str:
    """What an error says first."""
    return (str(error) or type(error).__name__).splitlines()[0]
