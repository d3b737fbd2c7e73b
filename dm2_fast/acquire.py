"""The one entry to an acquisition: any strategy, on any model and pool (Algorithm 1, lines 8-20, for DM2)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast import strategies
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.arrays import ArrayLike
from dm2_fast.operations.mix import Normalize
from dm2_fast.round import Picked, Round, check_budget, check_picked
from dm2_fast.strategy import Strategy


def select(
    model: nn.Module,
    pool: ArrayLike,
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked] = "dm2",
    options: Any = None,
    *,
    labelled: ArrayLike | None = None,
    labels: Tensor | None = None,
    row_ids: NDArray[np.int64] | Tensor | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    round: int = 0,
    head: str | nn.Module | None = None,
    batch_size: int = 256,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
    prepare: Literal["auto", "off"] = "auto",
    autocast: torch.dtype | None = None,
) -> Picked:
    """Choose the next samples to label.

    Specifically, with DM2 (Eqs. 3-11) and f the input of the model's head, this computes
        neighbours = knn(f, k)
        mixed      = lam * pool + (1 - lam) * pool[neighbours].mean(1)
        scores     = 1 - model(mixed).softmax(1).amax(1)
        indices    = scores.sort(descending=True, stable=True).indices[offset : offset + budget]
    without storing the distances or the mixed samples. The model, its mode, its BatchNorm statistics and the random
    state come back untouched.

    Args:
        model: Returns (n, C) logits for a batch of n samples.
        pool: The unlabelled samples, (m, ...): uint8 (scaled to [0, 1]) or floating point; a tensor, an array, a
            np.memmap, or anything with len, shape and integer-array indexing.
        budget: How many samples to choose, B.
        strategy: A name (`dm2_fast.strategies.names()`), `package.module:function`, a `Strategy`, or a function that
            is called with (round, budget, options) and returns a `Picked`.
        options: The options of the strategy, `DM2Config(...)` for dm2; None for its defaults.
        labelled: The labelled samples, (n, ...), like pool, for the strategies that compare with them.
        labels: Their classes, (n,) int64.
        seed, round, row_ids: Key of every random draw, so that a row's draw is the same whatever else is in the pool;
            row_ids (m,) defaults to 0, 1, 2, ...
        normalize: (mean, std), numbers or one per channel, applied after mixing.
        head: The module whose input is the feature vector f, or its dotted name; None for the last linear layer
            executed whose output is the logits.
        batch_size: The most rows per forward pass; the last batch is padded, and one for which there is not enough
            memory is halved, with a warning.
        backend, num_threads, progress: As in `dm2_fast.knn`.
        prepare: "auto" runs a copy of the model that is prepared for inference, if its logits are those of the model
            to 1e-4 of the largest; "off" runs the model as it is. `Picked.prepared` says what was done.
        autocast: torch.float16 or torch.bfloat16, to run the model under `torch.autocast`.

    Returns:
        What was chosen; with DM2, every row of the pool has a score, and a pool of one row is not mixed.

    Raises:
        ValueError: budget (plus offset) is out of range, the pool is empty, the model has no head or does not return
            finite (n, C) logits, the strategy needs a labelled set, or an option is out of range.
        TypeError: the pool is neither uint8 nor floating point, the model returns no tensor, or the options are those
            of another strategy.
        RuntimeError: a forced backend cannot run.
    """
    forward = ForwardPass(model, pool, normalize, head, batch_size, backend, num_threads, progress, prepare, autocast)
    return select_from(Round(forward, seed, round, row_ids, labelled, labels), budget, strategy, options)


def select_from(
    round: Round,
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked] = "dm2",
    options: Any = None,
) -> Picked:
    """What `select` does with a round that is there already: what it has computed is not computed again.

    Raises:
        ValueError, TypeError, RuntimeError: As in `select`; or the strategy does not choose budget distinct rows.
    """
    strategy = strategies.get(strategy)
    options = strategy.checked(options)
    check_budget(budget, len(round))
    _ = round.ids
    round.seconds = {}
    picked = check_picked(strategy.choose(round, budget, options), f"strategy {strategy.name}", budget, len(round))
    return replace(picked, seconds=round.seconds | picked.seconds, prepared=round.forward.note)
