"""Batches of a pool in the memory of the host, on their way to a GPU while it computes on the batch before."""

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import Any

import torch
from torch import Tensor, cuda

from dm2_fast import threads
from dm2_fast.model.head import inferring


class _Slot:
    """A batch in pinned memory of the host, and its copy on the device."""

    def __init__(self) -> None:
        self.pinned: Tensor | None = None
        self.copy: Tensor | None = None
        self.copied, self.consumed = cuda.Event(), cuda.Event()


def fed(make: Callable[..., Any], starts: Sequence[int], device: torch.device) -> Generator[Tensor, None, None]:
    """make(start=, out=) for each start, on the device and in order; each may be used until the next is asked for.

    While the caller computes on a batch, a kept thread makes the next one in pinned memory, and a stream of its own
    copies it. Two buffers take turns on either side: one in pinned memory is written again when its copy has ended, one
    on the device when what the caller had queued on the current stream has ended.

    Args:
        make: Returns a batch on the host: in out, a tensor like those before, if it can, or in memory of its own.
        starts: The row that each batch begins with; all batches have one shape.
        device: The current CUDA device.
    """
    main, side = cuda.current_stream(device), cuda.Stream(device)
    slots = (_Slot(), _Slot())

    def send(start: int, slot: _Slot) -> None:
        with inferring(device, None):
            slot.copied.synchronize()
            batch: Tensor = make(start=start, out=slot.pinned)
            if slot.pinned is None or slot.copy is None:
                with cuda.stream(main):  # to which the memory goes back
                    slot.pinned, slot.copy = batch.pin_memory(), torch.empty_like(batch, device=device)
                slot.consumed.record(main)  # by whatever had the memory before
            elif batch is not slot.pinned:
                slot.pinned.copy_(batch)
            side.wait_event(slot.consumed)
            with cuda.stream(side):
                slot.copy.copy_(slot.pinned, non_blocking=True)
            slot.copied.record(side)

    ahead: Future[None] | None = threads.submit(partial(send, starts[0], slots[0]))
    try:
        for number in range(len(starts)):
            slot = slots[number % 2]
            assert ahead is not None
            ahead.result()
            main.wait_event(slot.copied)
            following = starts[number + 1 : number + 2]
            ahead = threads.submit(partial(send, following[0], slots[(number + 1) % 2])) if following else None
            assert slot.copy is not None
            yield slot.copy
            slot.consumed.record(main)
    finally:
        if ahead is not None:
            wait([ahead])
        main.wait_stream(side)
