"""What a strategy may look at, computed once per round and shared."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast.acquire import Picked, check_budget, check_row_ids, highest, stage
from dm2_fast.arrays import ArrayLike
from dm2_fast.dropout import dropout_tail, sampled_dropout
from dm2_fast.scoring import ForwardPass, Uncertainty, evaluating, find_head, model_device

T = TypeVar("T")


@dataclass
class Round:
    """One acquisition round: the trained model, the unlabelled pool, the labelled set, and the key of the random draws.

    Args:
        forward: The model and the pool, and how they are run.
        seed, round, row_ids: Key of every random draw; row_ids (m,) defaults to 0, 1, 2, ...
        labelled: Inputs of the labelled set, (n, ...), for the strategies that look at it.
        labels: Their classes, (n,) int64.

    Attributes:
        seconds: Wall time of each forward pass that strategies share, once it has run. What a strategy does besides
            is in its `Picked.seconds`.
    """

    forward: ForwardPass
    seed: int = 0
    round: int = 0
    row_ids: NDArray[np.int64] | Tensor | None = None
    labelled: ArrayLike | None = None
    labels: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    _kept: dict[tuple[str, Hashable], Any] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.forward.inputs)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The rows' ids, (m,)."""
        return check_row_ids(self.row_ids, len(self))

    @cached_property
    def features(self) -> Tensor:
        """Features f of the pool, (m, d): the input of the head (Eq. 3). The logits come with them."""
        with stage(self.seconds, "features", model_device(self.forward.model)):
            features, self.logits = self.forward.features_and_logits()
        return features

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the unmixed samples, (m, C)."""
        with stage(self.seconds, "logits", model_device(self.forward.model)):
            return self.forward.logits()

    @cached_property
    def head(self) -> nn.Module:
        """The module whose input the features are."""
        with evaluating(self.forward.model):
            return find_head(self.forward.model, self.forward.first_rows(), self.forward.head)

    @cached_property
    def labelled_features(self) -> Tensor:
        """Features of the labelled set, (n, d).

        Raises:
            ValueError: the round has no labelled set.
        """
        if self.labelled is None or len(self.labelled) == 0:
            raise ValueError("labelled must hold at least one sample for this strategy, got none")
        with stage(self.seconds, "labelled", model_device(self.forward.model)):
            return self.forward.over(self.labelled).features_and_logits()[0]

    def dropout(self, passes: int) -> tuple[Tensor, Tensor]:
        """Mean of the softmax p (m, C) and mean entropy of p (m,) over passes with dropout on, both float64.

        See `dm2_fast.dropout.sampled_dropout` for what a pass is. Where dropout only stands before the head, the passes
        start from the features.

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
            with stage(self.seconds, name, model_device(self.forward.model)):
                self._kept[name, key] = run()
        result: T = self._kept[name, key]
        return result

    def most_uncertain(self, budget: int, kind: Uncertainty) -> Picked:
        """Choose the budget most uncertain unmixed samples, ties to the lower row."""
        check_budget(budget, len(self))
        logits = self.logits
        seconds: dict[str, float] = {}
        with stage(seconds, "choose", model_device(self.forward.model)):
            scores = self.forward.uncertainty(logits, kind)
            indices = highest(scores, budget)
        return Picked(indices, scores, seconds=seconds, prepared=self.forward.prepared().note)
