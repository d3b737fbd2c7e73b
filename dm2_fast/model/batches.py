"""Batches of one shape, as a model takes them: plain rows of a pool, or mixed ones (Eq. 7)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dm2_fast.model.functions import FunctionModel
from dm2_fast.model.head import model_device, model_dtype
from dm2_fast.model.pools import are_integers, unmixable
from dm2_fast.model.together import Batch, Together, take, to_model
from dm2_fast.operations.arrays import ArrayLike
from dm2_fast.operations.mapped import MappedRows
from dm2_fast.operations.mix import Normalize, Recipe, mix


def check_mixable(pool: ArrayLike | Together) -> None:
    """Raise unless samples can be mixed as they are.

    Raises:
        TypeError: they are integers or several inputs; the message names the option that mixes features instead.
    """
    why = unmixable(pool)
    if why is not None:
        numbers = ", or make floats of them if they are quantities" if not isinstance(pool, Together) else ""
        raise TypeError(
            f"samples cannot be mixed as they are, since {why}: mix their features, with "
            f"options=DM2Config(space='features'){numbers}"
        )


def make_batch(
    model: nn.Module,
    pool: ArrayLike | Together,
    recipe: Recipe | None,
    start: int,
    size: int,
    lock: AbstractContextManager[object],
    channels_last: bool = False,
    some: Tensor | None = None,
    out: Tensor | None = None,
    device: torch.device | None = None,
    **options: Any,
) -> Batch:
    """Size rows of the plain or mixed pool, or of some of its rows, from start on.

    The recipe has a line for each of these rows. What lies behind their end is filled with copies of the last row: a
    batch of another shape may round differently. The lock is held while anything is read that need not bear two
    threads; mixtures are written to out if it is where and what `mix` would return; the batch lies on a device, None
    for that of the model; options go to `mix`.
    """
    device, dtype = device or model_device(model), model_dtype(model)
    places = torch.arange(start, start + size).clamp(max=len(pool if some is None else some) - 1)
    rows = places if some is None else some[places]
    if isinstance(pool, Together) or are_integers(pool):
        if recipe is not None:
            check_mixable(pool)
        with lock:
            if isinstance(pool, Together):
                return pool.batch(rows, device, dtype)
            return to_model(take(pool, rows, "inputs"), device, dtype)
    if recipe is None and not channels_last and isinstance(pool, Tensor) and _as_they_are(pool, options["normalize"]):
        batch = pool.detach()[rows]
        return batch if isinstance(model, FunctionModel) else batch.to(device, dtype)
    neighbours, lam, weights = torch.empty(size, 0, dtype=torch.int64), torch.tensor(1.0), None
    if recipe is not None:
        neighbours, lam = recipe.indices[places].cpu(), recipe.lam[places].cpu()
        weights = None if recipe.weights is None else recipe.weights[places].cpu()
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    with nullcontext() if isinstance(pool, (Tensor, np.ndarray, MappedRows)) else lock:
        batch = mix(
            pool, neighbours, lam, weights=weights, rows=rows, memory_format=memory_format,
            out=out if out is not None and _takes(out, pool, size, channels_last) else None, **options,
        )  # fmt: skip
    return batch if isinstance(model, FunctionModel) else batch.to(device, dtype)


def _as_they_are(pool: Tensor, normalize: Normalize | None) -> bool:
    """Whether rows are samples of the model without scaling, in the layout in which `mix` would write them."""
    return pool.is_floating_point() and pool.is_contiguous() and normalize is None


def _takes(out: Tensor, pool: ArrayLike, size: int, channels_last: bool) -> bool:
    """Whether mixtures of size rows can be written to out, which has the layout of the batches of a prepared model."""
    device = pool.device if isinstance(pool, Tensor) else torch.device("cpu")
    made_of = str(getattr(pool, "dtype", None)).removeprefix("torch.")
    alike = out.shape == (size, *pool.shape[1:]) and out.device == device and (channels_last or out.ndim != 4)
    return alike and out.dtype == torch.float32 and made_of in ("uint8", "float32")
