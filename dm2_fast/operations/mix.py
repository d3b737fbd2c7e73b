"""Mixing samples with their neighbours (Eq. 7): who is mixed, with what weights, and the mixed inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast import draws, extras
from dm2_fast.operations import backends
from dm2_fast.operations.arguments import number, one_of, shown
from dm2_fast.operations.arrays import (
    ArrayLike,
    as_floats,
    as_integers,
    as_samples,
    as_tensor,
    check_pool,
    gather,
    lengthened,
    name_rows,
)
from dm2_fast.operations.mapped import blocks, room_like

Mix: TypeAlias = Literal["mean", "random", "weighted"]
_FORMATS = (torch.preserve_format, torch.channels_last)
Normalize: TypeAlias = tuple[float | Sequence[float], float | Sequence[float]]


@dataclass(frozen=True)
class Recipe:
    """What is mixed into each row of a pool.

    Attributes:
        indices: Neighbours that take part, (m, n) int64.
        weights: Their weights, (m, n), each row with sum 1; None for equal weights.
        lam: The weight of the row itself, (m,).
    """

    indices: Tensor
    weights: Tensor | None
    lam: Tensor

    def of(self, rows: Tensor) -> "Recipe":
        """What is mixed into some of the rows, (r,)."""
        return Recipe(self.indices[rows], None if self.weights is None else self.weights[rows], self.lam[rows])


def recipe(
    distances: Tensor,
    indices: Tensor,
    mix: Mix = "mean",
    lam: float | Literal["beta"] = 0.5,
    alpha: float = 1.0,
    *,
    seed: int = 0,
    round: int = 0,
    row_ids: NDArray[np.int64] | None = None,
) -> Recipe:
    """Decide the neighbours, weights and lambda of every row.

    Args:
        distances, indices: (m, k), as `knn` returns them.
        mix: "mean": all k neighbours with equal weight (Eq. 7); "random": one of them, drawn (Algorithm 1, line 15);
            "weighted": all, with weights proportional to 1 / distance, uniform over the zeros if there are any.
        lam: Lambda of Eq. 7, or "beta" to draw Beta(alpha, alpha) per row.
        alpha: Parameter of that distribution, positive.
        seed, round, row_ids: Key of the draws; row_ids (m,) defaults to 0, 1, 2, ...

    Raises:
        ValueError: mix is unknown, lam is outside [0, 1] or alpha is not positive.
    """
    check_mix(mix, lam, alpha)
    m, k = indices.shape
    device = indices.device
    ids = np.arange(m) if row_ids is None else row_ids
    weights: Tensor | None = None
    if mix == "random" and k > 0:
        drawn = torch.from_numpy((draws.uniform(seed, round, ids, "neighbour") * k).astype(np.int64)).to(device)
        indices = torch.cat([indices[part].gather(1, drawn[part, None]) for part in blocks(indices)])
    elif mix == "weighted":
        weights = room_like(distances, torch.float64)
        for part in blocks(distances, weights):
            zero = distances[part] == 0
            closeness = torch.where(zero.any(1, keepdim=True), zero.to(torch.float64), 1 / distances[part].double())
            weights[part] = closeness / closeness.sum(1, keepdim=True)
    if lam == "beta":
        with extras.needed("strategies", "lam='beta'"):
            from scipy.special import betaincinv

        lams = torch.from_numpy(betaincinv(alpha, alpha, draws.uniform(seed, round, ids, "lam"))).to(device)
    else:
        lams = torch.full((m,), float(lam), dtype=torch.float64, device=device)
    return Recipe(indices, weights, lams)


def check_mix(mix: str, lam: float | str, alpha: float) -> None:
    """Raise unless these are options of `recipe`."""
    one_of("mix", mix, get_args(Mix))
    if not (isinstance(lam, str) and lam == "beta"):
        number("lam", lam, "in [0, 1] or 'beta'", lambda value: 0 <= value <= 1)
    number("alpha", alpha, "positive and finite", lambda value: value > 0)


def mix(
    inputs: ArrayLike,
    indices: Tensor,
    lam: float | Tensor,
    *,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    normalize: Normalize | None = None,
    memory_format: torch.memory_format = torch.preserve_format,
    out: Tensor | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Tensor:
    """Mix rows of a pool with their neighbours (Eq. 7).

    Specifically, with `w = weights` or 1/n, this computes
    `lam * inputs[rows] + (1 - lam) * (w * inputs[indices]).sum(1)`, for uint8 inputs divided by 255, and then
    `(. - mean) / std` per channel. The n gathered neighbours are never stored.

    Args:
        inputs: The pool, (m, ...): uint8 or floating point; a tensor, an array, a np.memmap, or anything with len,
            shape and integer-array indexing.
        indices: Neighbours of each row, (r, n) int64; n = 0 only gathers (and scales, and normalises) the rows.
        lam: Weight of the row itself, in [0, 1]: one number, or (r,). lam = 1 returns the rows bit for bit.
        weights: (r, n), non-negative, each row with sum 1; None for equal weights.
        rows: Which rows of inputs are mixed, (r,) int64; None for all m, in order.
        normalize: (mean, std), numbers or one per channel (dimension 1 of inputs), applied after mixing.
        memory_format: How the result of a 4-D pool lies in memory: torch.channels_last, or as inputs.
        out: Where the result is written and returned, in place of new memory: a tensor like that which is returned.
        backend, num_threads: As in `dm2_fast.knn`.

    Returns:
        (r, ...) in the dtype of inputs; float32 in [0, 1] for uint8 inputs.

    Raises:
        ValueError: shapes do not match, an index is not a row of inputs, lam or the weights are out of range,
            memory_format is another, or out is not like the result.
        TypeError: inputs are neither uint8 nor floating point, or indices are not int64.
        RuntimeError: a forced backend cannot run on inputs.
    """
    inputs = lengthened(inputs)
    check_pool(inputs, "inputs")
    if not isinstance(memory_format, torch.memory_format) or memory_format not in _FORMATS:
        raise ValueError(
            f"memory_format must be torch.preserve_format or torch.channels_last, got {shown(memory_format)}"
        )
    if memory_format == torch.channels_last and len(inputs.shape) != 4:
        raise ValueError(f"inputs must be 4-D to be mixed into torch.channels_last, got shape {tuple(inputs.shape)}")
    who, coefficients = terms(len(inputs), indices, lam, weights, rows)
    pool, who = gather(inputs, who, "inputs")
    pool = as_samples(pool, "inputs")
    return _weighted_sum(pool, who, coefficients, normalize, memory_format, out, backend, num_threads)


def terms(
    m: int, indices: Tensor, lam: float | Tensor, weights: Tensor | None = None, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Write Eq. 7 as one weighted sum over rows of a pool of m.

    Args:
        indices, lam, weights, rows: As in `mix`.

    Returns:
        The rows that take part, (r, 1 + n) int64, and their coefficients, (r, 1 + n) float64: first the row itself.

    Raises:
        ValueError, TypeError: As in `mix`.
    """
    indices = _checked_rows("indices", indices, 2, m)
    if rows is None:
        rows = torch.arange(m, device=indices.device)
    rows = _checked_rows("rows", rows, 1, m).to(indices.device)
    r = len(rows)
    if len(indices) != r:
        raise ValueError(f"indices must have one row for each of the {r} rows, got {len(indices)}")

    n = indices.shape[1]
    if isinstance(lam, (Tensor, np.ndarray)) and lam.ndim > 0:
        lams = as_floats(lam, "lam")
    else:
        one = number("lam", lam, "in [0, 1]", lambda value: 0 <= value <= 1)
        lams = torch.tensor(one, dtype=torch.float64)
    lams = lams.to(indices.device, torch.float64)
    if lams.shape not in ((), (r,)):
        raise ValueError(f"lam must be one number or ({r},), got shape {tuple(lams.shape)}")
    if not bool(((lams >= 0) & (lams <= 1)).all()):
        outside = lams.flatten()[~((lams >= 0) & (lams <= 1)).flatten()]
        raise ValueError(f"lam must be in [0, 1], got {outside[0].item()}")
    if weights is None:
        weights = torch.full((r, n), 1 / max(n, 1), dtype=torch.float64, device=indices.device)
    weights = as_floats(weights, "weights").to(indices.device)
    if weights.shape != indices.shape:
        raise ValueError(f"weights must have the shape of indices, {tuple(indices.shape)}, got {tuple(weights.shape)}")
    total = weights.double().sum(1)
    wrong = ~((total - 1).abs() < 1e-3) | ~(weights >= 0).all(1)
    if n and bool(wrong.any()):
        bad = torch.nonzero(wrong)[:, 0].tolist()
        raise ValueError(f"weights must be non-negative with sum 1 in each row, got others in {name_rows(bad)}")

    lams = lams.expand(r)[:, None] if n else torch.ones(r, 1, dtype=torch.float64, device=indices.device)
    coefficients = torch.cat([lams, (1 - lams) * weights], dim=1)
    return torch.cat([rows[:, None], indices], dim=1), coefficients


