"""What a pool may be: an array, several arrays that belong together, or a torch Dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from dm2_fast.model.dataset_pool import MEMORY, DatasetPool
from dm2_fast.model.together import Together
from dm2_fast.operations.arguments import shown
from dm2_fast.operations.arrays import ArrayLike, as_tensor, lengthened
from dm2_fast.operations.mapped import MappedRows, is_mapped

Pool: TypeAlias = ArrayLike | Together | DatasetPool

_OF_FILES = "pass a Dataset that reads the files, such as torchvision.datasets.ImageFolder(folder, transform)"


def open_pool(
    pool: Any,
    name: str = "pool",
    *,
    entries: Sequence[str | int] | None = None,
    num_workers: int = 0,
    memory: int = MEMORY,
    progress: bool = False,
) -> Pool:
    """What `select` takes as a pool: an array as it is, a dict or tuple of arrays, or a map-style Dataset.

    Raises:
        TypeError: it is something else; the message says what to pass instead.
    """
    if isinstance(pool, DatasetPool):
        return pool
    if isinstance(pool, DataLoader):
        raise TypeError(f"{name} is a DataLoader: pass its data set, loader.dataset; batches are made here")
    if isinstance(pool, IterableDataset):
        raise TypeError(f"{name} is an IterableDataset, which gives no sample by its row: pass a map-style Dataset")
    if isinstance(pool, Dataset) and not hasattr(pool, "__len__"):
        raise TypeError(f"{name} has no length: give its class, {type(pool).__name__}, a method __len__")
    if isinstance(pool, Dataset):
        return DatasetPool(pool, entries, num_workers, memory, progress, name)
    pool = lengthened(pool)
    by_row = hasattr(pool, "__getitem__") and hasattr(pool, "__len__") and not isinstance(pool, (str, bytes))
    arrays = isinstance(pool, (Tensor, np.ndarray, Mapping, tuple, list))
    if entries is not None and by_row and not arrays:  # also data sets of other libraries, which may have a shape
        return DatasetPool(pool, entries, num_workers, memory, progress, name)
    if entries is not None:
        raise TypeError(f"entries= belongs to a Dataset, and {name} is {shown(pool)}: leave entries out")
    if isinstance(pool, (Mapping, tuple)):
        return Together(pool, name)
    if isinstance(pool, list):
        if pool and isinstance(pool[0], (str, Path)):
            raise TypeError(f"{name} is a list of names: {_OF_FILES}")
        if pool and isinstance(pool[0], (Mapping, tuple)):
            raise TypeError(f"{name} is a list of samples: pass a map-style Dataset of them, or an array of each input")
        raise TypeError(f"{name} is a list: make one array of it with torch.stack(...) or numpy.stack(...)")
    if hasattr(pool, "to_numpy"):  # tables of pandas and polars
        values: NDArray[Any] = pool.to_numpy()
        return values
    if hasattr(pool, "shape") and by_row:
        array: ArrayLike = pool
        return array
    if by_row:
        return DatasetPool(pool, entries, num_workers, memory, progress, name)
    if isinstance(pool, (str, Path)):
        raise TypeError(f"{name} is a name: {_OF_FILES}")
    raise TypeError(
        f"{name} is {shown(pool)}: pass a tensor, an array, or a map-style torch Dataset, which has a length "
        "and gives a sample for each row number"
    )


def read(pool: Pool) -> ArrayLike | Together:
    """The samples of a pool, those of a Dataset read if they are not yet."""
    return pool.read() if isinstance(pool, DatasetPool) else pool


def sparing(pool: ArrayLike | Together) -> ArrayLike | Together:
    """The same pool; of a mapped file, few pages are in memory while rows from all over it are read."""
    if not isinstance(pool, (Tensor, np.ndarray)):
        return pool
    rows = as_tensor(pool, "pool")
    return MappedRows(rows) if is_mapped(rows) and rows[0].is_contiguous() else pool


def unmixable(pool: ArrayLike | Together) -> str | None:
    """Why samples cannot be mixed as they are, in words; None where they can."""
    if isinstance(pool, Together):
        return f"the pool has {'a dictionary' if pool.by_name else 'a tuple'} of inputs"
    return f"the pool holds {pool.dtype}" if are_integers(pool) else None  # type: ignore[attr-defined]


def are_integers(pool: Any) -> bool:
    """Whether the values number something, as those of tokens do: (m, n) integers, but no uint8."""
    dtype = getattr(pool, "dtype", None)
    if len(pool.shape) > 2:
        return False
    if isinstance(dtype, torch.dtype):
        return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.uint8
    return isinstance(dtype, np.dtype) and dtype.kind in "iub" and dtype != np.uint8
