"""The combined distance of feature rows: all pairs, and the k nearest neighbours (Eqs. 4-6).

Rows are normalised by a factor per row, 1 / norm, that is applied as a row is read: there is no normalised copy.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dm2_fast.operations import backends
from dm2_fast.operations.arguments import number, one_of, whole
from dm2_fast.operations.arrays import as_matrix, name_rows
from dm2_fast.progress import tqdm

# a tensor, an array, a list of rows, or a table of pandas or polars
Rows: TypeAlias = Any
Metric: TypeAlias = Literal["literal", "rms", "l1", "l2"]

# (w1, w2) of the distance w1 * L1 + w2 * L2 for d dimensions.
_WEIGHTS: dict[str, Callable[[int], tuple[float, float]]] = {
    "literal": lambda d: (0.5 / d, 0.5 / d),
    "rms": lambda d: (0.5 / d, 0.5 / math.sqrt(d)),
    "l1": lambda d: (1.0 / d, 0.0),
    "l2": lambda d: (0.0, 1.0 / d),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BLOCK_BYTES = 2**25  # rows converted at a time
_NORM_ELEMENTS = 2**19  # at a time: larger temporaries cost ten times more, in page faults
_BLOCK_STEPS = 2**32  # (row, row, dimension) steps between two chances to interrupt, on a CPU


def weights(metric: str, d: int, per_dimension: bool = True) -> tuple[float, float]:
    """The weights (w1, w2) that make `w1 * L1 + w2 * L2` the metric in d dimensions.

    literal: (L2/d + L1/d) / 2, Eqs. 4-6 as written; rms: (L2/sqrt(d) + L1/d) / 2; l1: L1/d; l2: L2/d. Without
    per_dimension they are d times as large, of L1 and L2 themselves: (L2 + L1) / 2, (sqrt(d) L2 + L1) / 2, L1, L2.
    """
    one_of("metric", metric, get_args(Metric))
    if not per_dimension:
        return {"literal": (0.5, 0.5), "rms": (0.5, 0.5 * math.sqrt(d)), "l1": (1.0, 0.0), "l2": (0.0, 1.0)}[metric]
    return _WEIGHTS[metric](d)


class UnitRows:
    """A feature matrix and the scale whose product has unit rows; a zero row stays zero. Or the matrix as it
    is, with a scale of 1.

    scale (m,) is 1 / norm, from a norm in double. If a row is beyond 2**100 or below 2**-100, where 1 / norm is more
    than a float32 holds, scale is (m, 2): first a power of two, which is exact, then 1 / norm of what that gives.
    """

    def __init__(self, x: Tensor, name: str, progress: bool = False, unit: bool = True, first: int = 0) -> None:
        self.data, self.first = x, first
        self.block = _block(x.shape[1])
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.scale = torch.empty(len(x), dtype=dtype, device=x.device)
        if not unit:
            self.scale.fill_(1)
            self._check_raw(name)
            return
        power: Tensor | None = None
        bad: list[int] = []
        step = max(1, _NORM_ELEMENTS // x.shape[1])
        starts = range(0, len(x), step)
        for i in tqdm(starts, desc="norms", leave=False, disable=None if progress else True):
            rows = x[i : i + step].contiguous()  # torch sums in the order of the layout
            norm = _norms(rows)
            if not bool(((norm > 2.0**-100) & (norm < 2.0**100)).all()):
                largest = rows.double().abs().amax(1)
                bad += (first + i + torch.nonzero(~largest.isfinite())[:, 0]).tolist()
                wild = (largest > 0) & ((largest > 2.0**100) | (largest < 2.0**-100))
                if wild.any():
                    power = torch.ones_like(self.scale) if power is None else power
                    power[i : i + step] = _power_of_two(torch.where(wild, -torch.frexp(largest).exponent, 0), dtype)
                    norm = _norms(rows.double() * power[i : i + step, None])
            self.scale[i : i + step] = torch.where(norm > 0, 1 / norm, 0)
        if power is not None:
            self.scale = torch.stack((power, self.scale), 1)
        if bad:
            raise ValueError(f"{name} must be finite, got NaN or infinity in {name_rows(bad)}")

    def _check_raw(self, name: str) -> None:
        """Raise unless sums of squares of the rows stay in range."""
        most = 2.0**500 if self.data.dtype == torch.float64 else 2.0**60
        step = max(1, _NORM_ELEMENTS // self.data.shape[1])
        for i in range(0, len(self.data), step):
            largest = self.data[i : i + step].abs().amax(1)
            bad = (self.first + i + torch.nonzero(~largest.isfinite())[:, 0]).tolist()
            if bad:
                raise ValueError(f"{name} must be finite, got NaN or infinity in {name_rows(bad)}")
            if bool((largest.double() > most).any()):
                raise ValueError(
                    f"{name} must be within {most:.3g} of 0 for raw rows, got {largest.max():.3g}: divide it"
                )

    def __len__(self) -> int:
        return len(self.data)

    def read(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Some of the rows, with the power of two if there is one, and 1 / norm."""
        rows, scale = self.data[start:stop], self.scale[start:stop]
        if scale.ndim == 1:
            return rows, scale
        return rows.to(scale.dtype) * scale[:, :1], scale[:, 1].contiguous()

    def some(self, rows: Tensor) -> "UnitRows":
        """A copy of some of the rows, with the scale they have here."""
        return UnitRows.scaled(self.data[rows], self.scale[rows])

    @staticmethod
    def scaled(data: Tensor, scale: Tensor) -> "UnitRows":
        """Rows whose scale is known."""
        rows = object.__new__(UnitRows)
        rows.data, rows.scale, rows.first, rows.block = data, scale, 0, _block(data.shape[1])
        return rows

    def steps(self) -> range:
        """Block starts: one block where rows are used in place, small ones where reading converts them."""
        in_place = self.scale.ndim == 1 and self.data.dtype == self.scale.dtype and self.data.stride(1) == 1
        return range(0, len(self), len(self) if in_place else self.block)


