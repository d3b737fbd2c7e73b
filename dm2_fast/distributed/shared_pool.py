"""The samples of a Dataset that several processes read, each a part of them, into files that all of them map."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dm2_fast.distributed.group import Group
from dm2_fast.model.dataset_pool import DatasetPool, unlike
from dm2_fast.model.together import Together


def read_together(pool: DatasetPool, group: Group) -> Tensor | Together:
    """All samples of a pool, of which each process reads a part; they are kept in the pool as `DatasetPool.read` does.

    The files lie in the folder of temporary files of the first process, and have no name once all processes map them.

    Raises:
        RuntimeError: the processes do not share that folder.
        ValueError, TypeError, RuntimeError, OSError: As `DatasetPool.read`, in all processes.
    """
    edges = [len(pool) * rank // group.size for rank in range(group.size + 1)]
    rows = range(edges[group.rank], edges[group.rank + 1])
    own = group.agree(lambda: pool.part(rows))
    kinds = {key: (tensor.shape[1:], tensor.dtype) for key, tensor in own.items()}
    there = [(edges[i], other) for i, other in enumerate(group.gather_objects(kinds)) if other]
    row, first = there[0]
    for number, other in there:
        for key, kind in other.items():
            if kind != first[key]:
                raise ValueError(unlike(pool.name, number, *kind, row, *first[key]))
    made = group.agree(lambda: Path(tempfile.mkdtemp()) if group.rank == 0 else Path())
    folder = group.gather_objects(made)[0]
    try:
        sizes = {key: shape.numel() * dtype.itemsize for key, (shape, dtype) in first.items()}

        def write() -> None:
            for number, (key, tensor) in enumerate(own.items()):
                with (folder / str(number)).open("r+b") as file:
                    file.seek(rows.start * sizes[key])
                    file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

        def make_room() -> None:
            if not folder.is_dir():
                raise RuntimeError(
                    f"the processes do not share {folder}: set TMPDIR to a folder that all of them share"
                )
            for number, size in enumerate(sizes.values() if group.rank == 0 else ()):
                with (folder / str(number)).open("wb") as file:
                    file.truncate(len(pool) * size)

        def read() -> dict[str | int, Tensor]:
            found: dict[str | int, Tensor] = {}
            for number, (key, (shape, dtype)) in enumerate(first.items()):
                values = torch.from_numpy(np.memmap(folder / str(number), np.uint8, "r+"))
                found[key] = values.view(dtype).view(len(pool), *shape)
            return found

        for step in (make_room, write):
            group.agree(step)
        pool.samples = pool.joined(group.agree(read))
    finally:
        if group.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    return pool.samples
