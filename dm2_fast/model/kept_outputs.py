"""What the model computes for batch after batch: in memory, or in files so that a budget need not hold it."""

from collections.abc import Callable

import torch
from torch import Tensor

from dm2_fast.operations.mapped import mapped, releasing

Outputs = list[tuple[Tensor, Tensor]]  # (features, logits) of batches


def joined(outputs: Outputs, features: bool) -> tuple[Tensor, Tensor]:
    """Features and logits of all batches; the logits twice without features."""
    logits = torch.cat([logits for _, logits in outputs])
    return torch.cat([features for features, _ in outputs]) if features else logits, logits


class KeptOutputs:
    """Takes the features and logits of batch after batch, of m rows in all.

    Args:
        m: Rows.
        features: Whether the features are taken too.

    Attributes:
        features, logits: Those of all rows, (m, d) and (m, C), in mapped files without a name.
    """

    def __init__(self, m: int, features: bool) -> None:
        self.m, self.with_features, self.filled = m, features, 0
        self.features = self.logits = torch.empty(0)
        self._give_back: list[Callable[[], object]] = []

    def take(self, outputs: Outputs) -> Outputs:
        """Write those of the next batches; nothing is left of them in memory."""
        for features, logits in outputs:
            if self.filled == 0:
                self.logits = mapped((self.m, logits.shape[1]), logits)
                self.features = mapped((self.m, features.shape[1]), features) if self.with_features else self.logits
                self._give_back = [releasing(x) for x in (self.features, self.logits)]
            stop = self.filled + len(logits)
            self.logits[self.filled : stop] = logits
            if self.with_features:
                self.features[self.filled : stop] = features
            self.filled = stop
        for of_file in self._give_back:
            of_file()
        return []
