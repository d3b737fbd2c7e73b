"""What a round knows where there is no model: features, logits, or features and the linear head that reads them."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from dm2_fast.model.functions import FunctionModel
from dm2_fast.model.linear_head import linear_head
from dm2_fast.operations.arguments import shown
from dm2_fast.operations.arrays import as_matrix
from dm2_fast.operations.probabilities import logits_of, refuse_probabilities

_BATCH_BYTES = 2**22  # of features: what a linear head does with fewer costs less than starting it


class NoModel(FunctionModel):
    """Stands where the model would, and says that there is none."""

    def __init__(self) -> None:
        super().__init__(_missing)


def _missing(_: object) -> NoReturn:
    raise ValueError(
        "this strategy runs more than the head, and there is no model: pass it and its samples to dm2_fast.select"
    )


@dataclass(frozen=True)
class Given:
    """The arrays of a round.

    Attributes:
        model: The head, or what stands for it.
        pool: What the model would run on.
        features, logits, labelled_features: As far as they were given.
    """

    model: nn.Module
    pool: Tensor
    features: Tensor | None
    logits: Tensor | None
    labelled_features: Tensor | None

    @property
    def batch_size(self) -> int:
        """Rows per pass of the head; of a function, as many in each, since it would run on what fills up the last."""
        most = max(1, _BATCH_BYTES // (self.pool[0].numel() * self.pool.element_size()))
        return -(-len(self.pool) // -(-len(self.pool) // most)) if isinstance(self.model, FunctionModel) else most

    def passes(self) -> dict[tuple[str, Hashable], Any]:
        """What need not be computed, as a round keeps it."""
        kept: dict[tuple[str, Hashable], Any] = {}
        if self.logits is not None:
            kept["logits", None] = self.logits
        if self.logits is not None or isinstance(self.model, FunctionModel):
            kept["features", None] = self.features, self.logits
        if self.labelled_features is not None and isinstance(self.model, FunctionModel):
            kept["labelled", None] = self.labelled_features
        return kept


def given(
    features: Any,
    logits: Any,
    probabilities: Any,
    labelled_features: Any,
    head: nn.Linear | tuple[Any, Any] | Callable[[Tensor], Any] | None,
    multilabel: str | None,
    these_are_logits: bool,
) -> Given:
    """Check the arrays of `dm2_fast.Round.from_arrays` against each other.

    Raises:
        ValueError: nothing is given, shapes do not fit, or what is given as logits looks like probabilities.
        TypeError: one is no array of numbers.
    """
    if features is None and logits is None and probabilities is None:
        raise ValueError("give features=, logits= or probabilities=")
    if logits is not None and probabilities is not None:
        raise ValueError("give logits= or probabilities=, not both")
    x = None if features is None else as_matrix(features, "features")
    outputs = None
    if probabilities is not None:
        outputs = logits_of(_outputs(probabilities, "probabilities", "[1 - p, p]"), multilabel=multilabel is not None)
    elif logits is not None:
        outputs = _outputs(logits, "logits", "[0 * z, z]")
        if multilabel is None and not these_are_logits:
            refuse_probabilities(outputs, "logits")
    if x is not None and outputs is not None and len(x) != len(outputs):
        raise ValueError(f"features and logits must have as many rows, got {len(x)} and {len(outputs)}")
    others = None if labelled_features is None else as_matrix(labelled_features, "labelled_features")
    if x is not None and others is not None:
        if others.shape[1] != x.shape[1]:
            raise ValueError(f"labelled_features must have the {x.shape[1]} columns of features, got {others.shape[1]}")
        others = others.to(x.dtype)
    if head is None:
        pool = x if x is not None else outputs
        assert pool is not None
        return Given(NoModel(), pool, x, outputs, others)
    if x is None:
        raise ValueError("head= reads features: give features= too")
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x = x.to(dtype)
    if callable(head) and not isinstance(head, nn.Linear):
        return Given(FunctionModel(head), x, x, outputs, None if others is None else others.to(dtype))
    weight, bias = (head.weight, head.bias) if isinstance(head, nn.Linear) else _pair(head)
    bias = torch.zeros(len(weight)) if bias is None else bias
    layer = linear_head(weight, bias, x.shape[1], dtype).to(x.device)
    if outputs is not None and outputs.shape[1] != layer.out_features:
        raise ValueError(f"logits must have the {layer.out_features} classes of the head, got {outputs.shape[1]}")
    return Given(layer, x, x, outputs, None if others is None else others.to(dtype))


def _outputs(values: Any, name: str, columns: str) -> Tensor:
    """The outputs of a model, (m, C).

    Raises:
        ValueError: they are one column, or a list with the outputs for each label.
    """
    if getattr(values, "ndim", 2) == 1:
        raise ValueError(
            f"{name} must be (m, C), got shape {tuple(values.shape)}: for two classes, pass the columns "
            f"np.stack({columns}, 1)"
        )
    if isinstance(values, (list, tuple)) and len(values) > 0 and getattr(values[0], "ndim", 1) == 2:
        raise ValueError(
            f"{name} must be (m, C), got a list of {len(values)} matrices: for labels of their own, take the column of "
            "each label, np.stack([p[:, 1] for p in list], 1)"
        )
    return as_matrix(values, name)


def _pair(head: Any) -> tuple[Any, Any]:
    """(weight, bias) of a head.

    Raises:
        TypeError: it is something else.
    """
    if isinstance(head, (tuple, list)) and len(head) == 2:
        return head[0], head[1]
    remedy = "pass (weight, bias) of a linear layer, or the layer"
    if hasattr(head, "coef_") and hasattr(head, "intercept_"):
        remedy = "pass (classifier.coef_, classifier.intercept_)"
    elif hasattr(head, "predict_proba"):
        remedy = "pass lambda x: dm2_fast.logits_of(classifier.predict_proba(x))"
    got = f"{len(head)} values" if isinstance(head, (tuple, list)) else shown(head)
    raise TypeError(f"head is {got}: {remedy}")
