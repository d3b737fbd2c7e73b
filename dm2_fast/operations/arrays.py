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


def as_matrix(x: Any, name: str) -> Tensor:
    """A non-empty (rows, columns) matrix of floating point: a tensor, an array, a list of rows, or a table.

    Integers become float32 where it holds each of them exactly, else float64.

    Raises:
        ValueError: x is no matrix, is empty, or holds integers that float64 does not hold exactly.
        TypeError: it holds something else than numbers.
    """
    if not isinstance(x, (Tensor, np.ndarray)):
        if hasattr(x, "to_numpy"):  # tables of pandas and polars
            x = x.to_numpy()
        elif isinstance(x, (list, tuple)):
            try:
                x = np.asarray([row.tolist() if isinstance(row, Tensor) else row for row in x])
            except ValueError as error:
                raise ValueError(f"{name} must have as many numbers in each row ({error})") from error
        if isinstance(x, np.ndarray) and x.dtype.kind in "OUS":
            raise TypeError(f"{name} must hold numbers only, got {x.dtype}: leave out columns of text, or encode them")
    x = as_tensor(x, name)
    if x.ndim != 2:
        hint = ": a single row is [row]" if x.ndim == 1 else ""
        raise ValueError(f"{name} must be 2-D (rows, features), got shape {tuple(x.shape)}{hint}")
    if x.numel() == 0:
        raise ValueError(f"{name} must have at least one row and one feature, got shape {tuple(x.shape)}")
    return exact_floats(x, name)


def exact_floats(x: Tensor, name: str) -> Tensor:
    """Integers as floating point that holds each of them exactly; anything else as it is."""
    if x.is_floating_point() or x.is_complex():
        return x
    if x.dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16):
        return x.float()
    largest = max(abs(int(x.max())), abs(int(x.min()))) if x.numel() else 0
    if largest > 2**53:
        raise ValueError(f"{name} must be numbers that float64 holds exactly, got the integer {largest}: pass floats")
    return x.float() if largest <= 2**24 else x.double()


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
