"""Several passes of the model itself over each batch, as dropout at query time wants them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from dm2_fast.model.head import evaluating
from dm2_fast.model.outputs import outputs
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.preparation import plain
from dm2_fast.model.together import Batch

T = TypeVar("T")


def softmax_moments(forward: ForwardPass, passes: int, use: Callable[[int], None]) -> tuple[Tensor, Tensor]:
    """Run the model itself several times, and return the mean of the softmax p and the mean entropy of p.

    Specifically, with p[t] the softmax of pass t, this computes `p.mean(0)` (m, C) and
    `torch.special.entr(p).sum(2).mean(0)` (m,), both float64, without storing p. The pool is read once.

    Args:
        forward: The model and the pool.
        passes: Passes over each batch.
        use: Called with the pass's number before each.
    """

    def moments(each: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        mean = entropy = torch.zeros((), dtype=torch.float64)
        for p in each:
            mean = mean + p / passes
            entropy = entropy + torch.special.entr(p).sum(1) / passes
        return mean, entropy

    means, entropies = zip(*_of_each_batch(forward, passes, use, moments), strict=True)
    return torch.cat(means)[: len(forward)], torch.cat(entropies)[: len(forward)]


def softmaxes(forward: ForwardPass, passes: int, use: Callable[[int], None]) -> Tensor:
    """The softmax of each of the passes, (m, passes, C) float64, with the arguments of `softmax_moments`."""
    stacked = _of_each_batch(forward, passes, use, lambda each: torch.stack(list(each), 1))
    return torch.cat(stacked)[: len(forward)]


def _of_each_batch(
    forward: ForwardPass, passes: int, use: Callable[[int], None], reduce: Callable[[Iterator[Tensor]], T]
) -> list[T]:
    """What reduce makes of the passes' softmax, for each batch; for one row where there is none."""
    if not len(forward):
        forward = replace(forward, rows=torch.zeros(1, dtype=torch.int64))
    least = 2 if forward.multilabel is None else 1

    def softmax(number: int, batch: Batch, first: int, keep: int) -> Tensor:
        use(number)
        return outputs(plain(forward.model, None), batch, first, keep, least)[1].double().softmax(1)

    with evaluating(forward.model):
        return [reduce(softmax(number, *part) for number in range(passes)) for part in forward.batches("passes")]
