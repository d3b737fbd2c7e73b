"""One choice with a classifier that shows its probabilities and no more, as frontends have it; a utility per row."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.acquire import select_from
from dm2_fast.model.functions import FunctionModel
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.arguments import whole
from dm2_fast.operations.probabilities import logits_of
from dm2_fast.round import Picked, Round, check_budget
from dm2_fast.strategies import get
from dm2_fast.strategies.dm2 import DM2Config
from dm2_fast.strategy import FEATURES, LABELLED, Strategy

# Probabilities (n, C) of a batch as the data has it; and, with the second argument True, its features (n, d) too.
Predict = Callable[[Any, bool], Any]
_BLOCK_BYTES = 2**23
_SHOWN = {"logits", "features", "labelled", "mixed"}  # what a classifier shows, by the names of the passes


class Rows:
    """Some rows of an array or a sparse matrix, read where they are used: a pool that is no copy.

    Args:
        data: (n, ...), whatever takes an array of row numbers.
        rows: Which of them, (m,) integers.
    """

    def __init__(self, data: Any, rows: NDArray[np.int64]) -> None:
        self.data, self.rows = data, rows
        self.shape = (len(rows), *data.shape[1:])
        self.dtype = np.dtype(data.dtype) if np.dtype(data.dtype).kind == "f" else np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Any) -> NDArray[Any]:
        taken = self.data[self.rows[np.asarray(places)]]
        return np.asarray(taken.toarray() if hasattr(taken, "toarray") else taken, self.dtype)

    @property
    def block(self) -> int:
        """Rows of a few megabytes, so that all blocks are about as large."""
        size: int = self.data.data.nbytes if hasattr(self.data, "toarray") else self.data.nbytes
        most = max(256, _BLOCK_BYTES * int(self.data.shape[0]) // max(1, size))
        blocks: int = -(-len(self) // most)
        return -(-len(self) // blocks)

    def features(self) -> NDArray[Any]:
        """All of them as one matrix (m, d)."""
        return self[np.arange(len(self))].reshape(len(self), -1)


def choose(
    strategy: str,
    options: Any,
    budget: int,
    pool: Rows,
    labelled: Rows | None,
    predict: Predict | None,
    embeds: bool = False,
    *,
    seed: int,
    round: int = 0,
    num_threads: int | None = None,
) -> Picked:
    """What `dm2_fast.select` chooses, with ties drawn at random and k at most what the pool allows.

    Samples are mixed as they are in data. What is compared is their features, those that predict gives with embeds,
    else the samples themselves, of which there is then one copy. Where a strategy compares with labelled samples and
    there are none, the first row is drawn at random, and the others are chosen as if it was labelled.

    Args:
        strategy, options, budget, seed, round, num_threads: As in `dm2_fast.select`.
        pool, labelled: The samples; no labelled ones are None.
        predict: None for a strategy that only compares samples.
        embeds: Whether predict gives features.

    Raises:
        ValueError, TypeError: As in `dm2_fast.select`.
    """
    found, m = get(strategy), len(pool)
    if found.name == "alpha-mix" or {each.name for each in found.passes} - _SHOWN:
        raise ValueError(
            f"strategy {found.name} looks into a network, and a classifier shows its probabilities alone: give the "
            "network to dm2_fast.select"
        )
    budget = whole("budget", budget)
    check_budget(budget, m)
    given: dict[str, Any] = {"seed": seed, "round": round, "num_threads": num_threads}
    if labelled is None and LABELLED in found.passes:
        first = int(np.random.default_rng([seed, round]).integers(m))
        picks = torch.tensor([first])
        if budget > 1:
            others = np.delete(np.arange(m), first)
            rest, one = Rows(pool.data, pool.rows[others]), Rows(pool.data, pool.rows[[first]])
            arguments = (rest, one, predict, embeds)
            more = choose(strategy, options, budget - 1, *arguments, **given)
            picks = torch.cat([picks, torch.from_numpy(others)[more.indices.cpu()]])
        return Picked(picks, None)
    if isinstance(options, DM2Config):
        if m == 1:  # not mixed, so that its score is that of the sample itself
            return choose(options.score, None, budget, pool, None, predict, **given)
        assert predict is not None
        options = replace(options, k=min(options.k, m - 1))
        return select_from(_mixing(pool, predict, embeds, ties="random", **given), budget, found, options)
    arrays = _arrays(pool, labelled, predict, embeds, compares(found, options))
    return select_from(Round.from_arrays(**arrays, ties="random", **given), budget, found, options)


def compares(strategy: Strategy, options: Any) -> bool:
    """Whether a strategy with these options looks at features: itself, or for a batch that is spread over them."""
    return FEATURES in strategy.passes or getattr(options, "batch", "highest") != "highest"


def utilities(picked: Picked, m: int) -> NDArray[np.float64]:
    """A number for each of m rows, (m,), of which the highest were chosen, in their order.

    Those are the scores of the strategy, where it chooses by a score. Where it chooses one row after another, or skips
    some, no such score exists; then they say the order of choice and nothing else: B for the first of B chosen rows, 1
    for the last, 0 for all others.
    """
    rows = picked.indices.cpu().numpy()
    if picked.scores is not None:
        scores = picked.scores.double().cpu().numpy()
        chosen, others = scores[rows], np.delete(scores, rows)
        if (np.diff(chosen) <= 0).all() and (len(others) == 0 or others.max() <= chosen[-1]):
            return scores
    order = np.zeros(m)
    order[rows] = np.arange(len(rows), 0, -1)
    return order


def _arrays(pool: Rows, labelled: Rows | None, predict: Predict | None, embeds: bool, compares: bool) -> dict[str, Any]:
    """What `Round.from_arrays` takes for a strategy that does not mix."""
    if predict is None and not compares:
        return {"features": np.zeros((len(pool), 1), np.float32)}  # as many rows, to draw from
    found: dict[str, Any] = {}
    if predict is not None:
        embeds = embeds and compares
        found["probabilities"], features = _predicted(predict, pool, embeds)
        if embeds:
            others = None if labelled is None else _predicted(predict, labelled, True)[1]
            return found | {"features": features, "labelled_features": others}
    if compares:
        found |= {"features": pool.features(), "labelled_features": None if labelled is None else labelled.features()}
    return found


def _predicted(predict: Predict, rows: Rows, embeds: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """(probabilities, features) of all rows, block by block; no features without embeds."""
    step = rows.block
    parts = [predict(rows.data[rows.rows[i : i + step]], embeds) for i in range(0, len(rows), step)]
    if not embeds:
        return np.concatenate(parts), None
    features = np.concatenate([np.asarray(features) for _, features in parts])
    return np.concatenate([probabilities for probabilities, _ in parts]), features.reshape(len(features), -1)


def _mixing(pool: Rows, predict: Predict, embeds: bool, **given: Any) -> Round:
    """A round whose samples are mixed as they are and compared by their features."""
    if not embeds:
        shape = pool.shape[1:]
        features = pool.features()
        return Round.from_arrays(
            features, head=lambda x: logits_of(predict(x.numpy().reshape(-1, *shape), False)), **given
        )

    def model(x: Tensor) -> tuple[Tensor, Any]:
        probabilities, features = predict(x.numpy(), True)
        return logits_of(probabilities), features

    num_threads = given.pop("num_threads")
    return Round(ForwardPass(FunctionModel(model), pool, batch_size=pool.block, num_threads=num_threads), **given)
