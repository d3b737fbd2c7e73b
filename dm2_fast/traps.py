"""What makes a choice mean something else than it seems to, each said in a warning with the remedy."""

import warnings

import torch
from torch import Tensor

from dm2_fast.operations.mapped import blocks, taken

_ROWS = 1024  # looked at
_SHARE = 0.9  # of the squared length of the rows, in one column
_LEAST_COLUMNS = 4


def warn_of_ties(scores: Tensor, chosen: Tensor, offset: int) -> None:
    """Warn if row numbers decide about a tenth of the choice or more, between more than two rows of one score.

    Args:
        scores: (m,).
        chosen: The rows with the highest scores after offset others, by descending score.
    """
    last = scores[chosen[-1]]
    equal = scores == last
    tied, at_end = int(equal.sum()), int(equal[chosen].sum())
    if int((scores > last).sum()) + tied == offset + len(chosen):  # all of them are chosen, or skipped
        return
    if tied > 2 and 10 * at_end >= len(chosen):
        warnings.warn(
            f"{tied} rows have the same score, and {at_end} of them were chosen for their lower row number: see "
            "whether the model tells its samples apart, or let a draw decide with ties='random'",
            stacklevel=4,
        )


def warn_of_column(features: Tensor) -> None:
    """Warn if one of the columns is nearly all of the length of the rows, so that distances hardly see the others."""
    if features.shape[1] < _LEAST_COLUMNS:
        return
    step = max(1, len(features) // _ROWS)
    some = taken(features, torch.arange(0, len(features), step, device=features.device))
    squared = some.double().square()
    share = (squared / squared.sum(1, keepdim=True).clamp(min=1e-300)).mean(0)
    if float(share.max()) > _SHARE:
        warnings.warn(
            f"feature {int(share.argmax())} makes up {float(share.max()):.0%} of the length of the rows, so distances "
            "hardly see the others and take longer: bring the features to one scale, for example with scikit-learn's "
            "StandardScaler",
            stacklevel=4,
        )


def warn_of_duplicates(distances: Tensor) -> None:
    """Warn if a hundredth of the rows or more have only neighbours at distance zero, with which mixing is in vain."""
    m, k = distances.shape
    alone = sum(int((distances[part, -1] == 0).sum()) for part in blocks(distances)) if k else 0
    if alone and 100 * alone >= m:
        warnings.warn(
            f"{alone} rows have {k} others at distance 0 (duplicates, or features that the model does not tell apart), "
            "so mixing does not change them: remove duplicates from the pool, or raise k",
            stacklevel=4,
        )
