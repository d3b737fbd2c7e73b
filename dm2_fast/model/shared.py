"""What the passes of one round share: the prepared model, a head found later, and where results are kept."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from dm2_fast import threads
from dm2_fast.model.head import evaluating, find_head, on_gpu
from dm2_fast.model.limits import room, wanted
from dm2_fast.model.preparation import VERIFIED_ROWS, Prepared, prepare


@dataclass
class Shared:
    """What the passes of one round share, and the state of the model when it was prepared.

    Attributes:
        on_host: Whether features and logits go to the host, since the features of the pool do not fit on the GPU.
    """

    lock: AbstractContextManager[object] = field(default_factory=RLock)
    prepared: Prepared | None = None
    head: nn.Module | None = None
    on_host: bool = False
    _state: object = None
    _tensors: list[Tensor] = field(default_factory=list)

    def keep(self, prepared: Prepared) -> Prepared:
        """Note what runs in place of the model, and return it."""
        with self.lock:
            self.prepared = prepared
            return prepared

    def look_for_room(self, m: int, features: Tensor, logits: Tensor, memory: int | str | None) -> None:
        """Keep results on the host from now on if m such rows, of which some are given, do not fit on the GPU."""
        if on_gpu(features.device):
            row = (values[0].numel() * values.element_size() for values in (features, logits))
            needed, free = wanted(m, *row), room(features.device, memory)
            if needed > free and not self.on_host:
                warnings.warn(
                    "features stay in the memory of the host, where their neighbours are searched: on "
                    f"{features.device} they need {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free",
                    stacklevel=6,
                )
            self.on_host |= needed > free

    def prepared_model(
        self,
        model: nn.Module,
        head: str | nn.Module | None,
        batch: Callable[[int], Any],
        batch_size: int,
        autocast: torch.dtype | None,
    ) -> Prepared:
        """The model prepared for inference: the one that is there, or a new one if the model has been changed since.

        Args:
            model: The model.
            head: Its head, as in `find_head`.
            batch: From a number to a batch of that many rows, as the model takes them.
            batch_size: The most rows of a batch.
            autocast: The dtype that the model runs in under torch.autocast, if any.
        """
        state = _state(model, autocast)
        with self.lock:
            if self.prepared is not None and self._state == state:
                return self.prepared
        with evaluating(model), self.lock:
            found = None
            with suppress(Exception):  # a model without a head has logits; one that cannot run says so when it runs
                found = find_head(model, batch(min(2, batch_size)), head)
            few = batch(min(batch_size, VERIFIED_ROWS))
            # On the kind of thread that runs it, since weights are laid out for a number of threads.
            work = partial(prepare, model, found, few, batch_size, pack=autocast is None)
            self.prepared = threads.submit(work).result()
            self._tensors = [*model.parameters(), *model.buffers()]  # alive, so that ids stay unique
            self._state = _state(model, autocast)
            return self.prepared


def _state(model: nn.Module, autocast: torch.dtype | None) -> object:
    """What changes when the model has to be prepared anew."""
    tensors = [*model.parameters(), *model.buffers()]
    return autocast, [(id(t), 0 if t.is_inference() else t._version) for t in tensors]
