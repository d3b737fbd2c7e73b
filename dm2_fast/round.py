"""What a strategy may look at (`Round`), what it returns (`Picked`), and the clock of its stages."""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast.model.dropout import dropout_tail, sampled_dropout
from dm2_fast.model.head import evaluating, find_head, model_device
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.arrays import ArrayLike
from dm2_fast.operations.audit import Audit
from dm2_fast.operations.mix import Recipe
from dm2_fast.operations.uncertainty import Uncertainty
from dm2_fast.words import count

T = TypeVar("T")


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
            parts.append(f"scores {first:.3g} to {last:.3g} of {len(self.scores)}")
        if self.seconds:
            parts.append(f"{sum(self.seconds.values()):.2g} s")
        return f"Picked({'; '.join(parts)})"


@dataclass
class Round:
    """One acquisition round: the trained model, the unlabelled pool, the labelled set, and the key of the random draws.

    What strategies share is computed when it is first read, and kept.

    Args:
        forward: The model and the pool, and how they are run.
        seed, round, row_ids: Key of every random draw; row_ids (m,) defaults to 0, 1, 2, ...
        labelled: Inputs of the labelled set, (n, ...), for the strategies that look at it.
        labels: Their classes, (n,) int64.
        part: What the strategy trained beside the network (see `dm2_fast.Strategy`), as it is after the training; None
            where the model was trained without it.

    Attributes:
        seconds: Wall time of each stage so far.
    """

    forward: ForwardPass
    seed: int = 0
    round: int = 0
    row_ids: NDArray[np.int64] | Tensor | None = None
    labelled: ArrayLike | None = None
    labels: Tensor | None = None
    part: nn.Module | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _kept: dict[tuple[str, Hashable], Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.forward.inputs)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The rows' ids, (m,)."""
        return check_row_ids(self.row_ids, len(self))

    @property
    def features(self) -> Tensor:
        """Features f of the pool, (m, d): the input of the head (Eq. 3). The logits come with them.

        Raises:
            ValueError: the model has no head.
        """
        return self.once("features", None, self.forward.features_and_logits)[0]

    @property
    def logits(self) -> Tensor:
        """Logits of the unmixed samples, (m, C); the features are kept with them where the model has a head."""
        if self.forward.head is None and ("features", None) not in self._kept:
            try:
                _ = self.head
            except ValueError:
                return self.only_logits
        return self.once("features", None, self.forward.features_and_logits)[1]

    @property
    def only_logits(self) -> Tensor:
        """The same logits for a strategy that never reads features: these are not kept, if nobody has read them yet."""
        if ("features", None) in self._kept:
            return self.logits
        return self.once("logits", None, self.forward.logits)

    @cached_property
    def head(self) -> nn.Module:
        """The module whose input the features are."""
        with evaluating(self.forward.model):
            return find_head(self.forward.model, self.forward.first_rows(), self.forward.head)

    @property
    def labelled_features(self) -> Tensor:
        """Features of the labelled set, (n, d).

        Raises:
            ValueError: the round has no labelled set.
        """
        labelled = self.labelled
        if labelled is None or len(labelled) == 0:
            raise ValueError("this strategy compares with labelled samples: pass labelled= with at least one")
        return self.once("labelled", None, lambda: self.forward.over(labelled).features_and_logits()[0])

    def dropout(self, passes: int) -> tuple[Tensor, Tensor]:
        """Mean of the softmax p (m, C) and mean entropy of p (m,) over passes with dropout on, both float64.

        See `dm2_fast.model.dropout.sampled_dropout` for what a pass is. Where dropout only stands before the head, the
        passes start from the features.

        Raises:
            ValueError: the model runs no dropout layer.
        """
        forward = self._dropout_forward

        def run() -> tuple[Tensor, Tensor]:
            with sampled_dropout(forward.model, self.seed, self.round) as use:
                return forward.softmax_moments(passes, use)

        return self.once("dropout", passes, run)

    @cached_property
    def _dropout_forward(self) -> ForwardPass:
        """The part of the forward pass that dropout can change."""
        forward = self.forward
        with evaluating(forward.model):
            tail = dropout_tail(forward.model, forward.first_rows())
        if tail is None or tail[1] is not self.head:
            return forward
        return replace(forward.through(tail), inputs=self.features, normalize=None)

    def once(self, name: str, key: Hashable, run: Callable[[], T]) -> T:
        """What run returns, computed for the first caller with this name and key; its time is seconds[name]."""
        if (name, key) not in self._kept:
            with self.stage(name):
                self._kept[name, key] = run()
        result: T = self._kept[name, key]
        return result

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to seconds[name], less that of the stages within it."""
        outer, self.seconds = self.seconds, {}
        spent: dict[str, float] = {}
        try:
            with stage(spent, name, model_device(self.forward.model)):
                yield
        finally:
            within, self.seconds = self.seconds, outer
            for inner, seconds in within.items():
                outer[inner] = outer.get(inner, 0.0) + seconds
        outer[name] = outer.get(name, 0.0) + spent[name] - sum(within.values())

    def most_uncertain(self, budget: int, kind: Uncertainty) -> Picked:
        """Choose the budget most uncertain unmixed samples, ties to the lower row."""
        logits = self.only_logits
        with self.stage("choose"):
            scores = self.forward.uncertainty(logits, kind)
            return Picked(highest(scores, budget), scores)


def highest(scores: Tensor, budget: int, offset: int = 0) -> Tensor:
    """The rows of the budget highest scores after skipping offset of them, ties to the lower row (Eq. 11)."""
    return scores.sort(descending=True, stable=True).indices[offset : offset + budget]


def check_budget(budget: int, m: int, offset: int = 0) -> None:
    """Raise unless budget rows can be chosen from m."""
    if not 1 <= budget <= m:
        raise ValueError(f"budget must be in [1, {m}] for a pool of {m} rows, got {budget}")
    if offset + budget > m:
        raise ValueError(f"offset must be at most {m - budget} for budget {budget} of {m} rows, got {offset}")


def check_row_ids(row_ids: NDArray[np.int64] | Tensor | None, m: int) -> NDArray[np.int64]:
    """row_ids as an array; 0, 1, 2, ... for None."""
    if row_ids is None:
        return np.arange(m)
    ids = row_ids.cpu().numpy() if isinstance(row_ids, Tensor) else np.asarray(row_ids)
    if ids.shape != (m,) or ids.dtype.kind not in "iu":
        raise ValueError(f"row_ids must be {m} integers, got shape {ids.shape} of {ids.dtype}")
    return ids.astype(np.int64)


def check_picked(picked: object, who: str, budget: int, m: int) -> Picked:
    """picked, if it is a choice of budget distinct rows of m, with a score for each row or None."""
    if not isinstance(picked, Picked):
        raise ValueError(f"{who} must return a dm2_fast.Picked(indices, scores), got {type(picked).__name__}")
    rows, scores = picked.indices, picked.scores
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != (budget,):
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{who} must choose {budget} rows as an int64 tensor of shape ({budget},), got {got}")
    outside = rows[(rows < 0) | (rows >= m)]
    if len(outside):
        raise ValueError(f"{who} must choose rows of the pool, 0 to {m - 1}, got {outside[0].item()}")
    repeated = torch.nonzero(torch.bincount(rows) > 1)
    if len(repeated):
        raise ValueError(f"{who} must choose distinct rows, got row {repeated[0].item()} more than once")
    if scores is not None and (not isinstance(scores, Tensor) or scores.shape != (m,)):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{who} must return None or a score for each of the {m} rows, got {got}")
    return picked


@contextmanager
def stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Store the wall time of a stage in seconds, with the device synchronised at both ends."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    yield
    seconds[name] = now() - start