def _block(d: int) -> int:
    """Rows that are converted together."""
    return max(1, _BLOCK_BYTES // (8 * d))


def _norms(rows: Tensor) -> Tensor:
    """The L2 norms of rows, in double: within 3 eps of it for float64, which vector_norm misses by d / 32 for alike
    entries since it adds one after another; for float32 that is enough."""
    if rows.dtype == torch.float64:
        return rows.square().sum(1).sqrt()
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2**exponent, as near to it as normal numbers come; from a table because pow may round."""
    most = 1022 if dtype == torch.float64 else 126
    powers = [2.0**e for e in range(-most, most + 1)]
    return torch.tensor(powers, dtype=dtype, device=exponent.device)[most + exponent.clamp(-most, most)]


def matrix(x: Rows, name: str) -> Tensor:
    """x as a tensor, if it is a non-empty matrix of features."""
    tensor = as_matrix(x, name)
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    return tensor


def check_match(x: Tensor, rows: Tensor, name: str) -> None:
    """Raise unless x can be compared with the rows."""
    for what, got, want in (
        ("be on the device of x", x.device, rows.device),
        ("have the dtype of x", x.dtype, rows.dtype),
        ("have as many features as x", x.shape[1], rows.shape[1]),
    ):
        if got != want:
            raise ValueError(f"{name} must {what}, {want}, got {got}")


def check_k(k: int, most: int, rows: int) -> int:
    """k as an int, if it is a count of neighbours between 1 and most."""
    k = whole("k", k)
    if not 1 <= k <= most:
        raise ValueError(f"k must be in [1, {most}] for {rows} rows, got {k}")
    return k


def check_recall(recall: float) -> float:
    """Return recall as a float, or raise."""
    return number("recall", recall, "between 0 and 1, or None for exact neighbours", lambda value: 0 < value < 1)


def check_approximate(recall: float, unit_rows: bool, per_dimension: bool) -> None:
    """Raise unless approximate neighbours can be had of rows that are compared like this."""
    check_recall(recall)
    if not (unit_rows and per_dimension):
        raise ValueError("recall= is for unit rows and distances per dimension: leave out recall, or the other two")


def _is_floating_point(x: Any) -> bool:
    dtype = getattr(x, "dtype", None)
    return dtype.is_floating_point if isinstance(dtype, torch.dtype) else getattr(dtype, "kind", "") == "f"


def _open(
    x: Rows, other: Rows | None, other_name: str, progress: bool = False, unit: bool = True
) -> tuple[UnitRows, UnitRows]:
    """x and the other matrix (x itself for None), checked against each other before anything is read."""
    same_kind = _is_floating_point(x)
    x = matrix(x, "x")
    if other is None:
        rows = UnitRows(x, "x", progress, unit)
        return rows, rows
    plain, integers = isinstance(other, (list, tuple)), not _is_floating_point(other)
    other = matrix(other, other_name)
    if plain and same_kind:  # a list has no dtype of its own
        other = other.to(x.dtype)
    if integers or not same_kind:  # integers that became floating point, whichever holds them
        wider = torch.promote_types(x.dtype, other.dtype)
        x, other = x.to(wider), other.to(wider)
    check_match(other, x, other_name)
    return UnitRows(x, "x", progress, unit), UnitRows(other, other_name, False, unit)


def knn(
    x: Rows,
    k: int,
    metric: Metric = "literal",
    *,
    queries: Rows | None = None,
    recall: float | None = None,
    unit_rows: bool = True,
    per_dimension: bool = True,
    memory: int | str | None = None,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the k nearest other rows of each row under the combined distance of Eqs. 4-6.

    Specifically, with `D = pairwise(x, metric=metric)`, this computes
    `distances, indices = (t[:, :k] for t in D.fill_diagonal_(inf).sort(dim=1, stable=True))` without storing D.
    The result does not depend on the number of threads or on how the work is cut into blocks.

    Args:
        x: Features, (m, d), float16 | bfloat16 | float32 | float64, finite; a tensor, an array or a np.memmap, any
            strides. Rows are normalised here; a zero row stays zero. A list of rows or a table is an array; integers
            become float32, or float64 where float32 does not hold them all.
        k: Neighbours per row, 1 <= k <= m - 1 (<= m with queries).
        metric: "literal", "rms", "l1" or "l2"; see `weights`.
        queries: (q, d), like x: find their neighbours among the rows of x instead, none left out.
        recall: None for exact neighbours. A number in (0, 1), for large pools on a CPU: at least this share of the
            neighbours, with 95 % confidence, in a fraction of the time; `dm2_fast.Neighbours` says what was reached.
        unit_rows: False compares the rows as they are, within 2**60 of 0 (2**500 for float64). The search is as exact;
            it is fast where the columns have one scale, and where one dominates, it may take ten times as long.
        per_dimension: False returns distances d times as large: L1 and L2 themselves, without the division by d.
        memory: Bytes, or a text such as "4GB", that the search on a CPU may take beside what is in memory already, and
            300 MB; what needs more goes to temporary files, the result too. None for no limit. With
            progress=True the plan and the time that it takes are printed.
        backend: "auto", "triton", "cpp" or "torch"; see `dm2_fast.operations.backends`.
        num_threads: Threads of the C++ backend; None for `torch.get_num_threads()`.
        progress: Show a progress bar on a terminal.

    Returns:
        distances: (m, k) float32 (float64 for float64 x), dimensionless, ascending along each row.
        indices: (m, k) int64, never the row's own index; equal distances keep the lower index first.

    Raises:
        ValueError: x is not 2-D or not finite, queries do not match x, or k or recall is out of range; or memory is too
            little, and the message names the least that suffices.
        TypeError: the dtype is not listed above.
        RuntimeError: a forced backend cannot run on x, or a recall is asked for where C++ cannot run.
    """
    if recall is not None:
        from dm2_fast.operations.neighbours import Neighbours

        if queries is not None:
            raise ValueError("recall= is for the neighbours of all rows: leave out queries, or recall")
        check_approximate(recall, unit_rows, per_dimension)
        options: dict[str, Any] = {"backend": backend, "num_threads": num_threads, "progress": progress}
        if memory is not None:
            from dm2_fast.operations.graph_in_parts import graph_within

            return graph_within(matrix(x, "x"), k, metric, recall, memory, **options).graph(k)
        return Neighbours(x, metric, recall, **options).graph(k)
    if memory is not None:
        from dm2_fast.operations.in_parts import within

        if queries is not None:
            raise ValueError("memory= is for the neighbours of all rows: leave out queries, or memory")
        x = matrix(x, "x")
        by = weights(metric, x.shape[1], per_dimension)
        found = within(x, k, *by, memory, unit_rows, backend, num_threads, progress)
        if found is not None:
            return found
    rows, asked = _open(x, queries, "queries", progress, unit_rows)
    most = len(rows) if queries is not None else len(rows) - 1
    k = check_k(k, most, len(rows))
    w1, w2 = weights(metric, rows.data.shape[1], per_dimension)
    module = backends.resolve(backend, rows.data, "knn")
    options = dict[str, Any](backends.thread_options(module, num_threads))
    device, d = rows.data.device, rows.data.shape[1]

    distances = torch.full((len(asked), k), torch.inf, dtype=rows.scale.dtype, device=device)
    indices = torch.full((len(asked), k), torch.iinfo(torch.int64).max, device=device)
    row_ids = torch.arange(len(rows), device=device)
    query_ids = row_ids if queries is None else torch.full((len(asked),), -1, device=device)
    steps = _BLOCK_STEPS if device.type == "cpu" else 256 * _BLOCK_STEPS
    step = min(asked.steps().step, max(64, steps // (len(rows) * d)))
    bar = tqdm(total=len(asked), desc="neighbours", unit="row", leave=False, disable=None if progress else True)
    with bar:
        if module.WHOLE_PROBLEMS:
            options["report"] = lambda done: bar.update(int(len(asked) * done) - bar.n)
            all_queries, all_rows = (asked.data, asked.scale, query_ids), (rows.data, rows.scale, row_ids)
            module.knn(*all_queries, *all_rows, distances, indices, w1, w2, **options)
            return distances, indices
        for i in range(0, len(asked), step):
            part = slice(i, min(i + step, len(asked)))
            query_rows, query_scale = asked.read(part.start, part.stop)
            for j in rows.steps():
                data, scale = rows.read(j, j + rows.steps().step)
                ids = row_ids[j : j + len(data)]
                best = distances[part], indices[part]
                module.knn(query_rows, query_scale, query_ids[part], data, scale, ids, *best, w1, w2, **options)
            bar.update(part.stop - bar.n)
    return distances, indices


def pairwise(
    x: Rows,
    y: Rows | None = None,
    metric: Metric = "literal",
    *,
    unit_rows: bool = True,
    per_dimension: bool = True,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Tensor:
    """Compute the combined distance of every row of x to every row of y (Eqs. 4-6).

    Specifically, with `xn, yn = F.normalize(x), F.normalize(y)`, `D = (xn[:, None] - yn)` and (w1, w2) =
    `weights(metric, d)`, this computes `w1 * D.abs().sum(-1) + w2 * D.square().sum(-1).sqrt()`, a metric.

    Args:
        x: Features, (m, d), float16 | bfloat16 | float32 | float64, finite, any strides. A zero row stays zero.
        y: (n, d), like x; None for x itself.
        metric, unit_rows, per_dimension, backend, num_threads: As in `knn`.

    Returns:
        (m, n) float32 (float64 for float64 x), dimensionless.

    Raises:
        ValueError, TypeError, RuntimeError: As in `knn`.
    """
    rows, others = _open(x, y, "y", unit=unit_rows)
    w1, w2 = weights(metric, rows.data.shape[1], per_dimension)
    module = backends.resolve(backend, rows.data, "pairwise")
    options = backends.thread_options(module, num_threads)
    out = torch.empty(len(rows), len(others), dtype=rows.scale.dtype, device=rows.data.device)
    module.pairwise(*rows.read(0, len(rows)), *others.read(0, len(others)), out, w1, w2, **options)
    return out
