"""Strategies of ours as a heuristic of baal, and the mixed samples of DM2 for its own heuristics."""

import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset, Subset

from dm2_fast import extras
from dm2_fast.acquire import select_from
from dm2_fast.adapters.classifier import utilities
from dm2_fast.model.functions import as_module
from dm2_fast.model.head import evaluating, model_device, model_dtype
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.pools import open_pool
from dm2_fast.operations.knn import knn
from dm2_fast.operations.mix import Normalize, mix, recipe
from dm2_fast.round import Round
from dm2_fast.strategies import get
from dm2_fast.strategies.dm2 import DM2Config
from dm2_fast.strategy import FEATURES

with extras.needed("baal", "dm2_fast.adapters.baal"):
    from baal.active.dataset.pytorch_dataset import ActiveLearningPool, _identity
    from baal.active.heuristics import AbstractHeuristic
    from baal.bayesian import dropout
    from baal.bayesian.common import BayesianModule
    from baal.utils.array_utils import to_prob


class Acquisition(AbstractHeuristic):  # type: ignore[misc]  # of a package without types
    """A heuristic of baal that chooses with a strategy of ours; of equal scores, a draw decides.

    `ActiveLearningLoop(dataset, acquisition.inputs, acquisition, query_size)` gives it the model and the pool. Of a
    model whose dropout baal keeps on, the plain one runs, with dropout as the strategy wants it. In place of
    `acquisition.inputs`, the predictions of baal's ModelWrapper serve strategies that need no more.

    Args:
        strategy, options, seed: As in `dm2_fast.select`.
        model: The network, or baal's ModelWrapper of it.
        dataset: The ActiveLearningDataset, which has the labelled samples too; they are read as those of its pool are.
        query_size: That of the loop.
        reading: batch_size, normalize, head, prepare, autocast or num_threads, as in `dm2_fast.select`.
    """

    def __init__(
        self,
        strategy: str = "dm2",
        options: Any = None,
        *,
        model: Any = None,
        dataset: Any = None,
        query_size: int = 1,
        seed: int = 0,
        **reading: Any,
    ) -> None:
        super().__init__(reverse=True)
        self.strategy = get(strategy)
        self.options = self.strategy.checked(options)
        self.model, self.dataset, self.query_size, self.seed, self.reading = model, dataset, query_size, seed, reading

    def inputs(self, pool: Dataset[Any]) -> Round:
        """What baal's loop hands from `get_probabilities` to the heuristic: the model, the pool and the labelled set.

        Raises:
            ValueError: the model or the data set is not known.
        """
        if self.model is None or self.dataset is None:
            raise ValueError("Acquisition.inputs needs the model and the data set: Acquisition(model=, dataset=)")
        forward = ForwardPass(plain(self.model), open_pool(as_given(pool)), **self.reading)
        labelled, labels = None, None
        if FEATURES in self.strategy.passes and self.dataset.labelled.any():
            samples = Labelled(self.dataset)
            labelled, labels = open_pool(samples, "labelled"), samples.labels()
        rows, known = rows_of(pool, self.dataset), int(self.dataset.labelled.sum())
        return Round(forward, self.seed, known, rows, labelled, labels, ties="random")

    def get_ranks(
        self, predictions: Any, target_predictions: Any = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All rows of the pool, the chosen first, in order of choice; and a number for each row.

        The numbers are those of `dm2_fast.adapters.classifier.utilities`.

        Args:
            predictions: What `inputs` returned; or probabilities or logits (m, C), (m, C, iterations) or a generator of
                such blocks, which are averaged over their iterations.
            target_predictions: Not used.
        """
        asked = predictions if isinstance(predictions, Round) else self._arrays(predictions)
        m = len(asked)
        picked = select_from(asked, min(self.query_size, m), self.strategy, self._fitted(m))
        scores = utilities(picked, m)
        chosen: NDArray[np.int64] = picked.indices.cpu().numpy()
        keys = scores.copy()
        keys[chosen] = np.inf
        order = np.argsort(-keys, kind="stable")
        order[: len(chosen)] = chosen
        return order, scores

    def compute_score(self, predictions: Any, target_predictions: Any = None) -> NDArray[np.float64]:
        """The numbers of `get_ranks`."""
        return self.get_ranks(predictions)[1]

    def _arrays(self, predictions: Any) -> Round:
        if isinstance(predictions, types.GeneratorType):
            predictions = np.concatenate(list(predictions))
        values = np.asarray(predictions)
        means = values.mean(-1) if values.ndim > 2 else values
        if means.ndim == 2 and means.shape[1] > 1 and means.dtype.kind == "f" and means.min() < 0:  # plainly logits
            return Round.from_arrays(logits=means, seed=self.seed, ties="random")
        return Round.from_arrays(probabilities=to_prob(means), seed=self.seed, ties="random")

    def _fitted(self, m: int) -> Any:
        """The options, with no more neighbours than there are."""
        if isinstance(self.options, DM2Config) and 1 < m <= self.options.k:
            return replace(self.options, k=m - 1)
        return self.options


def mixed_probabilities(
    model: Any,
    options: DM2Config | None = None,
    *,
    iterations: int = 1,
    seed: int = 0,
    batch_size: int = 256,
    normalize: Normalize | None = None,
) -> Callable[[Dataset[Any]], Iterator[NDArray[Any]]]:
    """A `get_probabilities` for heuristics of baal: the probabilities of DM2's mixed samples in place of the samples'.

    With baal's `Certainty`, this is DM2 as published; with its `Margin`, DM2 whose batch is not spread; with its `BALD`
    and a model whose dropout it keeps on, BALD of the mixtures.

    Args:
        model: The network, or baal's ModelWrapper of it.
        options: metric, k, mix, lam and alpha of DM2; the others are the heuristic's.
        iterations: Passes over each batch, which differ where the model keeps its dropout on.
        seed, batch_size, normalize: As in `dm2_fast.select`; seed also keys the dropout.

    Returns:
        A function that makes blocks (n, C, iterations) of a pool, one after the other.

    Raises:
        ValueError: options has one of score, offset, space, recall and batch.
    """
    options = options or DM2Config()
    used = DM2Config(options.metric, options.k, options.mix, options.lam, options.alpha)
    if options not in (used, replace(used, score="least-confidence", batch="highest")):  # as published
        raise ValueError(
            "score, offset, space, recall and batch are not for mixed_probabilities: leave them out of options"
        )

    def probabilities(pool: Dataset[Any]) -> Iterator[NDArray[Any]]:
        network = as_module(getattr(model, "model", model) if not isinstance(model, nn.Module) else model)
        asked = Round(ForwardPass(plain(model), open_pool(as_given(pool)), normalize, batch_size=batch_size), seed)
        m = len(asked)
        k = min(used.k, m - 1)
        distances, neighbours = torch.empty(m, 0), torch.empty(m, 0, dtype=torch.int64)
        if k:
            distances, neighbours = (part.cpu() for part in knn(asked.features, k, used.metric))
        how = recipe(distances, neighbours, used.mix, used.lam, used.alpha, seed=seed)
        samples: Any = asked.samples
        for rows in torch.arange(m).split(batch_size):
            weights = None if how.weights is None else how.weights[rows]
            batch = mix(samples, how.indices[rows], how.lam[rows], weights=weights, rows=rows, normalize=normalize)
            batch = batch.to(model_device(network), model_dtype(network))
            with evaluating(network), torch.no_grad(), torch.random.fork_rng():
                torch.manual_seed(seed * 1_000_003 + int(rows[0]))
                outputs = [network(batch).softmax(1) for _ in range(iterations)]
            yield torch.stack(outputs, 2).cpu().numpy()

    return probabilities


def plain(model: Any) -> nn.Module:
    """The network of baal's ModelWrapper, or the model itself; without the layers that baal keeps random, on a copy."""
    network = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if isinstance(network, BayesianModule):
        return copy.deepcopy(network).unpatch()  # type: ignore[no-any-return]
    if isinstance(network, nn.Module) and any(
        isinstance(part, (dropout.Dropout, dropout.Dropout2d)) for part in network.modules()
    ):
        return dropout.unpatch_module(network, inplace=False)  # type: ignore[no-any-return]
    return as_module(network)


def as_given(pool: Dataset[Any]) -> Dataset[Any]:
    """The pool of baal's loop; what is behind it, which reads many samples at once, where it changes none of them."""
    if isinstance(pool, ActiveLearningPool) and pool.make_unlabelled is _identity:
        return pool._dataset  # type: ignore[no-any-return]
    return pool


class Labelled(Dataset[Any]):
    """The labelled samples of an ActiveLearningDataset, read as those of its pool are: without augmentation, say."""

    def __init__(self, dataset: Any) -> None:
        self.rows = np.flatnonzero(dataset.labelled)
        self.samples = copy.copy(dataset._dataset)
        for name, value in dataset.pool_specifics.items():
            setattr(self.samples, name, value)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return self.samples[int(self.rows[place])]

    def labels(self) -> torch.Tensor | None:
        """Their classes, (n,); None where the second part of a sample is no whole number."""
        samples = [self[place] for place in range(len(self))]
        given = [sample[1] for sample in samples if isinstance(sample, (tuple, list)) and len(sample) > 1]
        numbers = [label for label in given if np.ndim(label) == 0 and int(label) == label]
        return torch.tensor([int(label) for label in numbers]) if len(numbers) == len(samples) else None


def rows_of(pool: Any, dataset: Any) -> NDArray[np.int64] | None:
    """The rows of the data set that a pool of baal's loop has; None for a pool of another kind."""
    unlabelled = np.flatnonzero(~dataset.labelled)
    limited = isinstance(pool, Subset)
    if len(pool.dataset if limited else pool) != len(unlabelled):
        return None
    return unlabelled[np.asarray(pool.indices)] if limited else unlabelled
