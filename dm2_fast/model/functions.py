"""How a model is called and what it returns: modules of one or several inputs, and functions of any framework."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dm2_fast.model.together import Batch
from dm2_fast.operations.arguments import shown


class FunctionModel(nn.Module):
    """A function from a batch to (n, C) logits, or to (logits, features), of whatever framework, as a module.

    Args:
        function: Called with a batch as the pool has it: a tensor, or a tuple or dict of tensors.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, batch: Any) -> Tensor:
        """The logits."""
        return self.both(batch)[1]

    def both(self, batch: Any) -> tuple[Tensor | None, Tensor]:
        """(features, logits); no features where the function returns none."""
        returned = self.function(batch)
        if isinstance(returned, (tuple, list)) and len(returned) == 2:
            logits, features = (_as_tensor(value) for value in returned)
            return features.flatten(1), logits
        if isinstance(returned, tuple) and returned and getattr(returned[0], "ndim", 0) > 1:
            raise TypeError(f"model must return logits, or (logits, features), got a tuple of {len(returned)}")
        return None, _as_tensor(logits_in(returned))

    def features_and_logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        """(features, logits).

        Raises:
            ValueError: the function returns no features.
        """
        features, logits = self.both(batch)
        if features is None:
            raise ValueError(
                "the function returns logits only, and this strategy compares features: return (logits, features)"
            )
        return features, logits


def as_module(model: object) -> nn.Module:
    """The model itself, or a function as a module.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(model, type):
        raise TypeError(f"model is the class {model.__name__}: pass a model that is made of it, {model.__name__}(...)")
    if isinstance(model, nn.Module):
        return model
    if callable(model):
        return FunctionModel(model)
    remedy = "pass an nn.Module, or a function from a batch to logits"
    if hasattr(model, "predict_proba"):
        remedy = "pass lambda batch: dm2_fast.logits_of(model.predict_proba(batch))"
    raise TypeError(f"model is {shown(model)}, which cannot be called: {remedy}")


def torch_module(model: nn.Module, who: str) -> nn.Module:
    """The model, if it is a module of torch that a strategy of this name can look into.

    Raises:
        TypeError: it is a plain function.
    """
    if isinstance(model, FunctionModel):
        raise TypeError(f"{who} needs a torch module, and the model is a function: pass the nn.Module that it calls")
    return model


def run_module(model: nn.Module, batch: Batch) -> Any:
    """What the model returns: a tuple goes by position and a dict by name where forward takes them so, else whole."""
    if isinstance(batch, Tensor) or isinstance(model, FunctionModel):
        return model(batch)
    signature = inspect.signature(model.forward)
    positions, names = ((), batch) if isinstance(batch, dict) else (batch, {})
    try:
        signature.bind(*positions, **names)
    except TypeError:
        return model(batch)
    return model(*positions, **names)


def logits_in(returned: Any) -> Any:
    """The logits in what a model returned: itself, or its entry or attribute `logits`."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping) and "logits" in returned:
        return returned["logits"]
    return getattr(returned, "logits", returned)


def rows_of(batch: Any) -> int:
    """How many samples a batch has."""
    while not hasattr(batch, "shape") and isinstance(batch, (Mapping, tuple, list)):
        batch = next(iter(batch.values() if isinstance(batch, Mapping) else batch))
    return len(batch)


def shape_of(batch: Batch) -> Any:
    """The shape of a batch, or those of its inputs."""
    if isinstance(batch, Tensor):
        return tuple(batch.shape)
    parts = batch if isinstance(batch, dict) else dict(enumerate(batch))
    return {key: tuple(value.shape) for key, value in parts.items()}


def _as_tensor(value: Any) -> Tensor:
    """An array of any framework that numpy can read."""
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"model must return an array of (n, C) logits, or (logits, features), got {shown(value)}"
            f"{' without logits' if isinstance(value, Mapping) else ''}"
        ) from error
