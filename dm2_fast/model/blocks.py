"""What a model computes on the way to its logits: its blocks, found or named, and what they return."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dm2_fast.model.functions import logits_in, rows_of, run_module
from dm2_fast.model.head import evaluating
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.together import Batch
from dm2_fast.operations.arguments import shown

MOST = 4  # blocks that are found, the last ones


@contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules of these names returned in the last forward pass, by name, as long as this lasts.

    Raises:
        ValueError: the model has no module of such a name.
        TypeError: one of them returns something else than a tensor with a row per sample.
    """
    modules, seen = dict(model.named_modules()), dict[str, Tensor]()
    for name in names:
        if name not in modules:
            raise ValueError(f"the model has no module {name!r}: it has {', '.join(list(modules)[1:])}")
    with ExitStack() as hooks:
        for name in names:

            def keep(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if not isinstance(output, Tensor) or output.ndim < 2:
                    raise TypeError(f"block {name} must return a tensor with a row per sample, got {shown(output)}")
                seen[name] = output

            hooks.callback(modules[name].register_forward_hook(keep).remove)
        yield seen


def find_blocks(model: nn.Module, batch: Batch) -> tuple[str, ...]:
    """The names of the last module at each size of the maps (n, c, h, w) in a forward pass, the last four of them.

    Where there are no maps, the last module at each width of the vectors; where no module with parameters runs before
    the logits, of the vectors that there are.

    Raises:
        ValueError: nothing stands between the input and the logits.
    """
    ran: list[tuple[str, Tensor, bool]] = []
    learned = False

    def note(name: str, module: nn.Module, output: Any) -> None:
        nonlocal learned
        learned = learned or next(module.parameters(), None) is not None
        if isinstance(output, Tensor) and output.ndim >= 2 and len(output) == rows_of(batch):
            ran.append((name, output, learned))

    with evaluating(model), ExitStack() as hooks:
        for name, module in list(model.named_modules())[1:]:
            hook = module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
            hooks.callback(hook.remove)
        logits = logits_in(run_module(model, batch))
    before = [(name, output, learned) for name, output, learned in ran if output is not logits]
    known = [(name, output) for name, output, learned in before if learned] or [part[:2] for part in before]
    maps = [(name, output.shape[2:]) for name, output in known if output.ndim > 3 and output[0, 0].numel() > 1]
    last: dict[torch.Size, str] = {}
    for name, size in maps or [(name, output.shape[1:]) for name, output in known]:
        last.pop(size, None)
        last[size] = name
    if not last:
        raise ValueError(
            "this strategy reads layers before the logits, and the model has none: choose another strategy"
        )
    return tuple(last.values())[-MOST:]


def position_means(output: Tensor) -> Tensor:
    """The mean of what a block returns over its positions, (n, c): of maps (n, c, h, w), tokens (n, p, c), vectors."""
    return output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2) if output.ndim > 3 else output


def block_widths(model: nn.Module, names: Sequence[str], batch: Batch) -> list[int]:
    """c of each block's `position_means`."""
    with evaluating(model), watching(model, names) as seen:
        run_module(model, batch)
        return [position_means(seen[name]).shape[1] for name in names]


def block_means(forward: ForwardPass, names: Sequence[str]) -> list[Tensor]:
    """`position_means` of each block for every sample of the pool, (m, c) each."""
    parts: list[list[Tensor]] = [[] for _ in names]
    with evaluating(forward.model), watching(forward.model, names) as seen:
        for batch, _, keep in forward.batches("blocks"):
            run_module(forward.model, batch)
            for name, part in zip(names, parts, strict=True):
                part.append(position_means(seen[name])[:keep].clone())
    return [torch.cat(part) for part in parts]