def _checked_rows(name: str, rows: Tensor, ndim: int, m: int) -> Tensor:
    rows = as_integers(rows, name)
    if rows.ndim != ndim:
        raise ValueError(f"{name} must be {ndim}-D, got shape {tuple(rows.shape)}")
    if rows.numel() and not (rows.min() >= 0 and rows.max() < m):
        outside = rows[(rows < 0) | (rows >= m)][0].item()
        raise ValueError(f"{name} must be in [0, {m - 1}], got {outside}")
    return rows


def _weighted_sum(
    pool: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    normalize: Normalize | None,
    memory_format: torch.memory_format,
    result: Tensor | None,
    backend: str,
    num_threads: int | None,
) -> Tensor:
    """Flatten the samples in the order in which they lie in memory and call the implementation."""
    if pool[0].is_contiguous():
        channels_last, flat = False, pool.flatten(1)
    elif pool.ndim == 4 and pool[0].movedim(0, -1).is_contiguous():
        channels_last, flat = True, pool.movedim(1, -1).flatten(1)
    else:  # samples that are not dense: copy those that take part
        distinct, indices = torch.unique(indices, return_inverse=True)
        pool = pool[distinct].contiguous()
        channels_last, flat = False, pool.flatten(1)
    indices = indices.to(pool.device)

    dtype = torch.float64 if pool.dtype == torch.float64 else torch.float32
    mean, std = (t.to(pool.device, dtype) for t in channel_statistics(normalize, pool.shape[1]))
    channel_stride = 1 if channels_last else flat.shape[1] // pool.shape[1]
    module = backends.resolve(backend, pool, "mix")
    out_dtype = torch.float32 if pool.dtype == torch.uint8 else pool.dtype
    reorder = memory_format == torch.channels_last and not channels_last
    shape = (channel_stride, pool.shape[1]) if reorder else flat.shape[1:]
    out = _memory_of(result, (len(indices), *pool.shape[1:]), out_dtype, pool.device, channels_last or reorder)
    out = out.view(len(indices), *shape)
    options = backends.thread_options(module, num_threads)
    if len(out):
        module.mix(flat, indices, coefficients.to(pool.device, dtype), mean, std, channel_stride, out, **options)
    if result is not None:
        return result
    if channels_last or reorder:
        return out.view(len(out), *pool.shape[2:], pool.shape[1]).movedim(-1, 1)
    return out.view(len(out), *pool.shape[1:])


