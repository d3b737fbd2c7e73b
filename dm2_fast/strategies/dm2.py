"""DM2: the samples whose mixture with their neighbours is most uncertain (Algorithm 1, lines 8-20)."""

import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dm2_fast.model.batches import check_mixable
from dm2_fast.model.head import model_device
from dm2_fast.operations.approximate import AuditedGraph
from dm2_fast.operations.arguments import number, one_of, whole
from dm2_fast.operations.audit import Audit
from dm2_fast.operations.knn import Metric, weights
from dm2_fast.operations.mapped import MappedRows, mapped
from dm2_fast.operations.memory import as_bytes, minutes
from dm2_fast.operations.mix import Mix, Recipe, check_mix, recipe
from dm2_fast.operations.uncertainty import Uncertainty
from dm2_fast.progress import write
from dm2_fast.round import Picked, Round, check_budget, highest
from dm2_fast.strategies.batch import FACTOR, Batch, apart, check_batch, choose_batch
from dm2_fast.strategy import FEATURES, Pass, Strategy
from dm2_fast.traps import warn_of_column, warn_of_duplicates

_BESIDE = 24  # bytes of a row that are in memory while neighbours are searched: its number and its ids
_CHOSEN = 128  # and afterwards: its weight in mixtures, scores, and their order, too
_EXACT = 5  # budgets of rows whose neighbours are searched exactly after an approximate graph


@dataclass(frozen=True)
class DM2Config:
    """Options of dm2 and dm2-at, by default those chosen in results/sweep; see `published` for the paper's.

    Args:
        metric: Distance of features, Eqs. 4-6: literal = (L2/d + L1/d) / 2, rms = (L2/sqrt(d) + L1/d) / 2, l1, l2.
        k: Nearest neighbours of each sample; clamped, with a warning, where the pool has fewer.
        mix: What a sample is mixed with, Eq. 7: the mean of its k neighbours, one of them at random (Algorithm 1), or
            all, weighted by 1 / distance.
        lam: Lambda of Eq. 7, the weight of the sample itself, in [0, 1]; or beta, drawn per sample.
        alpha: Parameter of the Beta(alpha, alpha) that lam=beta draws from.
        score: Uncertainty of the mixed sample: least-confidence = 1 - max softmax, Eq. 10, or entropy; or margin =
            minus the gap between the two largest softmax values, which is ours.
        offset: Skip this many of the highest scores before choosing (Figure 1).
        space: What is mixed: the input of the model, or features = the input of its head, Eq. 7 on f in place of x;
            only the head runs on the mixtures, and anything that has features can be mixed.
        recall: None for exact neighbours; for large pools on a CPU, the recall in (0, 1) that approximate ones must
            have. The rows that score highest, five times as many as the choice looks at, then get their exact
            neighbours and score, since what is chosen depends on these alone. `Picked.audit` says what was reached.
        batch: highest = the highest scores, Eq. 11; or, both ours, kmeans = the rows nearest to the centres of a
            k-means over ten times as many, spread = the highest without the k neighbours of what is chosen already.
    """

    metric: Metric = "literal"
    k: int = 10
    mix: Mix = "mean"
    lam: float | Literal["beta"] = 0.9
    alpha: float = 1.0
    score: Uncertainty = "margin"
    offset: int = 0
    space: Literal["input", "features"] = "input"
    recall: float | None = None
    batch: Batch | Literal["spread"] = "kmeans"

    def __post_init__(self) -> None:
        weights(self.metric, 1)
        check_mix(self.mix, self.lam, self.alpha)
        object.__setattr__(self, "k", whole("k", self.k, 1))
        one_of("score", self.score, get_args(Uncertainty))
        object.__setattr__(self, "offset", whole("offset", self.offset, 0))
        one_of("space", self.space, ("input", "features"))
        check_batch(self.batch, "spread")
        if self.recall is not None:
            number("recall", self.recall, "between 0 and 1, or None for exact neighbours", lambda value: 0 < value < 1)

    @classmethod
    def published(cls, **changes: Any) -> "DM2Config":
        """The paper's setting, whatever the defaults: Eqs. 4-11 as they read; k and lambda are lost, and ours here.

        Args:
            changes: Options that are otherwise.
        """
        return cls(**{
            "metric": "literal", "k": 10, "mix": "mean", "lam": 0.5, "alpha": 1.0, "score": "least-confidence",
            "offset": 0, "space": "input", "recall": None, "batch": "highest", **changes,
        })  # fmt: skip


