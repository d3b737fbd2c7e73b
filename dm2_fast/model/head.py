"""A trained model as it stands: where and in what precision it computes, and its head, whose input is f (Eq. 3)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from dm2_fast import threads
from dm2_fast.model.from_arrays import NoModel
from dm2_fast.model.functions import FunctionModel, logits_in, run_module
from dm2_fast.model.together import Batch
from dm2_fast.operations.arguments import shown
from dm2_fast.operations.probabilities import are_distributions


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode, without gradients, and leave its mode and the random state as they were.

    Other calls on models of the device wait meanwhile.
    """
    device = model_device(model)
    forked = [device] if device.type == "cuda" else []
    with threads.guarding(device), torch.no_grad(), torch.random.fork_rng(forked):
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


@contextmanager
def inferring(device: torch.device, autocast: torch.dtype | None) -> Iterator[None]:
    """Let this thread run models on a device: without gradients, and under torch.autocast for a dtype."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        if autocast is not None:  # weights that it would keep are gone when a CUDA graph reads them again
            stack.enter_context(torch.autocast(device.type, autocast, cache_enabled=device.type != "cuda"))
        yield


def model_device(model: nn.Module) -> torch.device:
    """The device that the model computes on."""
    return next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))


def on_gpu(device: torch.device) -> bool:
    """Whether a device has the streams and graphs of CUDA."""
    return device.type == "cuda"


def model_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point dtype that the model computes in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def check_model(model: object) -> None:
    """Raise unless model is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {shown(model)}")


def check_labels(labels: Tensor, classes: int) -> None:
    """Raise unless labels (n,) are classes of the model, which has this many.

    Raises:
        ValueError: one of them is not.
    """
    most = int(labels.max()) if len(labels) else 0
    if most >= classes:
        raise ValueError(f"labels must be in [0, {classes - 1}], the classes of the model, got {most}")


def check_logits(logits: object, least: int = 2) -> Tensor:
    """logits, if they are an (n, C) tensor of scores; an error that says what the model returned otherwise."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"model must return a tensor of (n, C) logits, got {shown(logits)}: return logits, or a dictionary "
            "or an object that has them as logits"
        )
    if not logits.is_floating_point():
        raise TypeError(f"model must return floating point logits, got {logits.dtype}: return scores, not classes")
    if logits.ndim != 2 or logits.shape[1] < least:
        one = " (for one sigmoid, pass multilabel='mean')" if logits.ndim == 2 and logits.shape[1] == 1 else ""
        raise ValueError(
            f"model must return (n, C) logits with at least two classes, got shape {tuple(logits.shape)}{one}"
        )
    return logits


def find_head(model: nn.Module, batch: Batch, head: str | nn.Module | None = None) -> nn.Module:
    """Find the module whose input is the feature vector f: the last linear layer executed whose output is the logits.

    Args:
        model: In eval mode.
        batch: One batch that the model takes.
        head: The module, or its dotted name, when the caller knows it.

    Raises:
        ValueError: there is no such layer, or head is not a module of model.
    """
    if isinstance(model, NoModel):
        raise ValueError(
            "this strategy needs the head: pass head=(weight, bias) to Round.from_arrays, or a model to dm2_fast.select"
        )
    if isinstance(model, FunctionModel):
        raise ValueError("a function has no head that runs on its own: pass the nn.Module that it calls")
    if head is not None:
        named = dict(model.named_modules())
        if isinstance(head, str) and head not in named:
            raise ValueError(f"head must name a module of the model, got {shown(head)}")
        module = named[head] if isinstance(head, str) else head
        if all(module is not other for other in named.values()):
            raise ValueError(f"head must be a module of the model, got {shown(module)}")
        return module
    executed: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, output: executed.append((module, output)))
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        logits = check_logits(logits_in(run_module(model, batch)), 1)
    finally:
        for hook in hooks:
            hook.remove()
    for module, output in reversed(executed):
        if output.shape == logits.shape and torch.equal(output.nan_to_num(), logits.nan_to_num()):
            return module
    check_logits(logits)
    if are_distributions(logits):
        raise ValueError(
            "model must have a linear layer whose output is the logits, got probabilities (non-negative, with sum 1): "
            "leave the softmax out, or name the module whose input is the feature vector with head=..."
        )
    layers = [name for name, module in model.named_modules() if not list(module.children())]
    raise ValueError(
        "model must have a linear layer whose output is the logits, got none; "
        f"name the module whose input is the feature vector with head=... (last ones: {', '.join(layers[-4:])})"
    )
