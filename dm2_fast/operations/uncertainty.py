"""The uncertainty of logits (Eqs. 8-10)."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dm2_fast.operations import backends
from dm2_fast.operations.arguments import one_of
from dm2_fast.operations.arrays import as_floats, name_rows
from dm2_fast.operations.multilabel import Over, check_over, multilabel_uncertainty
from dm2_fast.operations.probabilities import refuse_probabilities

Uncertainty: TypeAlias = Literal["least-confidence", "entropy", "margin"]


def uncertainty(
    logits: Tensor,
    kind: Uncertainty = "least-confidence",
    *,
    multilabel: Over | None = None,
    these_are_logits: bool = False,
    backend: str = "auto",
    num_threads: int | None = None,
) -> Tensor:
    """Turn logits into one uncertainty per row, without storing the softmax.

    Specifically, with `p = logits.softmax(1)`, this computes `1 - p.amax(1)` ("least-confidence", Eqs. 9-10),
    `-(p * p.log()).sum(1)` ("entropy", in nats), or `-(p1 - p2)` of the two largest values ("margin"). The terms that
    would cancel are left out of the sums, so that a confident row still has a value of its own.

    Args:
        logits: (n, C), C >= 2, float16 | bfloat16 | float32 | float64; -inf is a class of probability zero.
        kind: "least-confidence", "entropy" or "margin".
        multilabel: Each column is a label of its own, with a sigmoid in place of the softmax (C >= 1): the "mean" or
            the "max" of the labels' uncertainties, see `dm2_fast.operations.multilabel`. None: one class per row.
        these_are_logits: Rows that look like probabilities, non-negative with sum 1, are logits nevertheless.
        backend, num_threads: As in `dm2_fast.knn`.

    Returns:
        (n,) float32 (float64 for float64 logits); larger is more uncertain.

    Raises:
        ValueError: logits are not (n, C), hold NaN or +infinity, look like probabilities, or kind is unknown.
        TypeError: the dtype is not listed above.
        RuntimeError: a forced backend cannot run on logits.
    """
    one_of("kind", kind, get_args(Uncertainty))
    check_over(multilabel)
    logits = as_floats(logits, "logits")
    if logits.ndim != 2 or logits.shape[1] < (2 if multilabel is None else 1):
        one = ": for one sigmoid, pass multilabel='mean'" if logits.ndim == 2 and logits.shape[1] == 1 else ""
        raise ValueError(f"logits must be (n, C) with at least two classes, got shape {tuple(logits.shape)}{one}")
    bad = torch.nonzero(~logits.amax(1).isfinite())[:, 0].tolist() if len(logits) else []
    if bad:
        raise ValueError(f"logits must be finite or -infinity, got NaN or infinity in {name_rows(bad)}")
    if multilabel is not None:
        return multilabel_uncertainty(logits, kind, multilabel)
    if not these_are_logits:
        refuse_probabilities(logits, "logits")
    module = backends.resolve(backend, logits, "uncertainty")
    options = backends.thread_options(module, num_threads)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(len(logits), dtype=dtype, device=logits.device)
    if len(logits):
        module.uncertainty(logits, kind, out, **options)
    return out
