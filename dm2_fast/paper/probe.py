"""The probe track: a linear head, trained to convergence on frozen features; a curve takes a fraction of a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast import draws, extras, strategies
from dm2_fast.acquire import select_from
from dm2_fast.experiment.data.own_features import read_own
from dm2_fast.experiment.data.patches import frozen_features
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import shuffled
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.clock import measured
from dm2_fast.paper.curves import Curve, hash_of
from dm2_fast.paper.protocol import run_config
from dm2_fast.round import Round
from dm2_fast.strategy import DROPOUT, SAMPLED

ORACLE, FULL = "greedy-oracle", "full-data"
_TRIES = 20  # random batches that the oracle tries
_DROPOUT = 0.2  # before the head, for the strategies that draw networks by it; never in training


@dataclass(frozen=True)
class Probe:
    """A cell of the probe track.

    Attributes:
        dataset: Data set, as of a run; or an .npz file with features of one's own (`read_own`).
        features: patches (`frozen_features`) or pixels.
        dims: How many features of patches.
        pool: Training samples of a seed. The pools of as many seeds as the data allow share no sample.
        test: Test samples, the same for all seeds.
        initial, budget, rounds: Labels to start with, labels a round, rounds.
        l2: Weight of half the squared norm of the head, beside the sum of the cross-entropies.
    """

    dataset: str
    pool: int
    initial: int
    budget: int
    rounds: int
    test: int | None = None
    features: str = "patches"
    dims: int = 128
    l2: float = 1.0

    def __post_init__(self) -> None:
        if self.features not in ("patches", "pixels"):
            raise ValueError(f"features must be patches or pixels, got {self.features!r}")
        if self.initial + self.rounds * self.budget > self.pool:
            raise ValueError(
                f"pool must hold initial + rounds * budget = {self.initial} + {self.rounds} * {self.budget} samples, "
                f"got {self.pool}"
            )
        if not 0 < self.l2 < float("inf") or min(self.initial, self.budget, self.rounds, self.dims) < 1:
            raise ValueError(f"l2, initial, budget, rounds and dims must be positive, got {self}")


@dataclass(frozen=True)
class Features:
    """Features and classes of training and test samples."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int


@lru_cache(maxsize=4)
def features_of(dataset: str, kind: str, dims: int, data_dir: Path) -> Features:
    """The features of a data set, scaled so that they have mean 0 and, all together, a variance of 1 each."""
    if dataset.endswith(".npz"):
        x, y, x_test, y_test = read_own(Path(dataset))
        classes = int(max(y.max(), y_test.max())) + 1
    else:
        data = load(dataset, data_dir)
        y, y_test, classes = data.y, data.y_test, len(data.classes)
        if kind == "patches":
            x, x_test = frozen_features(data.x, data.x_test, dims, data_dir / "features")
        else:
            x, x_test = (images.flatten(1).float() for images in (data.x, data.x_test))
    mean = x.mean(0)
    scale = (x - mean).square().mean().sqrt()
    x, x_test = ((part - mean) / scale for part in (x, x_test))
    return Features(x.contiguous(), y, x_test.contiguous(), y_test, classes)


