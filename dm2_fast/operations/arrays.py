"""What users pass as data: tensors, arrays, memory maps, and anything else that can be indexed by an integer array."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dm2_fast.operations.arguments import shown
from dm2_fast.operations.mapped import MappedRows


class ArrayLike(Protocol):
    """A pool of samples: a tensor, an ndarray, a np.memmap, an h5py or zarr data set."""

    @property
    def shape(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any: ...


def as_tensor(x: Any, name: str) -> Tensor:
    """x as a detached tensor that shares its memory.

    Raises:
        TypeError: x is no plain tensor or array of numbers.
    """
    if isinstance(x, Tensor):
        return _plain(x, name)
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost: fill it, or leave the masked rows out")
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a tensor or an array, got {shown(x)}")
    x = np.asarray(x)
    if not x.dtype.isnative:
        raise TypeError(f"{name} must have native byte order, got dtype {x.dtype.str}")
    if any(stride < 0 for stride in x.strides):
        x = x.copy()
    try:
        return torch.from_numpy(x if x.flags.writeable else np.asarray(_Unlocked(x)))
    except TypeError as error:
        raise TypeError(f"{name} must have a numeric dtype, got {x.dtype}") from error


def _plain(x: Tensor, name: str) -> Tensor:
    if type(x) not in (Tensor, torch.nn.Parameter):
        raise TypeError(f"{name} must be a plain torch.Tensor, got {shown(x)} (see torch.Tensor.as_subclass)")
    if x.is_nested or x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout} (see torch.Tensor.to_dense)")
    if x.is_quantized:
        raise TypeError(f"{name} must not be quantised, got {x.dtype} (see torch.Tensor.dequantize)")
    if x.is_meta:
        raise TypeError(f"{name} must hold values, got a tensor on the meta device")
    dense: Tensor = x.detach().resolve_neg().resolve_conj()
    return dense


class _Unlocked:
    """A read-only array that NumPy takes for a writable one: torch warns of others, and it is never written."""

    def __init__(self, x: np.ndarray) -> None:
        self.alive = x
        self.__array_interface__ = x.__array_interface__ | {"data": (x.ctypes.data, False)}


class _Lengthened:
    """An array with a shape and no length, with one."""

    def __init__(self, inputs: Any) -> None:
        self.inputs, self.shape, self.dtype = inputs, tuple(inputs.shape), getattr(inputs, "dtype", None)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Any:
        return self.inputs[rows]


def lengthened(inputs: Any) -> Any:
    """inputs, with a length if they only have a shape, as the arrays of zarr 3."""
    lacking = (
        not hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__") and len(getattr(inputs, "shape", ())) > 0
    )
    return _Lengthened(inputs) if lacking else inputs


def check_pool(inputs: Any, name: str) -> None:
    """Raise unless inputs are a non-empty pool of samples, (m, ...).

    Raises:
        TypeError: they are no tensor, no array, and nothing with len, shape and integer-array indexing.
        ValueError: they are empty, or have no shape of samples.
    """
    if isinstance(inputs, (Tensor, np.ndarray)):
        as_tensor(inputs, name)
    elif not all(hasattr(inputs, wanted) for wanted in ("shape", "__len__", "__getitem__")):
        raise TypeError(
            f"{name} must be a tensor, an array, or have len, shape and integer-array indexing, got {shown(inputs)}"
        )
    if len(inputs.shape) < 2 or 0 in inputs.shape:
        raise ValueError(f"{name} must be a non-empty (m, ...) pool of samples, got shape {tuple(inputs.shape)}")


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def as_floats(x: Any, name: str) -> Tensor:
    """`as_tensor` of x, if it is float16, bfloat16, float32 or float64.

    Raises:
        TypeError: it is not.
    """
    found = as_tensor(x, name)
    if found.dtype not in FLOATS:
        rule = "float16, bfloat16, float32 or float64" if found.is_floating_point() else "floating point"
        raise TypeError(f"{name} must be {rule}, got {found.dtype}")
    return found


def as_samples(x: Any, name: str) -> Tensor:
    """`as_tensor` of x, if it is uint8, float16, bfloat16, float32 or float64.

    Raises:
        TypeError: it is not.
    """
    found = as_tensor(x, name)
    if found.dtype != torch.uint8 and found.dtype not in FLOATS:
        rule = (
            "uint8, float16, bfloat16, float32 or float64" if found.is_floating_point() else "uint8 or floating point"
        )
        raise TypeError(f"{name} must be {rule}, got {found.dtype}")
    return found


def as_integers(x: Any, name: str) -> Tensor:
    """x as a tensor, if it is an int64 tensor or array.

    Raises:
        TypeError: it is not.
    """
    found = as_tensor(x, name)
    if found.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {found.dtype}")
    return found


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
                raise ValueError(f"{name} must have as many numbers in each row") from error
        elif hasattr(x, "toarray"):  # sparse matrices of scipy
            raise TypeError(f"{name} is {shown(x)}: make it dense with .toarray()")
        elif hasattr(x, "shape") and hasattr(x, "__getitem__"):
            raise TypeError(f"{name} is {shown(x)}: read it into memory with [:]")
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
    if isinstance(inputs, MappedRows):
        return inputs[distinct], where
    return as_tensor(np.asarray(inputs[distinct.cpu().numpy()]), name), where


def name_rows(rows: Sequence[int], most: int = 5) -> str:
    """Name the first few of what may be many rows, as in `rows 3, 17, 20 and 4 more`."""
    shown = ", ".join(str(row) for row in rows[:most])
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
