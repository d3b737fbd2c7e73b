"""What a strategy may look at, computed once per round and shared."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.acquire import Picked, check_budget, check_row_ids, highest, stage
from dm2_fast.scoring import ForwardPass, Uncertainty, model_device


@dataclass
class Round:
    """One acquisition round: the unlabelled pool, the trained model, and the key of the random draws.

    Args:
        forward: The model and the pool, and how they are run.
        seed, round, row_ids: Key of every random draw; row_ids (m,) defaults to 0, 1, 2, ...
    """

    forward: ForwardPass
    seed: int = 0
    round: int = 0
    row_ids: NDArray[np.int64] | Tensor | None = None

    def __len__(self) -> int:
        return len(self.forward.inputs)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """The rows' ids, (m,)."""
        return check_row_ids(self.row_ids, len(self))

    @cached_property
    def logits(self) -> Tensor:
        """Logits of the unmixed samples, (m, C)."""
        return self.forward.logits()

    def most_uncertain(self, budget: int, kind: Uncertainty) -> Picked:
        """Choose the budget most uncertain unmixed samples, ties to the lower row."""
        check_budget(budget, len(self))
        seconds: dict[str, float] = {}
        device = model_device(self.forward.model)
        with stage(seconds, "logits", device):
            logits = self.logits
        with stage(seconds, "choose", device):
            scores = self.forward.uncertainty(logits, kind)
            indices = highest(scores, budget)
        return Picked(indices, scores, seconds=seconds)
