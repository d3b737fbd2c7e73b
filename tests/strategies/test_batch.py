"""Batches that are spread over the features, against their definitions written out."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import k_means
from torch import Tensor, nn

from dm2_fast import DM2Config, Round, draws, select_from, strategies
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.batch import apart, clustered
from dm2_fast.strategies.clusters import _means, nearest_to_centres
from dm2_fast.strategies.margin import MarginConfig


def make_round(m: int = 240, d: int = 6, classes: int = 4, **changes) -> Round:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(m, d, generator=generator)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(d, classes))
    labelled = torch.randn(9, d, generator=generator)
    return Round(ForwardPass(model, x, batch_size=16), 5, 2, labelled=labelled, labels=torch.arange(9) % 4, **changes)


def naive_clustered(x: Tensor, scores: Tensor, budget: int, offset: int, seed: int) -> list[int]:
    m = len(scores)
    ordered = sorted(range(m), key=lambda row: (-scores[row].item(), row))[offset : offset + 10 * budget]
    weights = (scores[ordered] - scores.min()).double().numpy()
    unit = F.normalize(x[ordered].double()).numpy()
    cluster, centres = k_means(unit, weights, budget, seed)
    distances = ((unit - centres[cluster]) ** 2).sum(1)
    nearest = [min(np.flatnonzero(cluster == c), key=lambda row: (distances[row], row)) for c in range(budget)]
    return [ordered[place] for place in sorted(nearest)]


@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("kind", ["margin", "least-confidence", "entropy"])
def test_kmeans_takes_the_row_nearest_to_each_weighted_centre(kind: str, offset: int) -> None:
    asked = make_round()
    scores = asked.forward.uncertainty(asked.logits, kind)
    seed = int(draws.generator(5, 2, "clusters").integers(2**32))
    expected = naive_clustered(asked.features, scores, 7, offset, seed)
    assert clustered(asked, scores, 7, offset).tolist() == expected
    assert expected != asked.highest(scores, 7, offset).tolist()
    if offset == 0:
        options = strategies.get(kind).options(batch="kmeans")
        assert select_from(make_round(), 7, kind, options).indices.tolist() == expected


def test_dm2_clusters_the_scores_of_its_mixtures() -> None:
    options = DM2Config(score="margin", batch="kmeans", k=4, offset=3)
    picked = select_from(make_round(), 7, "dm2", options)
    seed = int(draws.generator(5, 2, "clusters").integers(2**32))
    assert picked.indices.tolist() == naive_clustered(make_round().features, picked.scores, 7, 3, seed)


LESS = {"isal": {"steps": 2}, "ll4al": {"epochs": 2}, "vaal": {"epochs": 1}}


@pytest.mark.filterwarnings("ignore:vaal trains", "ignore:ll4al trains")
@pytest.mark.parametrize(
    "name", ["bald", "entropy-bayesian", "uncertain-gcn", "ent-gn", "exp-gn", "qbc", "isal", "ll4al", "vaal"]
)
def test_every_scoring_strategy_has_the_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dm2_fast.strategies.graph_network.STEPS", 3)
    options = strategies.get(name).options(batch="kmeans", **LESS.get(name, {}))
    picked = select_from(make_round(), 6, name, options)
    seed = int(draws.generator(5, 2, "clusters").integers(2**32))
    assert picked.indices.tolist() == naive_clustered(make_round().features, picked.scores, 6, 0, seed)


def test_scores_count_as_weights() -> None:
    """Two far groups of two rows: with one centre, the weights decide near which group it lies."""
    x = torch.tensor([[1.0, 0.0], [0.98, 0.2], [0.0, 1.0], [0.2, 0.98], [-1.0, 0.0]])
    asked = Round(ForwardPass(nn.Linear(2, 3), x), 0, 0)
    assert clustered(asked, torch.tensor([9.0, 9.0, 1.0, 1.0, 0.0]), 1).item() in (0, 1)
    assert clustered(asked, torch.tensor([1.0, 1.0, 9.0, 9.0, 0.0]), 1).item() in (2, 3)


def test_the_k_neighbours_of_a_choice_are_passed_over() -> None:
    options = DM2Config(batch="spread", k=5)
    picked = select_from(make_round(), 12, "dm2", options)
    near, chosen = picked.neighbours.tolist(), picked.indices.tolist()
    assert not any(later in near[row] for i, row in enumerate(chosen) for later in chosen[i + 1 :])
    expected: list[int] = []
    for row in sorted(range(240), key=lambda row: (-picked.scores[row].item(), row)):
        if len(expected) < 12 and not any(row in near[other] for other in expected):
            expected.append(row)
    assert chosen == expected
    highest = select_from(make_round(), 12, "dm2", DM2Config(k=5, batch="highest")).indices.tolist()
    assert chosen != highest
    assert chosen[0] == highest[0]


def test_what_was_passed_over_fills_up_a_batch_by_score() -> None:
    asked = make_round(6)
    neighbours = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])
    scores = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    assert apart(asked, scores, neighbours, 2).tolist() == [0, 3]
    assert apart(asked, scores, neighbours, 5).tolist() == [0, 3, 1, 2, 4]
    assert apart(asked, scores, neighbours, 3, 1).tolist() == [1, 3, 2]


@pytest.mark.parametrize("budget", [1, 30, 240])
def test_any_budget_gets_distinct_rows(budget: int) -> None:
    for options in (DM2Config(batch="kmeans"), DM2Config(batch="spread")):
        picked = select_from(make_round(), budget, "dm2", options).indices.tolist()
        assert len(set(picked)) == budget


def test_rows_that_repeat_are_filled_up_by_score() -> None:
    x = torch.eye(3).repeat(20, 1)
    asked = Round(ForwardPass(nn.Linear(3, 3), x), 0, 0)
    scores = torch.arange(60, 0, -1).float()
    picked = clustered(asked, scores, 5).tolist()
    assert len(set(picked)) == 5
    assert set(picked[:3]) == {0, 1, 2}
    assert picked[3:] == [3, 4]


def test_equal_scores_weigh_the_same() -> None:
    x = make_round().features
    asked = Round(ForwardPass(nn.Linear(6, 3), x), 0, 0, ties="random")
    assert len(set(clustered(asked, torch.zeros(240), 9).tolist())) == 9


def test_the_setting_of_the_paper_has_one_name() -> None:
    published = DM2Config.published()
    assert (published.k, published.lam, published.score, published.batch) == (10, 0.5, "least-confidence", "highest")
    assert DM2Config.published(k=3) == replace(published, k=3)
    assert DM2Config() == DM2Config.published(score="margin", lam=0.9, batch="kmeans")  # results/sweep


def test_ties_among_candidates_without_weight_are_no_trap_and_equal_scores_are() -> None:
    asked = make_round()
    scores = torch.zeros(240)
    scores[:20] = torch.arange(20, 0, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clustered(asked, scores, 5).tolist() != [0, 1, 2, 3, 4]
    with pytest.warns(
        UserWarning, match="240 rows have the same score, and 50 of them were chosen for their lower row"
    ):
        clustered(asked, torch.ones(240), 5)


def test_a_batch_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="batch must be one of highest, kmeans, got 'spread'"):
        MarginConfig(batch="spread")


def test_clusters_do_not_depend_on_threads_and_repeated_rows_make_fewer() -> None:
    generator = torch.Generator().manual_seed(4)
    x, counts = torch.randn(3000, 5, generator=generator), torch.rand(3000, generator=generator)
    one = nearest_to_centres(x, 40, 1, weights=counts, num_threads=1)
    assert torch.equal(nearest_to_centres(x, 40, 1, weights=counts, num_threads=3), one)
    assert len(one) == len(one.unique()) == 40
    assert not torch.equal(nearest_to_centres(x, 40, 2, weights=counts), one)
    few = torch.eye(5)[torch.arange(60) % 3]
    assert sorted(row % 3 for row in nearest_to_centres(few, 10, 0).tolist()) == [0, 1, 2]
    assert nearest_to_centres(few[:4], 10, 0).tolist() == [0, 1, 2, 3]


def test_a_cluster_that_loses_its_rows_keeps_its_centre() -> None:
    x, centres = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    means = _means(x, torch.ones(2, dtype=torch.float64), torch.tensor([1, 1]), centres)
    assert means.tolist() == [[1.0, 0.0], [0.5, 0.5], [-1.0, 0.0]]
