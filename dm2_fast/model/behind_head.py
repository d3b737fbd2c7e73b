"""The head alone, on features (Eq. 3)."""

from dataclasses import replace

from torch import Tensor, nn

from dm2_fast.model.passes import ForwardPass


def behind(forward: ForwardPass, head: nn.Module, features: Tensor, logits: Tensor) -> ForwardPass:
    """The pass of the features through the head alone, whose outputs for the first rows are compared with the logits.

    Raises:
        ValueError: the model does more to the features than the head does.
    """
    alone = replace(forward.through(head), inputs=features, normalize=None, rows=None)
    few = slice(0, 2)
    try:
        found = alone.over(features[few]).logits()
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"the head {type(head).__name__} does not run on features alone: {error}") from error
    same = found.shape == logits[few].shape
    if not same or not bool((found - logits[few]).abs().max() <= 1e-3 * logits[few].abs().max()):
        raise ValueError(
            "the logits are not the output of the head alone: name the module whose input is the feature vector "
            "and whose output are the logits with head=..., or mix the input, space='input'"
        )
    return alone
