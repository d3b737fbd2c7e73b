"""What a model returns for a batch, checked."""

import sys

import numpy as np
import torch
from torch import Tensor, nn

from dm2_fast.model.functions import rows_of, shape_of
from dm2_fast.model.head import check_logits, model_device, model_dtype
from dm2_fast.model.preparation import Run
from dm2_fast.model.together import Batch, Together
from dm2_fast.operations.arrays import ArrayLike, as_tensor, name_rows
from dm2_fast.operations.mapped import release

_CHECKED_ELEMENTS = 2**19  # at a time, so that looking for NaN takes no memory to speak of


def outputs(
    run: Run, batch: Batch, start: int, keep: int, least_classes: int, features_too: bool = False
) -> tuple[Tensor, Tensor]:
    """Features and logits of the first keep rows of a batch; the logits twice where no features are asked for.

    Args:
        run: From a batch to features and logits.
        batch: Samples as the model takes them; those behind the first keep only fill it.
        start: Row of the pool that the batch begins with, for messages.
        keep: How many rows count.
        least_classes: The fewest logits that a sample may have.
        features_too: Whether features are asked for.

    Raises:
        ValueError: the model does not return finite logits and features, one row a sample.
    """
    size = rows_of(batch)
    try:
        features, returned = run(batch)
    except Exception as error:
        if sys.version_info >= (3, 11):
            error.add_note(f"model ran on rows {start} to {start + keep - 1}, a batch of shape {shape_of(batch)}")
        raise
    logits = check_logits(returned, least_classes)
    if len(logits) != size:
        raise ValueError(f"model must return one row per sample, got {len(logits)} rows for {size} samples")
    check_finite("logits", logits[:keep].amax(1, keepdim=True), start)
    kept = logits[:keep].clone()
    if not features_too:
        return kept, kept
    if features is None or len(features) != size:
        shape = None if features is None else tuple(features.shape)
        raise ValueError(f"head must see one row per sample, got {shape} for {size} samples")
    check_finite("features", features[:keep], start)
    return features[:keep].clone(), kept


def inputs_as_features(
    model: nn.Module, pool: ArrayLike | Together, rows: Tensor | None, memory: int | str | None
) -> Tensor | None:
    """The inputs, where a forward pass would only copy them: a linear model that takes them as they are; else None.

    Raises:
        ValueError: they are not finite.
    """
    if not isinstance(model, nn.Linear) or not isinstance(pool, (Tensor, np.ndarray)) or len(pool.shape) != 2:
        return None
    features = as_tensor(pool, "inputs")
    if features.dtype != model_dtype(model) or features.device != model_device(model):
        return None
    step = max(1, _CHECKED_ELEMENTS // features.shape[1])
    if rows is not None and memory is not None and len(rows) and bool((rows.diff() == 1).all()):
        features = features[int(rows[0]) : int(rows[-1]) + 1]  # where they lie
    elif rows is not None:
        features = features[rows]
    for start in range(0, len(features), step):
        check_finite("features", features[start : start + step], start if rows is None else int(rows[start]))
        if memory is not None:
            release(features)
    return features


def check_finite(name: str, values: Tensor, start: int) -> None:
    """Raise unless values (n, ...) of the rows from start on are finite.

    Raises:
        ValueError: names the first bad rows.
    """
    finite = values.isfinite()
    if not finite.all():
        bad = (start + torch.nonzero(~finite.all(1))[:, 0]).tolist()
        raise ValueError(f"{name} of the model must be finite, got NaN or infinity in {name_rows(bad)}")