class Head:
    """A linear classifier of features by L2-regularised multinomial logistic regression, in float64.

    `fit` minimises the sum of the cross-entropies + l2 / 2 * (squares of the weights and of the bias), which has one
    minimum, with L-BFGS from the weights that are there, until no entry of the mean gradient exceeds 1e-5.
    """

    def __init__(self, features: int, classes: int, l2: float) -> None:
        self.l2 = l2
        self.weight = np.zeros((classes, features + 1))  # the last column is the bias

    def fit(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> None:
        """Fit to features (n, d) and classes (n,)."""
        with extras.needed("strategies", "the probe track"):
            from scipy.optimize import minimize

        shape, rows = self.weight.shape, np.arange(len(x))
        x = np.hstack([x, np.ones((len(x), 1))])

        def loss(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weight = theta.reshape(shape)
            z = x @ weight.T
            z -= z.max(1, keepdims=True)
            own = z[rows, y].sum()
            e = np.exp(z, out=z)
            total = e.sum(1, keepdims=True)
            value = np.log(total).sum() - own + self.l2 / 2 * (theta @ theta)
            e /= total
            e[rows, y] -= 1
            return value / len(x), (e.T @ x + self.l2 * weight).ravel() / len(x)

        options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-5, "ftol": 0.0, "maxcor": 10}
        found = minimize(loss, self.weight.ravel(), jac=True, method="L-BFGS-B", options=options)
        self.weight = found.x.reshape(shape)

    def accuracy(self, x: NDArray[np.float64], y: NDArray[np.int64]) -> float:
        """The part of x (n, d) whose class it predicts."""
        return float(((x @ self.weight[:, :-1].T + self.weight[:, -1]).argmax(1) == y).mean())

    def module(self, dropout: bool) -> nn.Module:
        """The head as a module in float32."""
        linear = nn.Linear(self.weight.shape[1] - 1, len(self.weight))
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(self.weight[:, :-1]))
            linear.bias.copy_(torch.from_numpy(self.weight[:, -1]))
        return (nn.Sequential(nn.Dropout(_DROPOUT), linear) if dropout else linear).eval()