def _memory_of(
    result: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, channels_last: bool
) -> Tensor:
    """The memory of the result, contiguous; new memory for None.

    Raises:
        ValueError, TypeError: the result has another shape, dtype, device or layout, or is no tensor.
    """
    if result is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if not isinstance(result, Tensor):
        raise TypeError(f"out must be a tensor, got {shown(result)}")
    memory = result.movedim(1, -1) if channels_last and result.ndim == len(shape) else result
    if (result.shape, result.dtype, result.device) != (shape, dtype, device) or not memory.is_contiguous():
        layout = "channels_last" if channels_last else "contiguous"
        raise ValueError(
            f"out must be {layout}, of shape {shape} and {dtype} on {device}, got shape {tuple(result.shape)}, strides "
            f"{result.stride()}, {result.dtype} on {result.device}"
        )
    return memory


def channel_statistics(normalize: Normalize | None, channels: int) -> tuple[Tensor, Tensor]:
    """(mean, std), each (channels,) float64; both empty for None.

    Raises:
        ValueError: not one number per channel, or a standard deviation that is not positive.
    """
    if normalize is None:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, dtype=torch.float64)
    if not isinstance(normalize, (tuple, list, Tensor, np.ndarray)) or len(normalize) != 2:
        raise ValueError(f"normalize must be a pair (mean, std), got {shown(normalize)}")
    mean, std = (_numbers(value, name) for value, name in zip(normalize, ("mean", "std"), strict=True))
    for name, value in (("mean", mean), ("std", std)):
        if len(value) not in (1, channels):
            raise ValueError(f"normalize must give 1 or {channels} values of {name}, got {len(value)}")
    if not bool((std > 0).all() and mean.isfinite().all() and std.isfinite().all()):
        raise ValueError(f"normalize must be finite with positive std, got {shown(normalize)}")
    return mean.expand(channels), std.expand(channels)


def _numbers(value: object, name: str) -> Tensor:
    """A number, or several, as float64."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return as_tensor(value, f"{name} of normalize").flatten().to(torch.float64)
    several: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    for one in several:
        if not isinstance(one, (int, float, np.number)) and not (isinstance(one, Tensor) and one.ndim == 0):
            raise TypeError(f"{name} of normalize must be a number or one per channel, got {shown(value)}")
    return torch.tensor([float(one) for one in several], dtype=torch.float64)
