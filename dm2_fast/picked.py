"""What an acquisition returns (`Picked`), and the checks of what goes in and comes out."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.operations.arguments import shown, whole
from dm2_fast.operations.arrays import as_tensor
from dm2_fast.operations.audit import Audit
from dm2_fast.operations.mix import Recipe
from dm2_fast.words import count


@dataclass(frozen=True)
class Picked:
    """What an acquisition chose, and why.

    Attributes:
        indices: Chosen rows of the pool in order of choice, (B,) int64.
        scores: The score of every row of the pool, (m,); None for a strategy that does not score rows.
        neighbours: (m, k) int64 neighbours of every row, nearest first; None for strategies without neighbours.
        distances: (m, k) distances to them; None likewise.
        mixture: What every row was mixed with, and how much of it; None for strategies that do not mix.
        audit: How good the neighbours are, where `DM2Config(recall=...)` asked for it; None likewise.
        seconds: Wall time of each stage that this choice ran, in the order in which they ended.
        prepared: How the model was prepared for inference, or "off" and why it was not; None where no model ran.
        ids: What the user calls the chosen rows, in order of choice; None where the rows have numbers only.
    """

    indices: Tensor
    scores: Tensor | None
    neighbours: Tensor | None = None
    distances: Tensor | None = None
    mixture: Recipe | None = None
    audit: Audit | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: str | None = None

    def __repr__(self) -> str:
        chosen = self.indices.tolist()
        parts = [f"{count(len(chosen), 'row')}: {', '.join(map(str, chosen[:5]))}{', ...' * (len(chosen) > 5)}"]
        if self.scores is not None and chosen:
            first, last = (self.scores[row].item() for row in (chosen[0], chosen[-1]))
            of = f"score {first:.3g}" if len(chosen) == 1 else f"scores {first:.3g} to {last:.3g}"
            parts.append(f"{of} of {len(self.scores)}")
        if self.seconds:
            parts.append(f"{sum(self.seconds.values()):.2g} s")
        return f"Picked({'; '.join(parts)})"

    ids: list[Any] | None = None


def highest(scores: Tensor, budget: int, offset: int = 0) -> Tensor:
    """The rows of the budget highest scores after skipping offset of them, ties to the lower row (Eq. 11)."""
    rows = reaching(scores, offset + budget)
    return rows[scores[rows].sort(descending=True, stable=True).indices[offset : offset + budget]]


def reaching(scores: Tensor, count: int) -> Tensor:
    """The rows whose score is at least that of rank count, in order: no other row is among the count highest."""
    if count >= len(scores):
        return torch.arange(len(scores), device=scores.device)
    least = scores.topk(count, sorted=False).values.min()
    return torch.nonzero(~(scores < least))[:, 0]  # NaN is the highest, as where torch sorts


def check_budget(budget: int, m: int, offset: int = 0) -> None:
    """Raise unless budget rows can be chosen from m."""
    if m == 0:
        raise ValueError("pool has no rows: there is nothing to choose from")
    if not 1 <= whole("budget", budget) <= m:
        raise ValueError(f"budget must be in [1, {m}] for a pool of {m} rows, got {budget}")
    if offset + budget > m:
        raise ValueError(f"offset must be at most {m - budget} for budget {budget} of {m} rows, got {offset}")


def check_row_ids(row_ids: NDArray[np.int64] | Tensor | None, m: int) -> NDArray[np.int64]:
    """row_ids as an array; 0, 1, 2, ... for None."""
    if row_ids is None:
        return np.arange(m)
    ids = as_tensor(row_ids, "row_ids").cpu().numpy()
    if ids.shape != (m,) or ids.dtype.kind not in "iu":
        raise ValueError(f"row_ids must be {m} integers, got shape {ids.shape} of {ids.dtype}")
    return ids.astype(np.int64)


def check_names(names: Sequence[Any] | None, m: int) -> Sequence[Any] | None:
    """names, if they are one for each of m rows and all different."""
    if names is None:
        return None
    if isinstance(names, (Tensor, np.ndarray)) and names.ndim == 1:
        names = names.tolist()
    if not isinstance(names, Iterable) or isinstance(names, (str, bytes, Tensor, np.ndarray)):
        raise TypeError(f"ids must be one name after the other, got {shown(names)}")
    listed = list(names)
    if len(listed) != m:
        raise ValueError(f"ids must name each of the {m} rows, got {len(listed)}")
    rows: dict[Any, int] = {}
    for row, name in enumerate(listed):
        if not isinstance(name, Hashable):
            raise TypeError(f"ids must be texts or numbers, got {shown(name)} for row {row}")
        if rows.setdefault(name, row) != row:
            raise ValueError(f"ids must all be different, got {shown(name)} for row {rows[name]} and row {row}")
    return listed


def check_labels(labels: Any, n: int | None) -> Tensor | None:
    """labels as (n,) int64, if they are a class number for each of n labelled samples.

    Raises:
        TypeError: they are no integers.
        ValueError: there are more or fewer, or one is negative.
    """
    if labels is None:
        return None
    found = labels if isinstance(labels, Tensor) else np.asarray(labels)
    if isinstance(found, np.ndarray) and found.dtype.kind in "OUS":
        raise TypeError(
            f"labels must be numbers of classes, got {found.dtype}: "
            "np.unique(labels, return_inverse=True)[1] gives them"
        )
    y = as_tensor(found, "labels")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"labels must be integers, the numbers of classes from 0 on, got {y.dtype}")
    if n is not None and y.shape != (n,):
        raise ValueError(f"labels must be one for each of the {n} labelled samples, got shape {tuple(y.shape)}")
    if y.numel() and int(y.min()) < 0:
        raise ValueError(f"labels must be from 0 on, got {int(y.min())}: leave samples without a label out of labelled")
    return y.to(torch.int64)


def check_picked(picked: object, who: str, budget: int, m: int, scored: int | None = None) -> Picked:
    """picked, if it is a choice of budget distinct rows of m, with a score for each row (of those scored) or None."""
    scored = m if scored is None else scored
    if not isinstance(picked, Picked):
        raise ValueError(f"{who} must return a dm2_fast.Picked(indices, scores), got {shown(picked)}")
    rows, scores = picked.indices, picked.scores
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != (budget,):
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else shown(rows)
        raise ValueError(f"{who} must choose {budget} rows as an int64 tensor of shape ({budget},), got {got}")
    outside = rows[(rows < 0) | (rows >= m)]
    if len(outside):
        raise ValueError(f"{who} must choose rows of the pool, 0 to {m - 1}, got {outside[0].item()}")
    repeated = torch.nonzero(torch.bincount(rows) > 1)
    if len(repeated):
        raise ValueError(f"{who} must choose distinct rows, got row {repeated[0].item()} more than once")
    if scores is not None and (not isinstance(scores, Tensor) or scores.shape != (scored,)):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else shown(scores)
        raise ValueError(f"{who} must return None or a score for each of the {scored} rows, got {got}")
    return picked