def pool_of(seed: int, n: int, size: int) -> Tensor:
    """The rows of a seed's pool: the next `size` of n in random order; after the last whole part, of a new order.

    So n // size seeds in a row have pools that share no row.

    Raises:
        ValueError: there are fewer than size rows.
    """
    parts = n // size
    if not parts:
        raise ValueError(f"pool must be at most {n} for this data set, got {size}")
    order = draws.uniform(seed // parts, 0, np.arange(n), "pools").argsort(kind="stable")
    return torch.from_numpy(np.sort(order[seed % parts * size :][:size]))


def probe_curve(cell: str, method: str, probe: Probe, options: dict[str, Any], seed: int, data_dir: Path) -> Curve:
    """One curve: random labels, then fit, test, choose, again and again, and a last fit.

    Besides strategies there are two references that look at all labels: `greedy-oracle` tries 20 random batches a round
    and keeps the one whose head is the most accurate on the test set; `full-data` is one head on the whole pool.

    Args:
        cell, method: Names.
        options: Those of a run that say which strategy: strategy and its options.

    Raises:
        ValueError: the strategy trains something beside the network.
    """
    data = features_of(probe.dataset, probe.features, probe.dims, data_dir)
    began = time.perf_counter()
    (labelled, accuracy, chosen, selecting), _, peak = measured(lambda: _run(data, probe, options, seed))
    return Curve(
        cell, method, seed, tuple(labelled), {"accuracy": tuple(accuracy)}, hash_of(chosen),
        seconds=time.perf_counter() - began, selection_seconds=selecting, peak_mb=peak / 1e6,
    )  # fmt: skip


def _run(
    data: Features, probe: Probe, options: dict[str, Any], seed: int
) -> tuple[list[int], list[float], list[Tensor], float]:
    pool = pool_of(seed, len(data.x), probe.pool)
    test = shuffled(torch.arange(len(data.x_test)), 0, "test")[: probe.test]
    x, y = data.x[pool].double().numpy(), data.y[pool].numpy()
    x_test, y_test = data.x_test[test].double().numpy(), data.y_test[test].numpy()
    head = Head(x.shape[1], data.classes, probe.l2)
    if options.get("strategy") == FULL:
        head.fit(x, y)
        return [len(pool)], [head.accuracy(x_test, y_test)], [pool], 0.0
    choose = _chooser(data, probe, options, seed, pool)
    chosen = [shuffled(torch.arange(len(pool)), seed, "initial")[: probe.initial]]
    labelled, accuracy, selecting = list[int](), list[float](), 0.0
    for r in range(probe.rounds + 1):
        rows = torch.cat(chosen)
        head.fit(x[rows], y[rows])
        labelled.append(len(rows))
        accuracy.append(head.accuracy(x_test, y_test))
        if r < probe.rounds:
            left = torch.ones(len(pool), dtype=torch.bool)
            left[rows] = False
            start = time.perf_counter()
            unlabelled = torch.nonzero(left)[:, 0]
            if options.get("strategy") == ORACLE:
                chosen.append(_best_of_random(head, x, y, x_test, y_test, rows, unlabelled, probe.budget, seed, r + 1))
            else:
                chosen.append(unlabelled[choose(head, unlabelled, rows, r + 1)])
            selecting += time.perf_counter() - start
    return labelled, accuracy, [pool[rows] for rows in chosen], selecting


def _chooser(
    data: Features, probe: Probe, options: dict[str, Any], seed: int, pool: Tensor
) -> Callable[[Head, Tensor, Tensor, int], Tensor]:
    if options.get("strategy") == ORACLE:
        return lambda head, unlabelled, rows, round: unlabelled
    config = run_config(options)
    strategy = strategies.get(config.strategy)
    own_options = strategy.checked(config.options)
    others = 0 if strategy.companions is None else strategy.companions(own_options)
    if strategy.part is not None or others:
        raise ValueError(f"{strategy.name} trains something beside the network: it has no place on the probe track")
    x, y = data.x[pool], data.y[pool]
    dropout = not {DROPOUT, SAMPLED}.isdisjoint(strategy.passes)
    remembered: dict[str, Any] = {}

    def choose(head: Head, unlabelled: Tensor, rows: Tensor, round: int) -> Tensor:
        forward = ForwardPass(head.module(dropout), x[unlabelled], prepare="off", num_threads=1)
        own = (x[unlabelled], x[rows])
        asked = Round(
            forward, seed, round, pool[unlabelled], x[rows], y[rows], ties=config.ties, remembered=remembered,
            own_features=own,
        )  # fmt: skip
        return select_from(asked, probe.budget, strategy, own_options).indices

    return choose


def _best_of_random(
    head: Head, x: NDArray[Any], y: NDArray[Any], x_test: NDArray[Any], y_test: NDArray[Any],
    rows: Tensor, unlabelled: Tensor, budget: int, seed: int, round: int,
) -> Tensor:  # fmt: skip
    """The most accurate of `_TRIES` batches, the first of equals: uniform ones, and ones in which a row has a part
    that is proportional to the loss of its true class, in turn."""
    z = x[unlabelled] @ head.weight[:, :-1].T + head.weight[:, -1]
    top = z.max(1, keepdims=True)
    loss = np.log(np.exp(z - top).sum(1)) + top[:, 0] - z[np.arange(len(z)), y[unlabelled]]
    best: tuple[float, Tensor] = (-1.0, unlabelled)
    for attempt in range(_TRIES):
        waits = draws.generator(seed, round, "order", attempt).exponential(size=len(unlabelled))
        order = (waits / (loss + 1e-9) if attempt % 2 else waits).argsort(kind="stable")
        batch = unlabelled[torch.from_numpy(order[:budget])]
        trial = Head(x.shape[1], len(head.weight), head.l2)
        trial.weight = head.weight
        with_batch = torch.cat([rows, batch])
        trial.fit(x[with_batch], y[with_batch])
        reached = trial.accuracy(x_test, y_test)
        if reached > best[0]:
            best = (reached, batch)
    return best[1]


def seconds_of(probe: Probe, options: dict[str, Any], data_dir: Path) -> float:
    """About how long a curve takes, from one round of it with few rows of the pool."""
    data = features_of(probe.dataset, probe.features, probe.dims, data_dir)
    short = Probe(**{**vars(probe), "rounds": 1})
    _run(data, short, options, 0)
    start = time.perf_counter()
    _run(data, short, options, 0)
    return (time.perf_counter() - start) * (probe.rounds + 1) / 2
