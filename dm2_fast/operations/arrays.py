"""What users pass as data: tensors, arrays, memory maps, and anything else that can be indexed by an integer array."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor


class ArrayLike(Protocol):
    """A pool of samples: a tensor, an ndarray, a np.memmap, an h5py or zarr data set."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...


def as_tensor(x: Any, name: str) -> Tensor:
    """x as a detached tensor that shares its memory."""
    if isinstance(x, Tensor):
        return x.detach()
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {type(x).__name__}")
    if x.dtype.byteorder not in "=|" and x.dtype.byteorder != np.dtype(x.dtype.newbyteorder("=")).byteorder:
        raise TypeError(f"{name} must have native byte order, got dtype {x.dtype.str}")
    if any(stride < 0 for stride in x.strides):
        x = x.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # read-only maps are read, never written
        try:
            return torch.from_numpy(x)
        except TypeError as error:
            raise TypeError(f"{name} must have a numeric dtype, got {x.dtype}") from error


def gather(inputs: ArrayLike, rows: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A tensor that holds at least the given rows of inputs, and where in it they are.

    Tensors and arrays are used in place; from anything else (h5py, zarr) the distinct rows are read in rising order.
    """
    if isinstance(inputs, (Tensor, np.ndarray)):
        return as_tensor(inputs, name), rows
    distinct, where = torch.unique(rows, return_inverse=True)
    return as_tensor(np.asarray(inputs[distinct.cpu().numpy()]), name), where


def name_rows(rows: Sequence[int], most: int = 5) -> str:
    """Name the first few of what may be many rows, as in `rows 3, 17, 20 and 4 more`."""
    shown = ", ".join(str(row) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
