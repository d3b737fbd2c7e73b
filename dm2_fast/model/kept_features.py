"""Features that the model computes, in a file, so that a budget of memory need not hold them."""

import torch
from torch import Tensor

from dm2_fast.operations.in_parts import mapped
from dm2_fast.operations.memory import release

Outputs = list[tuple[Tensor, Tensor]]  # (features, logits) of batches


class KeptFeatures:
    """Takes the features of batch after batch, of m rows in all.

    Attributes:
        features: Those of all rows, (m, d), in a mapped file without a name, once they have been taken.
    """

    def __init__(self, m: int) -> None:
        self.m, self.filled = m, 0
        self.features = torch.empty(0)

    def take(self, outputs: Outputs) -> Outputs:
        """Write the features of the next batches, and return the outputs without them."""
        for features, _ in outputs:
            if self.filled == 0:
                self.features = mapped((self.m, features.shape[1]), features)
            self.features[self.filled : self.filled + len(features)] = features
            self.filled += len(features)
        release(self.features)
        return [(features[:0], logits) for features, logits in outputs]
