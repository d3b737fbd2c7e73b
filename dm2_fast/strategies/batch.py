"""How scores become a batch: the highest, or spread over the features so that the batch does not repeat itself.

The spread choices are not DM2's. `kmeans` is the diverse mini-batch of Zhdanov 2019 (arXiv 1901.05954) with its
factor of 10; `spread` uses the graph that DM2 has anyway.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dm2_fast import draws
from dm2_fast.operations.arguments import one_of
from dm2_fast.operations.mapped import taken
from dm2_fast.operations.uncertainty import Uncertainty
from dm2_fast.round import Picked, Round, check_budget
from dm2_fast.strategies.clusters import nearest_to_centres

Batch: TypeAlias = Literal["highest", "kmeans"]

FACTOR = 10  # candidates for each row of the batch


def check_batch(batch: object, *others: str) -> None:
    """Raise unless batch is "highest", "kmeans" or one of the others."""
    one_of("batch", batch, ("highest", "kmeans", *others))


def choose_batch(round: Round, scores: Tensor, budget: int, batch: Batch, offset: int = 0) -> Tensor:
    """The rows of a batch: `round.highest(scores, budget, offset)`, or what `clustered` chooses."""
    if batch == "highest":
        return round.highest(scores, budget, offset)
    return clustered(round, scores, budget, offset)


def clustered(round: Round, scores: Tensor, budget: int, offset: int = 0) -> Tensor:
    """Choose the row nearest to each of budget centres of a weighted k-means over the 10 * budget highest scores.

    A row weighs its score, less the lowest of the pool. The features are L2-normalised, as in the distance of DM2. The
    chosen stand in the order of their scores; where clusters are empty, the highest scores left fill up.

    Args:
        scores: (m,), larger is wanted more.
        offset: Skip this many of the highest scores first.
    """
    total = round.share.total
    check_budget(budget, total, offset)
    features = round.features
    count, every = min(total - offset, FACTOR * budget), round.share.gather(scores)
    ordered = round.ranked(every, count, offset)
    weights = (every - every.min())[ordered]
    if not bool((weights > 0).any()):
        ordered, weights = round.highest(scores, count, offset), torch.ones_like(weights)
    seed = int(draws.generator(round.seed, round.round, "clusters").integers(2**32))
    threads = round.forward.compute["num_threads"]
    table, places = round.share.table(features, ordered)
    rows = taken(table, places)
    picks = nearest_to_centres(rows, budget, seed, weights=weights, num_threads=threads).to(ordered.device)
    rest = torch.ones(len(ordered), dtype=torch.bool, device=ordered.device)
    rest[picks] = False
    fill = torch.nonzero(rest)[: budget - len(picks), 0]
    return ordered[torch.cat([picks.sort().values, fill])]


def apart(round: Round, scores: Tensor, neighbours: Tensor, budget: int, offset: int = 0) -> Tensor:
    """Choose the highest scores, but no row that is among the k neighbours of one chosen before it.

    Args:
        scores: (m,).
        neighbours: (m, k) int64.
        offset: Skip this many of the highest scores first.

    Returns:
        (budget,) rows in order of choice. Where too few are left, the highest scores of those passed over fill up.
    """
    total = round.share.total
    check_budget(budget, total, offset)
    ordered = round.highest(scores, total - offset, offset)
    near = round.share.gather(neighbours).cpu().numpy()
    blocked, picks, passed = set[int](), list[int](), list[int]()
    for row in ordered.tolist():
        if len(picks) == budget:
            break
        if row in blocked:
            passed.append(row)
            continue
        picks.append(row)
        blocked.update(near[row].tolist())
    picks += passed[: budget - len(picks)]
    return torch.tensor(picks, dtype=torch.int64, device=ordered.device)


def most_uncertain(round: Round, budget: int, kind: Uncertainty, batch: Batch) -> Picked:
    """`round.most_uncertain`, or a batch of spread rows by the same scores."""
    if batch == "highest":
        return round.most_uncertain(budget, kind)
    _ = round.features  # first, since the logits come with them
    logits = round.logits
    with round.stage("choose"):
        scores = round.forward.uncertainty(logits, kind)
        return Picked(choose_batch(round, scores, budget, batch), scores)
