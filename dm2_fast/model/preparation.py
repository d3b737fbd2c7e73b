"""A trained model made ready for inference, once per round and on a copy: the same logits, sooner.

The model is traced by torch.fx into a graph without Python state, so that several threads may run it. BatchNorm is
folded into the convolution before it (Jacob et al. 2018, section 3.2), images become channels_last, and on a CPU each
convolution with its activation is one oneDNN call on a weight that is laid out once: the operators that torch.compile
calls, without the half minute of compilation. On a GPU a CUDA graph launches all kernels of a batch (graph.py).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dm2_fast.model import convolutions
from dm2_fast.model.functions import logits_in, run_module
from dm2_fast.model.graph import Graphed
from dm2_fast.model.head import on_gpu
from dm2_fast.model.together import Batch
from dm2_fast.model.tracing import trace

# Features (the input of the head; None without one) and what the model returned, for one batch.
Run: TypeAlias = Callable[[Any], tuple[Tensor | None, Any]]

TOLERANCE = 1e-4  # of the largest logit, and of the largest feature
VERIFIED_ROWS = 8

# Rows per forward pass on a CPU: few, so that activations stay in the cache, but enough for LEAST_REUSE multiplications
# by each weight, so that reading the weights costs little beside the arithmetic.
LEAST_ROWS = 32
LEAST_REUSE = 128


@dataclass(frozen=True)
class Prepared:
    """How batches are run.

    Attributes:
        note: What was done, or "off" and why nothing was.
        run: From a batch to features and logits.
        head: The module of the model whose input the features are; None: there are no features.
        rows: Rows to be run at a time; None for as many as the caller likes.
        threads: Whether threads may run batches side by side, each with one thread of torch.
        channels_last: Whether batches should lie in memory like that.
    """

    note: str
    run: Run
    head: nn.Module | None = None
    rows: int | None = None
    threads: bool = False
    channels_last: bool = False


def plain(model: nn.Module, head: nn.Module | None) -> Run:
    """The model as it is."""

    def run(batch: Batch) -> tuple[Tensor | None, Any]:
        seen: list[Tensor] = []
        if head is None:
            return None, logits_in(run_module(model, batch))
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
        try:
            logits = logits_in(run_module(model, batch))
        finally:
            hook.remove()
        return seen[-1] if seen else None, logits

    return run


def prepare(model: nn.Module, head: nn.Module | None, few: Tensor, batch_size: int, pack: bool) -> Prepared:
    """Prepare a copy of the model; the model as it is, with the reason, where that fails or gives other values.

    Args:
        model: In eval mode.
        head: The module whose input is the feature vector; None if only logits are asked for.
        few: Rows of the pool, as the model takes them: VERIFIED_ROWS, or batch_size if that is less.
        batch_size: The most rows of a batch.
        pack: Whether oneDNN's convolutions may be used.
    """
    device = few.device.type
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False), full_precision(device):
            return _prepare(model, head, few, batch_size, pack)
    except Exception as error:  # whatever a model may raise while it is copied, traced and run
        reason = f"{error}".strip().split("\n")[0]
        return Prepared(f"off: {reason or type(error).__name__}", plain(model, head), head)


def full_precision(device: str) -> AbstractContextManager[object]:
    """Convolutions without TF32, so that what is compared is the preparation and not the rounding."""
    if device != "cuda":  # nothing to change for the whole process
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


def _prepare(model: nn.Module, head: nn.Module | None, rows: Tensor, batch_size: int, pack: bool) -> Prepared:
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name or 'the model'} has hooks")
    few = rows[:2]
    if any(
        tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64)
        for tensor in [few, *model.parameters()]
    ):
        raise ValueError("half precision")

    graph = trace(model, head)
    folded = convolutions.fold(graph)
    graph.to(memory_format=torch.channels_last)
    shapes = convolutions.Shapes(graph)
    shapes.run(_channels_last(few))
    size, on_cpu = batch_size, few.device.type == "cpu"
    if on_cpu:
        weights = sum(parameter.numel() for parameter in graph.parameters() if parameter.ndim > 1)
        reuse = shapes.multiplications / len(few) / max(weights, 1)
        size = min(batch_size, LEAST_ROWS)
        while size < batch_size and size * reuse < LEAST_REUSE:
            size = min(2 * size, batch_size)
    packed = 0
    if pack and on_cpu and few.dtype == torch.float32 and torch._C._has_mkldnn:
        packed = convolutions.pack(graph, size / len(few))
    graph.graph.lint()
    graph.recompile()

    def run(batch: Tensor) -> tuple[Tensor | None, Tensor]:
        features, logits = graph(_channels_last(batch))
        return None if features is None else features.flatten(1), logits

    _verify(run, plain(model, head), rows[:size])
    parts = [f"{folded} BatchNorm folded"] * bool(folded) + [f"{packed} convolutions packed"] * bool(packed)
    note = ", ".join([*parts, "channels_last" if few.ndim == 4 else "traced", f"{size} rows at a time"])
    return Prepared(note, Graphed(run) if on_gpu(few.device) else run, head, size, on_cpu, few.ndim == 4)


def _channels_last(batch: Tensor) -> Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def _verify(run: Run, expected: Run, batch: Tensor) -> None:
    """Raise unless run gives what the plain model gives, also for a row among others than those of the batch."""
    half = (len(batch) + 1) // 2
    others = torch.cat([batch[:half], batch[:1].expand_as(batch[half:])])
    for name, ours, theirs in zip(("features", "logits"), run(others), expected(batch), strict=True):
        if ours is None or theirs is None:
            continue
        theirs = torch.cat([theirs[:half], theirs[:1].expand_as(theirs[half:])])
        difference, largest = (ours - theirs).abs().max(), theirs.abs().max()
        if ours.dtype != theirs.dtype or not difference <= TOLERANCE * largest:
            raise ValueError(f"{name} would differ by {difference.item():.1e} of {largest.item():.1e}")
