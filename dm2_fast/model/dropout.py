"""Dropout switched on at query time, and nothing else: Monte Carlo dropout (Gal and Ghahramani 2016)."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dm2_fast import draws, threads
from dm2_fast.model.functions import logits_in, rows_of, run_module
from dm2_fast.model.head import model_device
from dm2_fast.model.together import Batch

_CHANNELWISE = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_SATURATION = -1.7580993408473766  # what SELU tends to on the left, minus scale * alpha (Klambauer et al. 2017)


@contextmanager
def sampled_dropout(model: nn.Module, seed: int = 0, round: int = 0) -> Iterator[Callable[[int], None]]:
    """Let the dropout layers of a model in eval mode drop units; each forward pass has to be announced by its number.

        with sampled_dropout(model, seed, round) as use:
            use(0)
            first = model(batch)

    Pass t is one network drawn from the posterior: each call of a dropout layer has one mask, which all rows share.
    These are the "consistent" masks of BatchBALD (Kirsch et al. 2019). For a row on its own they have the distribution
    of masks drawn row by row, which would make its result depend on what else stands in the batch. A mask is keyed by
    (seed, round, t, position of the layer among the dropout layers, number of its call within the pass), so that
    neither batch size nor call order changes a result. BatchNorm and all else stay as they are.

    Dropout that is called as a function (as attention layers do) is no layer, and stays off.

    Raises:
        ValueError: a dropout layer's input does not have the batch as its first dimension.
    """
    calls: Counter[nn.Module] = Counter()
    state = {"pass": 0, "rows": 0}

    def use(number: int) -> None:
        calls.clear()
        state["pass"] = number

    def count_rows(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        state["rows"] = rows_of([*inputs, *named.values()])

    with threads.guarding(model_device(model)), ExitStack() as hooks:
        hooks.callback(model.register_forward_pre_hook(count_rows, with_kwargs=True).remove)
        for position, layer in enumerate(_active(model)):

            def drop(layer: nn.Module, inputs: tuple[Tensor], _: Tensor, position: int = position) -> Tensor:
                if len(inputs[0]) != state["rows"]:
                    raise ValueError(
                        f"dropout must see one row per sample, got {tuple(inputs[0].shape)} for {state['rows']} samples"
                    )
                generator = draws.generator(seed, round, "dropout", state["pass"], position, calls[layer])
                calls[layer] += 1
                return _drop(layer, inputs[0], torch.from_numpy(generator.random(_mask_shape(layer, inputs[0]))))

            hooks.callback(layer.register_forward_hook(drop).remove)
        yield use


def dropout_tail(model: nn.Module, batch: Batch) -> nn.Sequential | None:
    """Find the end of a model in eval mode that dropout can change, if it is no more than dropout and a linear layer.

    Returns:
        The two layers, if the first call of a dropout layer makes the input of the linear layer that makes the logits:
        the passes then differ in these two only. None if dropout acts elsewhere.

    Raises:
        ValueError: no dropout layer with p > 0 takes part in the forward pass.
    """
    dropped: list[tuple[nn.Module, _Value]] = []
    linear: list[tuple[nn.Module, _Value, _Value]] = []
    with ExitStack() as hooks:
        for layer in _active(model):
            hook = layer.register_forward_hook(lambda layer, _, output: dropped.append((layer, _Value(output))))
            hooks.callback(hook.remove)
        for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
            hook = layer.register_forward_hook(
                lambda layer, inputs, output: linear.append((layer, _Value(inputs[0]), _Value(output)))
            )
            hooks.callback(hook.remove)
        logits = _Value(logits_in(run_module(model, batch)))
    if not dropped:
        raise ValueError(
            "model must have a dropout layer (nn.Dropout or one of its kin, p > 0) for this strategy, got none"
        )
    for layer, x, output in linear:
        if output.same(logits) and x.same(dropped[0][1]) and x.tensor.ndim == 2:
            return nn.Sequential(dropped[0][0], layer)
    return None


class _Value:
    """A tensor as it is now: in eval mode dropout hands on its input, which an operation in place can change later."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def same(self, other: "_Value") -> bool:
        return self.tensor is other.tensor and self.version == other.version


def _active(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.Dropout, nn.AlphaDropout, *_CHANNELWISE)
    return [layer for layer in model.modules() if isinstance(layer, kinds) and layer.p > 0]


def _mask_shape(layer: nn.Module, x: Tensor) -> tuple[int, ...]:
    return (x.shape[1], *(1,) * (x.ndim - 2)) if isinstance(layer, _CHANNELWISE) else tuple(x.shape[1:])


def _drop(layer: nn.Module, x: Tensor, draw: Tensor) -> Tensor:
    """What the layer does in training, with draw in [0, 1) instead of its own random numbers."""
    p = float(layer.p)  # type: ignore[arg-type]
    keep = (draw >= p).to(x.device)
    if p == 1:
        return torch.zeros_like(x)
    if isinstance(layer, _ALPHA):
        scale = 1 / math.sqrt((1 - p) * (1 + p * _SATURATION**2))
        return scale * torch.where(keep, x, _SATURATION) - scale * p * _SATURATION
    return torch.where(keep, x / (1 - p), 0.0)
