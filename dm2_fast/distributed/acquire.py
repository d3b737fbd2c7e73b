"""`dm2_fast.select` over the processes of a torch.distributed group: the choice is that of one process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dm2_fast import strategies
from dm2_fast.acquire import select_from
from dm2_fast.distributed.finished import Finished
from dm2_fast.distributed.group import Group
from dm2_fast.distributed.offline import Merged, Shard, Waiting
from dm2_fast.distributed.part import Part, bounds
from dm2_fast.distributed.shared_pool import read_together
from dm2_fast.model.dataset_pool import DatasetPool
from dm2_fast.model.functions import as_module
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.pools import Pool, open_pool
from dm2_fast.operations.mix import Recipe
from dm2_fast.round import Picked, Round, check_names, check_row_ids
from dm2_fast.strategy import Strategy


def select(
    model: nn.Module | Callable[[Any], Any],
    pool: Pool | dict[str, Any] | tuple[Any, ...],
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked] = "dm2",
    options: Any = None,
    *,
    group: Any = None,
    labelled: Pool | dict[str, Any] | tuple[Any, ...] | None = None,
    labels: Tensor | None = None,
    row_ids: Any = None,
    ids: Any = None,
    ties: Any = "lower",
    seed: int = 0,
    round: int = 0,
    progress: bool = False,
    **running: Any,
) -> Picked:
    """Choose the next samples to label, with the processes of a group: `dm2_fast.select`, of which each does a part.

    Every process calls this with the same arguments and runs the model on its part of the pool. All of them return the
    choice of one process: where they compute on like machines, bit for bit.

    Args:
        pool: As in `dm2_fast.select`: all of the pool, a file that each process maps, say. A process reads its part and
            the neighbours that its samples are mixed with. Of a Dataset, each process reads a part of the samples into
            a temporary file that all of them map.
        group: A torch.distributed group; None for all processes.
        running: normalize, head, batch_size, backend, num_threads, prepare, autocast, multilabel, these_are_logits,
            entries, num_workers, as in `dm2_fast.select`; so are all other arguments; and memory, which is that of each
            process, as in `dm2_fast.distributed.knn`.

    Returns:
        As `dm2_fast.select`, in every process; neighbours, distances and mixture in that of rank 0 only.

    Raises:
        ValueError: The strategy looks at all of the pool at once; it needs one process.
        ValueError, TypeError, RuntimeError: As in `dm2_fast.select`, in all processes.
    """
    processes = Group(group)

    reading: dict[str, Any] = {name: running.pop(name) for name in ("entries", "num_workers") if name in running}
    reading["progress"] = progress and processes.rank == 0
    samples = processes.agree(lambda: open_pool(pool, "pool", **reading))
    if isinstance(samples, DatasetPool):
        read_together(samples, processes)

    def asked() -> Round:
        others = None if labelled is None else open_pool(labelled, "labelled", **reading)
        forward = ForwardPass(as_module(model), samples, progress=progress, **running)
        names = check_names(ids, len(forward.inputs))
        return Round(forward, seed, round, row_ids, others, labels, names=names, ties=ties)

    return select_in_parts(processes.agree(asked), budget, strategy, options, processes)


def select_in_parts(
    whole: Round,
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked],
    options: Any,
    group: Group,
    finished: Path | None = None,
) -> Picked:
    """`dm2_fast.select_from` of a round of all of the pool, in the processes of a group, each of which does a part.

    Args:
        finished: A folder for what each process has finished, read at the next start; None for nowhere.
    """
    strategy = strategies.get(strategy)
    group.agree(lambda: refuse(strategy, options))
    forward = replace(whole.forward, progress=whole.forward.progress and group.rank == 0)
    unit = max(group.gather_objects(group.agree(lambda: forward.unit)))
    edges = bounds(len(forward.inputs), group.size, unit)
    first, last = edges[group.rank : group.rank + 2]
    kept = None if finished is None else Finished(finished, group.rank, group.size, first, last)
    part = part_of(whole, forward, Part(group, edges, kept), first, last)
    picked = select_from(part, budget, strategy, options)
    return complete(picked, part, group.rank == 0)


def refuse(strategy: Strategy, options: Any) -> None:
    """Raise unless the strategy can run in several processes, with these options."""
    strategy.checked(options)
    if not strategy.in_parts:
        able = [name for name in strategies.names() if strategies.get(name).in_parts]
        raise ValueError(
            f"strategy {strategy.name} looks at all of the pool at once and needs one process; "
            f"in several run {', '.join(able)}"
        )


def part_of(whole: Round, forward: ForwardPass, share: Any, first: int, last: int) -> Round:
    """The round of rows [first, last)."""
    ids = check_row_ids(whole.row_ids, len(forward.inputs))[first:last]
    forward = replace(forward, rows=torch.arange(first, last))
    part = replace(whole, forward=forward, row_ids=ids, share=share)
    for (name, key), value in whole._kept.items():  # arrays that were given
        if name == "features":
            value = tuple(None if each is None else each[first:last] for each in value)
        part._kept[name, key] = value[first:last] if name == "logits" else value
    return part


def complete(picked: Picked, part: Round, first: bool) -> Picked:
    """With the scores of all rows; in the first process with all that is known of each row."""
    share = part.share
    scores = None if picked.scores is None else share.gather(picked.scores)

    def all_of(values: Tensor | None) -> Tensor | None:
        return None if values is None else share.gather(values)

    mixture = picked.mixture
    if mixture is not None:
        mixture = Recipe(share.gather(mixture.indices), all_of(mixture.weights), share.gather(mixture.lam))
    neighbours, distances = all_of(picked.neighbours), all_of(picked.distances)
    if not first:
        neighbours = distances = mixture = None
    return replace(picked, scores=scores, neighbours=neighbours, distances=distances, mixture=mixture)


def run_shard(
    whole: Round,
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked],
    options: Any,
    which: int,
    parts: int,
    folder: Path,
) -> str:
    """Do what can be done of part `which` of so many without the others, into a folder; what comes next, in words."""
    strategy = strategies.get(strategy)
    refuse(strategy, options)
    forward, every, edges = _divided(whole, parts, folder)
    first, last = edges[which - 1 : which + 1]
    try:
        select_from(part_of(whole, forward, Shard(which - 1, every, edges), first, last), budget, strategy, options)
    except Waiting as waiting:
        return str(waiting)
    return "finished; dm2-fast merge does the rest"


def merge_shards(
    whole: Round,
    budget: int,
    strategy: str | Strategy | Callable[[Round, int, Any], Picked],
    options: Any,
    parts: int,
    folder: Path,
) -> Picked:
    """`dm2_fast.select_from` of a round of which so many parts have been run into a folder.

    Raises:
        ValueError: a part is missing.
    """
    forward, every, edges = _divided(whole, parts, folder)
    return select_from(part_of(whole, forward, Merged(every, edges), 0, edges[-1]), budget, strategy, options)


def _divided(whole: Round, parts: int, folder: Path) -> tuple[ForwardPass, list[Finished], list[int]]:
    edges = bounds(len(whole.forward.inputs), parts, whole.forward.unit)
    every = [Finished(folder, i, parts, edges[i], edges[i + 1]) for i in range(parts)]
    return whole.forward, every, edges
