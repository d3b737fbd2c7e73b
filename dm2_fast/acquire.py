"""DM2 acquisition: features -> neighbours -> mix -> score -> choose (Algorithm 1, lines 8-20)."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dm2_fast.arrays import ArrayLike
from dm2_fast.distance import Metric, knn, weights
from dm2_fast.mixing import Mix, Normalize, check_mix, recipe
from dm2_fast.scoring import ForwardPass, model_device


@dataclass(frozen=True)
class DM2Config:
    """Options of the DM2 acquisition. The paper's own values of k, lambda and alpha are lost; these defaults are ours.

    Args:
        metric: Distance of features, Eqs. 4-6: literal = (L2/d + L1/d) / 2, rms = (L2/sqrt(d) + L1/d) / 2, l1, l2.
        k: Nearest neighbours of each sample; clamped, with a warning, where the pool has fewer.
        mix: What a sample is mixed with, Eq. 7: the mean of its k neighbours, one of them at random (Algorithm 1), or
            all, weighted by 1 / distance.
        lam: Lambda of Eq. 7, the weight of the sample itself, in [0, 1]; or beta, drawn per sample.
        alpha: Parameter of the Beta(alpha, alpha) that lam=beta draws from.
        score: Uncertainty of the mixed sample, Eq. 10: 1 - max softmax, or entropy.
        offset: Skip this many of the highest scores before choosing (Figure 1).
    """

    metric: Metric = "literal"
    k: int = 10
    mix: Mix = "mean"
    lam: float | Literal["beta"] = 0.5
    alpha: float = 1.0
    score: Literal["least-confidence", "entropy"] = "least-confidence"
    offset: int = 0

    def __post_init__(self) -> None:
        weights(self.metric, 1)
        check_mix(self.mix, self.lam, self.alpha)
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        scores = get_args(DM2Config.__annotations__["score"])
        if self.score not in scores:
            raise ValueError(f"score must be one of {', '.join(scores)}, got {self.score!r}")
        if self.offset < 0:
            raise ValueError(f"offset must be at least 0, got {self.offset}")


@dataclass(frozen=True)
class Picked:
    """What an acquisition chose, and why.

    Attributes:
        indices: Chosen rows of the pool in order of choice, (B,) int64.
        scores: The score of every row of the pool, (m,); None for a strategy that does not score rows.
        neighbours: (m, k) int64 neighbours of every row, nearest first; None for strategies without neighbours.
        distances: (m, k) distances to them; None likewise.
        seconds: Wall time of each stage.
        prepared: How the model was prepared for inference, or "off" and why it was not; None where no model ran.
    """

    indices: Tensor
    scores: Tensor | None
    neighbours: Tensor | None = None
    distances: Tensor | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    prepared: str | None = None


def select(
    model: nn.Module,
    inputs: ArrayLike,
    budget: int,
    config: DM2Config | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    round: int = 0,
    row_ids: NDArray[np.int64] | Tensor | None = None,
    *,
    head: str | nn.Module | None = None,
    batch_size: int = 256,
    backend: str = "auto",
    num_threads: int | None = None,
    progress: bool = False,
    prepare: Literal["auto", "off"] = "auto",
    autocast: torch.dtype | None = None,
) -> Picked:
    """Choose the next samples to label with DM2 (Algorithm 1, lines 8-20; Eqs. 3-11).

    Specifically, with f the input of the model's head, this computes
        neighbours = knn(f, k)
        mixed      = lam * inputs + (1 - lam) * inputs[neighbours].mean(1)
        scores     = 1 - model(mixed).softmax(1).amax(1)
        indices    = scores.sort(descending=True, stable=True).indices[offset : offset + budget]
    without storing the distances or the mixed samples. The model, its mode, its BatchNorm statistics and the random
    state come back untouched.

    Args:
        model: Returns (n, C) logits for a batch of n samples.
        inputs: The unlabelled pool, (m, ...): uint8 (scaled to [0, 1]) or floating point; a tensor, an array, a
            np.memmap, or anything with len, shape and integer-array indexing.
        budget: How many samples to choose, B.
        config: Options of the method; None for `DM2Config()`.
        normalize: (mean, std), numbers or one per channel, applied after mixing.
        seed, round, row_ids: Key of every random draw, so that a row's draw is the same whatever else is in the pool;
            row_ids (m,) defaults to 0, 1, 2, ...
        head: The module whose input is the feature vector f, or its dotted name; None for the last linear layer
            executed whose output is the logits.
        batch_size: The most rows per forward pass; the last batch is padded, and one for which there is not enough
            memory is halved, with a warning.
        backend, num_threads, progress: As in `dm2_fast.knn`.
        prepare: "auto" runs a copy of the model that is prepared for inference, if its logits are those of the model
            to 1e-4 of the largest; "off" runs the model as it is. `Picked.prepared` says what was done.
        autocast: torch.float16 or torch.bfloat16, to run the model under `torch.autocast`.

    Returns:
        What was chosen; every row of the pool has a score. With one row only, nothing is mixed.

    Raises:
        ValueError: budget (plus offset) is out of range, the pool is empty, the model has no head or does not return
            finite (n, C) logits, or an option is out of range.
        TypeError: inputs are neither uint8 nor floating point, or the model returns no tensor.
        RuntimeError: a forced backend cannot run.
    """
    forward = ForwardPass(model, inputs, normalize, head, batch_size, backend, num_threads, progress, prepare, autocast)
    config = config or DM2Config()
    m = len(inputs)
    check_budget(budget, m, config.offset)
    ids = check_row_ids(row_ids, m)
    seconds: dict[str, float] = {}
    with stage(seconds, "features", model_device(model)):
        features, _ = forward.features_and_logits()
    picked = choose_mixed(forward, features, budget, config, seed, round, ids)
    return replace(picked, seconds=seconds | picked.seconds)


def choose_mixed(
    forward: ForwardPass,
    features: Tensor,
    budget: int,
    config: DM2Config,
    seed: int,
    round: int,
    row_ids: NDArray[np.int64],
) -> Picked:
    """What `select` does after the first forward pass, for features (m, d) that are known already."""
    m = len(features)
    check_budget(budget, m, config.offset)
    k = min(config.k, m - 1)
    if k < config.k:
        warnings.warn(f"k={config.k} is clamped to {k}: the pool has {m} row{'s' * (m > 1)}", stacklevel=3)

    seconds: dict[str, float] = {}
    device = model_device(forward.model)
    with stage(seconds, "neighbours", device):
        if k:
            threads, progress = forward.num_threads, forward.progress
            distances, neighbours = knn(
                features, k, config.metric, backend=forward.backend, num_threads=threads, progress=progress
            )
        else:
            neighbours = torch.empty(m, 0, dtype=torch.int64)
            distances = torch.empty(m, 0)
    with stage(seconds, "mixed", device):
        mixture = recipe(
            distances, neighbours, config.mix, config.lam, config.alpha, seed=seed, round=round, row_ids=row_ids
        )
        scores = forward.mixed_uncertainty(mixture, config.score)
    with stage(seconds, "choose", device):
        indices = highest(scores, budget, config.offset)
    return Picked(indices, scores, neighbours, distances, seconds, forward.prepared().note)


def highest(scores: Tensor, budget: int, offset: int = 0) -> Tensor:
    """The rows of the budget highest scores after skipping offset of them, ties to the lower row (Eq. 11)."""
    return scores.sort(descending=True, stable=True).indices[offset : offset + budget]


def check_budget(budget: int, m: int, offset: int = 0) -> None:
    """Raise unless budget rows can be chosen from m."""
    if not 1 <= budget <= m:
        raise ValueError(f"budget must be in [1, {m}] for a pool of {m} rows, got {budget}")
    if offset + budget > m:
        raise ValueError(f"offset must be at most {m - budget} for budget {budget} of {m} rows, got {offset}")


def check_row_ids(row_ids: NDArray[np.int64] | Tensor | None, m: int) -> NDArray[np.int64]:
    """row_ids as an array; 0, 1, 2, ... for None."""
    if row_ids is None:
        return np.arange(m)
    ids = row_ids.cpu().numpy() if isinstance(row_ids, Tensor) else np.asarray(row_ids)
    if ids.shape != (m,) or ids.dtype.kind not in "iu":
        raise ValueError(f"row_ids must be {m} integers, got shape {ids.shape} of {ids.dtype}")
    return ids.astype(np.int64)


@contextmanager
def stage(seconds: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    """Store the wall time of a stage in seconds, with the device synchronised at both ends."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    yield
    seconds[name] = now() - start
