"""The C++ operations of `dm2_fast._C` over CPU tensors, without a copy."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations.backends import has_extension
from dm2_fast.threads import threads_of_torch

if has_extension():  # without it, `backends` leads nobody here
    from dm2_fast import _C

if TYPE_CHECKING:
    from dm2_fast.operations.knn import UnitRows

TAKES_THREADS = True
WHOLE_PROBLEMS = True

_BATCH = 2**10  # mixtures held at a time


def _dense(values: Tensor) -> NDArray[Any]:
    """The values one after another, where they are if they lie like that: what all arguments but rows must be."""
    return values.contiguous().numpy()


def _written(out: Tensor) -> NDArray[Any]:
    """The array that a call writes into, which must be the tensor's own memory."""
    if not out.is_contiguous():
        raise ValueError(f"outputs must be contiguous, got strides {out.stride()}")
    return out.numpy()


def array(rows: Tensor) -> NDArray[Any]:
    """The rows where they are; bfloat16, which NumPy lacks, as the int16 of its bits."""
    return (rows.view(torch.int16) if rows.dtype == torch.bfloat16 else rows).numpy()


def _dense_rows(rows: Tensor) -> NDArray[Any]:
    """Rows that are dense inside, where they are if possible; half precision is widened."""
    rows = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    return (rows if rows.shape[1] <= 1 or rows.stride(1) == 1 else rows.contiguous()).numpy()


def _threads(num_threads: int | None) -> int:
    return num_threads or threads_of_torch()


def prepared(dtype: torch.dtype) -> tuple[Any, Any]:
    """The classes of csrc/index.hpp and csrc/graph.hpp for a dtype of distances."""
    return (_C.IndexDouble, _C.GraphDouble) if dtype == torch.float64 else (_C.IndexFloat, _C.GraphFloat)


def shard(dtype: torch.dtype) -> Any:
    """The class of csrc/bind_shard.hpp for a dtype of distances."""
    return _C.ShardDouble if dtype == torch.float64 else _C.ShardFloat


def frame(
    sample: NDArray[Any], distances: NDArray[Any], w1: float, w2: float, *, graph: bool = False, num_threads: int
) -> Any:
    """How all shards are encoded, for rows like a sample, of which the first have these k-th best distances; or how the
    rows of an approximate graph are."""
    return _C.frame(sample, distances, w1, w2, graph=graph, num_threads=num_threads)


def graph_sample(rows: int, d: int) -> tuple[Tensor, int, int]:
    """The rows that the frame of a graph is made from; how many are probes; and which neighbour of theirs is asked."""
    numbers, probes, k = _C.graph_sample(rows, d)
    return torch.from_numpy(numbers), probes, k


def encode(
    rows: Tensor, scale: Tensor, frame: Any, near: NDArray[Any], wide: NDArray[Any], *, num_threads: int
) -> None:
    """Write the codes of rows on the frame of a graph: (n, 32), and (n, d) with d a multiple of 32, uint8."""
    _C.encode(array(rows), _dense(scale), frame, near, wide, num_threads=num_threads)


def nearest(
    rows: "UnitRows", ids: Tensor, own: Tensor, candidates: Tensor, w1: float, w2: float, distances: Tensor,
    indices: Tensor, num_threads: int,
) -> None:  # fmt: skip
    """Write the k nearest of the rows that candidates (n, K) name, -1 for none, to each of the rows `own` (n,)."""
    data, scale = array(rows.data), _dense(rows.scale)
    out = _written(distances), _written(indices)
    _C.nearest(data, scale, _dense(ids), _dense(own), _dense(candidates), w1, w2, *out, num_threads=num_threads)


def pairwise(
    queries: Tensor,
    query_scale: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    out: Tensor,
    w1: float,
    w2: float,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.pairwise`, with the fixed summation order of csrc/distance.hpp."""
    _C.pairwise(
        array(queries),
        _dense(query_scale),
        array(rows),
        _dense(row_scale),
        _written(out),
        w1,
        w2,
        num_threads=_threads(num_threads),
    )


def knn(
    queries: Tensor,
    query_scale: Tensor,
    query_ids: Tensor,
    rows: Tensor,
    row_scale: Tensor,
    row_ids: Tensor,
    distances: Tensor,
    indices: Tensor,
    w1: float,
    w2: float,
    *,
    num_threads: int | None = None,
    report: Callable[[float], object] | None = None,
    isa: str = "auto",
    levels: Sequence[int] | Literal["plain"] | None = None,
) -> None:
    """`reference.knn`, with the same result, bit for bit, for every value of the options.

    Where queries, scales and ids are those of the rows, each pair is met once. Ctrl-C is answered within the call.
    Rows of any strides, half precision too, are converted as they are read; a scale (m, 2) is two factors in turn.

    Args:
        report: Called with the part done, between 0 and 1, a few times a second.
        isa: Instruction set, "auto", "avx512", "avx2", "neon" or "generic"; one that the machine lacks is a ValueError.
        levels: Bytes of the codes that filter behind the 32-byte ones (csrc/levels.hpp), at most three; "plain" for no
            filter at all; None for what a sample of the data suggests.
    """
    _C.knn(
        array(queries),
        _dense(query_scale),
        _dense(query_ids),
        array(rows),
        _dense(row_scale),
        _dense(row_ids),
        _written(distances),
        _written(indices),
        w1,
        w2,
        num_threads=_threads(num_threads),
        report=report,
        isa=isa,
        levels=levels,
    )


def mix(
    inputs: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    mean: Tensor,
    std: Tensor,
    channel_stride: int,
    out: Tensor,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.mix`, in one pass."""
    widened = out if out.dtype == coefficients.dtype else torch.empty(out.shape, dtype=coefficients.dtype)
    _C.mix(
        _dense_rows(inputs),
        _dense(indices),
        _dense(coefficients),
        _dense(mean),
        _dense(std),
        channel_stride,
        _written(widened),
        num_threads=_threads(num_threads),
    )
    if widened is not out:
        out.copy_(widened)


def uncertainty(logits: Tensor, kind: str, out: Tensor, *, num_threads: int | None = None) -> None:
    """`reference.uncertainty`, in one pass."""
    _C.uncertainty(_dense_rows(logits), kind, _written(out), num_threads=_threads(num_threads))


def lower_to_nearest(x: Tensor, points: Tensor, distances: Tensor, *, num_threads: int | None = None) -> None:
    """`reference.lower_to_nearest`, with the fixed summation order of csrc/distance.hpp."""
    _C.lower_to_nearest(_dense_rows(x), _dense_rows(points), _written(distances), num_threads=_threads(num_threads))


def linear_probe(
    features: Tensor,
    indices: Tensor,
    coefficients: Tensor,
    weight: Tensor,
    bias: Tensor,
    kind: str,
    out: Tensor,
    *,
    num_threads: int | None = None,
) -> None:
    """`reference.linear_probe`, in batches that stay in the cache: `mix`, torch's matrix product, `uncertainty`."""
    none = coefficients.new_empty(0)
    weight, bias = weight.to(coefficients.dtype), bias.to(coefficients.dtype)
    for i in range(0, len(out), _BATCH):
        part = slice(i, i + _BATCH)
        mixed = coefficients.new_empty(len(out[part]), features.shape[1])
        mix(features, indices[part], coefficients[part], none, none, 1, mixed, num_threads=num_threads)
        uncertainty(torch.nn.functional.linear(mixed, weight, bias), kind, out[part], num_threads=num_threads)
