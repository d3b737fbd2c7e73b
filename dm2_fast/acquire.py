"""The one entry to an acquisition: any strategy, on any model and pool (Algorithm 1, lines 8-20, for DM2)."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from dm2_fast import strategies
from dm2_fast.model.dataset_pool import MEMORY
from dm2_fast.model.functions import as_module
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.pools import Pool, open_pool
from dm2_fast.operations.arguments import whole
from dm2_fast.operations.memory import as_bytes
from dm2_fast.operations.mix import Normalize
from dm2_fast.operations.multilabel import Over
from dm2_fast.round import Picked, Round, Ties, check_budget, check_names, check_picked
from dm2_fast.strategy import Strategy


def select(
    model: nn.Module | Callable[[Any], Any],
    pool: Pool | Dataset[Any] | dict[str, Any] | tuple[Any, ...],
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked] = "dm2",
    options: Any = None,
    *,
    labelled: Pool | Dataset[Any] | dict[str, Any] | tuple[Any, ...] | None = None,
    labels: Tensor | None = None,
    row_ids: NDArray[np.int64] | Tensor | None = None,
    ids: Sequence[Any] | None = None,
    ties: Ties = "lower",
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
    num_workers: int = 0,
    entries: Sequence[str | int] | None = None,
    memory: int | str | None = None,
    multilabel: Over | None = None,
    these_are_logits: bool = False,
    companions: Sequence[nn.Module | Callable[[Any], Any]] = (),
    remembered: dict[str, Any] | None = None,
) -> Picked:
    """Choose the next samples to label.

    Specifically, with DM2 (Eqs. 3-11) and f the input of the model's head, this computes
        neighbours = knn(f, k)
        mixed      = lam * pool + (1 - lam) * pool[neighbours].mean(1)
        scores     = 1 - model(mixed).softmax(1).amax(1)
        indices    = scores.sort(descending=True, stable=True).indices[offset : offset + budget]
    without storing the distances or the mixed samples. Any of this library's calls may run at once on one model, from
    several threads; meanwhile a thread of your own may read the model, but not run, train or change it. The
    model, its mode, its BatchNorm statistics and the random state come back untouched.

    Args:
        model: Returns (n, C) logits for a batch of n samples, or a dictionary or an object that has them as `logits`; a
            module, or a function of any framework, which may return (logits, features).
        pool: The unlabelled samples, (m, ...): uint8 (scaled to [0, 1]) or floating point; a tensor, an array, a
            np.memmap, or anything with len, shape and integer-array indexing. Or a map-style torch Dataset of tensors,
            or of tuples or dicts that begin with one, whose samples are read once. Or what goes to the model as it is,
            and only its features can be mixed: (m, n) integers such as tokens, and several inputs, a tuple of arrays,
            which the model takes by position, or a dict, which it takes by name.
        budget: How many samples to choose, B.
        strategy: A name (`dm2_fast.strategies.names()`), `package.module:function`, a `Strategy`, or a function that
            is called with (round, budget, options) and returns a `Picked`.
        options: The options of the strategy, `DM2Config(...)` for dm2; None for its defaults.
        labelled: The labelled samples, (n, ...), like pool, for the strategies that compare with them.
        labels: Their classes, (n,) integers from 0 on.
        seed, round, row_ids: Key of every random draw, so that a row's draw is the same whatever else is in the pool;
            row_ids (m,) defaults to 0, 1, 2, ...
        ids: What the rows are called, (m,), all different, file names, say; `Picked.ids` has those of the chosen.
        ties: Which of equal scores is chosen: "lower", that of the lower row; or "random", by a draw of each row.
        normalize: (mean, std), numbers or one per channel, applied after mixing.
        head: The module whose input is the feature vector f, or its dotted name; None for the last linear layer
            executed whose output is the logits.
        batch_size: The most rows per forward pass; the last batch is padded, and one for which there is not enough
            memory is halved, with a warning.
        backend, num_threads, progress: As in `dm2_fast.knn`.
        prepare: "auto" runs a copy of the model that is prepared for inference, if its logits are those of the model
            to 1e-4 of the largest, on a GPU as a CUDA graph, with batches copied ahead, and with features on the host
            if they do not fit; "off" runs the model as it is. `Picked.prepared` says what was done.
        autocast: torch.float16 or torch.bfloat16, to run the model under `torch.autocast`.
        num_workers: Processes that read the samples of a Dataset; 0 reads in this one.
        entries: Which entries of the Dataset's tuples or dicts are inputs of the model, as ("input_ids",
            "attention_mask") or (0, 1); None for the first alone.
        memory: Bytes, or a text such as "4GB", that the choice of dm2 may take beside the samples, features that are in
            memory already, and 300 MB: neighbours as in `dm2_fast.knn`, and scores; None for no limit. Features that
            the model computes and its outputs then lie in temporary files, for other strategies too, of which nothing
            else is counted; on a GPU, features are there if they fit into it. And that a Dataset's samples may take,
            None for 2 GiB; if there are more, they are kept in a temporary file. All of these files are gone when they
            are no longer used, whatever happens.
        multilabel: "mean" or "max" over the labels, for a model whose outputs are labels of their own, with sigmoids.
        these_are_logits: Outputs that look like probabilities are logits nevertheless.
        companions: Other models that were trained for the same labels, for strategies that ask several.
        remembered: What the strategy keeps from one call to the next: the same dict each round, empty at first.

    Returns:
        What was chosen; with DM2, every row of the pool has a score, and a pool of one row is not mixed.

    Raises:
        ValueError: budget (plus offset) is out of range, the pool is empty, the model has no head or does not return
            finite (n, C) logits, the strategy needs a labelled set, or an option is out of range; or memory is too
            little, and the message names the least that suffices.
        TypeError: the pool or the model is none of the above, samples cannot be mixed as they are, or the options are
            those of another strategy.
        RuntimeError: a forced backend cannot run, or the Dataset raised; the message names the row.
        OSError: there is no room for the samples of a Dataset, or a process that reads them ended.
    """
    kept = MEMORY if memory is None else as_bytes(memory)
    reading: dict[str, Any] = {"entries": entries, "num_workers": num_workers, "memory": kept, "progress": progress}
    samples = open_pool(pool, "pool", **reading)
    others = None if labelled is None else open_pool(labelled, "labelled", **reading)
    forward = ForwardPass(
        as_module(model), samples, normalize, head, batch_size, backend, num_threads, progress, prepare, autocast,
        multilabel, these_are_logits, memory=memory,
    )  # fmt: skip
    asked = Round(
        forward, seed, round, row_ids, others, labels, names=check_names(ids, len(forward.inputs)), ties=ties,
        companions=[as_module(one) for one in companions], remembered={} if remembered is None else remembered,
    )  # fmt: skip
    return select_from(asked, budget, strategy, options)


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
    budget = whole("budget", budget)
    check_budget(budget, round.share.total)
    round.seconds = {}
    chosen = strategy.choose(round, budget, options)
    picked = check_picked(chosen, f"strategy {strategy.name}", budget, round.share.total, len(round))
    ids = picked.ids if round.names is None else [round.names[row] for row in picked.indices.tolist()]
    return replace(picked, seconds=round.seconds | picked.seconds, prepared=round.forward.note, ids=ids)
