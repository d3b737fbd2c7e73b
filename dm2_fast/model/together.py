"""Several inputs of a model, one row of each per sample."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dm2_fast.operations.arrays import ArrayLike, gather, lengthened

Batch: TypeAlias = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


class Together:
    """Several inputs of a model, one row of each per sample: a pool that cannot be mixed as it is.

    Args:
        parts: The arrays, (m, ...) each, by name or in the order in which the model takes them.
        name: What an error calls the pool.

    Raises:
        ValueError: there are none, or they differ in their number of rows.
        TypeError: one of them is no array.
    """

    def __init__(self, parts: Mapping[str, Any] | Sequence[Any], name: str = "pool") -> None:
        given = dict(parts) if isinstance(parts, Mapping) else dict(enumerate(parts))
        named = {key: lengthened(part) for key, part in given.items()}
        if not named:
            raise ValueError(f"{name} is empty: give at least one array of inputs")
        for key, part in named.items():
            if not hasattr(part, "shape") or len(part.shape) == 0:
                raise TypeError(
                    f"{name}[{key!r}] is a {type(part).__name__}: a {type(parts).__name__} as a pool holds the inputs "
                    "of the model, each an array with one row per sample; for samples, use torch.stack"
                )
        rows = {key: len(part) for key, part in named.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"the inputs of {name} differ in their number of rows: {rows}")
        self.parts, self.by_name = named, isinstance(parts, Mapping)
        self.shape = (len(self), len(named))

    def __len__(self) -> int:
        return len(next(iter(self.parts.values())))

    def batch(self, rows: Tensor, device: torch.device, dtype: torch.dtype) -> Batch:
        """The inputs of some rows as the model takes them; only floating point changes its dtype."""
        found = {key: to_model(take(part, rows, f"input {key!r}"), device, dtype) for key, part in self.parts.items()}
        return {str(key): value for key, value in found.items()} if self.by_name else tuple(found.values())


def take(pool: ArrayLike, rows: Tensor, name: str) -> Tensor:
    """Some rows of an array."""
    held, where = gather(pool, rows, name)
    return held[where.to(held.device)]


def to_model(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """values where the model is, and in its dtype if they are floating point."""
    return values.to(device, dtype if values.is_floating_point() else values.dtype)