def choose(round: Round, budget: int, options: DM2Config) -> Picked:
    """Choose the budget rows whose mixtures score highest, after skipping options.offset."""
    m, forward = round.share.total, round.forward
    check_budget(budget, m, options.offset)
    if options.space == "features":
        _ = round.behind_head if len(round) else round.head
    else:
        round.check_model()
        check_mixable(round.samples)
    k = min(options.k, m - 1)
    if (how := _planned(round, options)) is not None and forward.progress:
        write(str(how))
    features = round.features
    warn_of_column(features)
    if k < options.k:
        warnings.warn(f"k={options.k} is clamped to {k}: the pool has {m} row{'s' * (m > 1)}", stacklevel=4)
    with round.stage("neighbours"):
        n, index, audit = len(round), None, None
        searching = {"progress": forward.progress, **forward.compute}
        if forward.memory is not None and features.device.type == "cpu":
            searching["memory"] = as_bytes(forward.memory) - _BESIDE * m
        distances, neighbours = torch.empty(n, 0), torch.empty(n, 0, dtype=torch.int64)
        if k and options.recall is None:
            _tell_of_recall(features, m)
            distances, neighbours = round.share.once(
                "neighbours",
                (k, options.metric),
                lambda: round.share.nearest(features, k, options.metric, **searching),
            )
        elif k:
            assert options.recall is not None
            index = round.share.index(features, k, options.metric, options.recall, **searching)
            key = k, options.metric, options.recall
            distances, neighbours, found = round.share.once("neighbours", key, partial(_graph, index, k))
            audit = Audit(**found)

    warn_of_duplicates(distances)

    def mixture_of(distances: Tensor, neighbours: Tensor, ids: NDArray[np.int64]) -> Recipe:
        return recipe(
            distances, neighbours, options.mix, options.lam, options.alpha,
            seed=round.seed, round=round.round, row_ids=ids,
        )  # fmt: skip

    with round.stage("mixed"):
        mixture = mixture_of(distances, neighbours, round.ids)
        same = replace(options, offset=0, batch="highest")
        scores = round.once("mixed", same, lambda: _mixed(round, mixture, options))
    if index and audit and audit.path == "approximate":
        with round.stage("exact"):
            looked_at = min(m, options.offset + _EXACT * budget * (FACTOR if options.batch == "kmeans" else 1))
            rows = highest(round.share.gather(scores), looked_at).sort().values
            exact = index.of(rows, k)
            of_rows = mixture_of(*exact, round.share.gather(torch.from_numpy(round.ids))[rows].numpy())

            def anew(part: Tensor) -> Tensor:
                return _mixed(round, of_rows.of(torch.searchsorted(rows, part)), options, part)

            again = round.share.each(rows, _unit(round, options), anew)
            own = (rows >= round.share.first) & (rows < round.share.first + n)
            here, scores = rows[own] - round.share.first, scores.clone()
            MappedRows(distances)[here], MappedRows(neighbours)[here] = exact[0][own], exact[1][own]
            scores[here] = again[own]
            mixture = mixture_of(distances, neighbours, round.ids)
    with round.stage("choose"):
        if options.batch == "spread":
            indices = apart(round, scores, neighbours, budget, options.offset)
        else:
            indices = choose_batch(round, scores, budget, options.batch, options.offset)
    return Picked(indices, scores, neighbours, distances, mixture, audit)


def _planned(round: Round, options: DM2Config) -> object:
    """How the choice keeps within the memory of the round; None where there is no limit, and on a GPU. The model runs
    on two rows, to see what features it has.

    Raises:
        ValueError: memory is too little; the message names the least that suffices.
    """
    m, forward = round.share.total, round.forward
    if forward.memory is None or model_device(forward.model).type != "cpu":
        return None
    features = replace(
        forward, rows=torch.arange(min(2, m)), memory=None, progress=False, these_are_logits=True
    ).features_and_logits()[0]
    like = mapped((m, features.shape[1]), features)
    k, number = max(1, min(options.k, m - 1)), 8 if features.dtype == torch.float64 else 4
    chosen = m * _CHOSEN
    if len(round) < m:  # neighbours, distances and mixture of all rows are put together
        chosen += m * k * (8 + number + 8 + 8 * (options.mix == "weighted") + 8)
        if _of_features(round, options):  # what a process mixes may come from everywhere
            chosen += 3 * m * features.shape[1] * features.element_size()
    return round.share.plan(like, k, options.recall, forward.memory, (m * _BESIDE, chosen))


def _graph(index: AuditedGraph, k: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    distances, neighbours = index.graph(k)
    assert index.audit is not None
    return distances, neighbours, asdict(index.audit)


def _of_features(round: Round, options: DM2Config) -> bool:
    """Whether the head alone runs on mixtures, which are those of features."""
    return options.space == "features" and round.head is not round.forward.model


def _unit(round: Round, options: DM2Config) -> int:
    """Mixtures that one process makes together."""
    if not _of_features(round, options):
        return round.forward.unit
    return round.behind_head.unit if len(round) else 1


def _mixed(round: Round, mixture: Recipe, options: DM2Config, rows: Tensor | None = None) -> Tensor:
    """The uncertainty (m,) of the mixtures of the samples here, or of their features (Eqs. 7-10); or that of some rows
    of the pool, (n,), with a mixture each."""
    if not _of_features(round, options):
        places = torch.arange(len(round)) + round.share.first if rows is None else rows
        return round.forward.mixed_uncertainty(mixture, options.score, places)
    if rows is None:
        table, indices = round.share.table(round.features, mixture.indices)
        places = torch.arange(len(round))
    else:
        table, named = round.share.table(round.features, torch.cat([rows[:, None], mixture.indices], 1))
        places, indices = named[:, 0], named[:, 1:].contiguous()
    if len(round) == 0:
        return round.forward.uncertainty(round.logits, options.score)
    return round.behind_head.over(table).mixed_uncertainty(replace(mixture, indices=indices), options.score, places)


def _tell_of_recall(features: Tensor, m: int) -> None:
    """Warn of an exact search on the CPU that may take more than ten minutes."""
    d = features.shape[1]
    expected = minutes(m, d, torch.get_num_threads())
    if features.device.type == "cpu" and expected > 10:
        warnings.warn(
            f"the exact neighbours of {m} rows of {d} features may take {expected:.0f} minutes: "
            "DM2Config(recall=0.95) finds nearly all of them in a fraction of that",
            stacklevel=5,
        )


MIXED = Pass("mixed", lambda round, options: choose(round, 1, replace(options, offset=0, batch="highest")))

STRATEGY = Strategy("dm2", choose, DM2Config, passes=(FEATURES, MIXED), in_parts=True)
