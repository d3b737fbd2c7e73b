"""Tensors in files that are mapped: only what is in use takes memory, and what was read is given back."""

import ctypes
import mmap
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_AROUND = 2**21  # bytes of a file that the system may map where one of them is read
_ROWS = 2**16  # of a block
_AT_ONCE = 2**25  # bytes that are mapped while rows are read here and there


def mapped(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Room in a file without a name, which is gone when nobody uses it."""
    size = shape[0] * shape[1] * like.element_size()
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return torch.from_numpy(np.memmap(file, np.uint8, "r+", shape=(size,))).view(like.dtype).view(shape)


def room_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Room of the shape of x, (m, k), in another mapped file if x lies in one."""
    return (
        mapped((x.shape[0], x.shape[1]), x.new_empty(0, dtype=dtype))
        if is_mapped(x)
        else x.new_empty(x.shape, dtype=dtype)
    )


def is_mapped(x: Tensor) -> bool:
    """Whether x lies in a file that is mapped and shared, so that it takes memory only while it is read."""
    return _mapping(x) is not None


def release(*read: object) -> None:
    """Give back the memory of what was read of tensors and arrays that lie in mapped files; the files are read again
    when it is needed. Anything else is left alone."""
    for x in read:
        releasing(x)()


def releasing(x: object) -> Callable[[], object]:
    """What does `release(x)` again and again, while there is x."""
    mapping = _mapping(x) if isinstance(x, (Tensor, np.ndarray)) else None
    return (lambda: None) if mapping is None else partial(_give_back, *mapping)


def blocks(x: Tensor, *others: Tensor) -> Iterator[slice]:
    """Rows of x, a block at a time, which is given back with those of the others when the next is asked for; all rows
    at once where x lies in memory."""
    if not is_mapped(x):
        yield slice(None)
        return
    give_back = [releasing(each) for each in (x, *others)]
    for start in range(0, len(x), _ROWS):
        yield slice(start, start + _ROWS)
        for of_file in give_back:
            of_file()


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], for rows (n,) int64 in any order; of a mapped file, few pages are in memory at a time."""
    if not is_mapped(x):
        return x[rows]
    ascending, order = rows.sort()
    copies = x.new_empty(len(rows), *x.shape[1:])
    copies[order] = MappedRows(x)[ascending]
    return copies


class Sparing:
    """How rows here and there are read or written so that, of a mapped file, few pages are in memory at a time.

    Args:
        x: (m, ...), one row after another.
        at_once: About how many bytes of the file may be in memory, at least one row.
    """

    def __init__(self, x: Tensor | NDArray[Any], at_once: int = _AT_ONCE) -> None:
        self._at = _address(x)
        self._row = x.stride(0) * x.element_size() if isinstance(x, Tensor) else x.strides[0]
        self._windows, self._mapping = max(1, at_once // (self._row + _AROUND)), _mapping(x)

    def steps(self, rows: Any) -> Iterator[slice]:
        """Which of the rows, (n,) int64, are next; those before are given back. In rising order, few pages are read
        twice."""
        if self._mapping is None or len(rows) == 0:
            yield slice(0, len(rows))
            return
        window = (self._at + np.asarray(rows) * self._row) // _AROUND
        entered = np.cumsum(window[1:] != window[:-1]) // self._windows
        edges = [0, *(1 + np.flatnonzero(np.diff(entered, prepend=0))).tolist(), len(rows)]
        for start, stop in pairwise(edges):
            yield slice(start, stop)
            first = int(window[start:stop].min()) * _AROUND
            last = int(window[start:stop].max() + 1) * _AROUND + self._row
            _give_back(max(first, self._mapping[0]), min(-(-last // _AROUND) * _AROUND, self._mapping[1]))


class MappedRows:
    """Rows of a tensor, copied and written by `Sparing`: a pool as `dm2_fast.mix` takes it.

    Args:
        x, at_once: As for `Sparing`.
    """

    def __init__(self, x: Tensor, at_once: int = _AT_ONCE) -> None:
        self.x, self.shape, self.dtype, self._sparing = x, x.shape, x.dtype, Sparing(x, at_once)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Tensor:
        rows = torch.as_tensor(rows)
        copies = self.x.new_empty(len(rows), *self.x.shape[1:])
        for part in self._sparing.steps(rows):
            torch.index_select(self.x, 0, rows[part], out=copies[part])
        return copies

    def __setitem__(self, rows: Tensor, values: Tensor) -> None:
        for part in self._sparing.steps(rows):
            self.x[rows[part]] = values[part]


def _address(x: Tensor | NDArray[Any]) -> int:
    return x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data


def _give_back(first: int, last: int) -> None:
    """Give back the memory of these addresses of a mapped file, where the system has a way to say so."""
    if hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _mapping(x: Tensor | NDArray[Any]) -> tuple[int, int] | None:
    """The addresses of the shared file mapping that x lies in, on Linux; None for memory of any other kind."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or (isinstance(x, Tensor) and x.device.type != "cpu"):
        return None
    at = _address(x)
    for line in maps.read_text().splitlines():
        addresses, _, rest = line.partition(" ")
        first, last = (int(end, 16) for end in addresses.split("-"))
        if first <= at < last:
            access, _, _, inode, *_ = rest.split()
            return (first, last) if access.endswith("s") and inode != "0" else None
    return None
