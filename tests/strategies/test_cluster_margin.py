"""Cluster-Margin against its definition: merges one at a time in plain Python, and turns one row at a time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor, nn

import dm2_fast
from dm2_fast import Round, RunConfig, draws, select, select_from
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.state import newest_state
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies import cluster_margin
from dm2_fast.strategies.cluster_margin import ClusterMarginConfig, clusters, connected, neighbour_edges, round_robin
from dm2_fast.strategies.linkage import average_linkage


def rows(m: int, d: int = 7, groups: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(groups, d, generator=generator)
    return centres[torch.arange(m) % groups] + 0.3 * torch.randn(m, d, generator=generator)


def canonical(labels) -> list[int]:
    """Clusters numbered by their first row."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(label), len(seen)) for label in labels]


def naive(x: Tensor, count: int, edges: set[tuple[int, int]] | None) -> list[int]:
    """Merge the two clusters at the least mean distance; with edges, of those that have one, as they were merged."""
    x = F.normalize(x.float()).double()
    members = {i: [i] for i in range(len(x))}
    pairs = {(i, j) for i in range(len(x)) for j in range(i)} if edges is None else edges
    distance = {frozenset(pair): float((x[pair[0]] - x[pair[1]]).norm()) for pair in pairs}
    while len(members) > count:
        a, b = min(distance, key=lambda pair: distance[pair])
        new = max(members) + 1
        sizes = len(members[a]), len(members[b])
        for c in [c for c in members if c not in (a, b)]:
            found = [(distance.pop(frozenset((one, c)), None), size) for one, size in zip((a, b), sizes, strict=True)]
            known = [(value, size) for value, size in found if value is not None]
            if known:
                distance[frozenset((new, c))] = sum(v * s for v, s in known) / sum(s for _, s in known)
        del distance[frozenset((a, b))]
        members[new] = members.pop(a) + members.pop(b)
    labels = [0] * len(x)
    for number, cluster in enumerate(members.values()):
        for row in cluster:
            labels[row] = number
    return canonical(labels)


@pytest.mark.parametrize("count", [1, 4, 13, 60])
def test_few_rows_are_merged_by_the_mean_of_all_their_distances(count: int) -> None:
    x = rows(60)
    assert canonical(clusters(x, count)) == naive(x, count, None)
    assert clusters(x * torch.rand(60, 1).add(0.1), count).tolist() == clusters(x, count).tolist()  # of unit norm


@pytest.mark.parametrize("count", [1, 4, 13])
def test_many_rows_are_merged_along_the_graph(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_margin, "SMALL", 10)
    monkeypatch.setattr(cluster_margin, "NEIGHBOURS", 3)
    x = rows(70)
    unit = F.normalize(x)
    graph = connected(unit, neighbour_edges(unit)).tocoo()
    edges = {(max(i, j), min(i, j)) for i, j in zip(graph.row.tolist(), graph.col.tolist(), strict=True)}
    nearest = torch.cdist(unit.double(), unit.double()).fill_diagonal_(torch.inf).argsort(1)[:, :3]
    wanted = {(max(i, int(j)), min(i, int(j))) for i in range(70) for j in nearest[i]}
    assert wanted <= edges
    assert len(edges - wanted) < 10
    assert canonical(clusters(x, count)) == naive(x, count, edges)


def test_the_whole_graph_gives_what_all_distances_give(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    expected = canonical(clusters(x, 7))
    monkeypatch.setattr(cluster_margin, "SMALL", 10)
    monkeypatch.setattr(cluster_margin, "NEIGHBOURS", 39)
    assert canonical(clusters(x, 7)) == expected
    monkeypatch.setattr(cluster_margin, "NEIGHBOURS", 2)
    assert canonical(clusters(x, 7)) != expected


@pytest.mark.parametrize("count", [1, 30, 111])
def test_along_a_graph_the_clusters_are_scikit_learns(count: int) -> None:
    x = F.normalize(rows(500, d=20, groups=40))
    graph = connected(x, neighbour_edges(x))
    expected = AgglomerativeClustering(count, linkage="average", connectivity=graph).fit_predict(x.double().numpy())
    i, j = graph.tocoo().coords
    lengths = (x[i].double() - x[j].double()).norm(dim=1).numpy()
    assert canonical(average_linkage((i, j), lengths, 500, count)) == canonical(expected)


def test_of_equal_distances_the_lower_rows_are_merged_first_and_without_edges_none() -> None:
    edges = np.array([3, 2, 1, 5, 4]), np.array([2, 1, 0, 4, 4])  # a path of 0 to 3, and a pair; the last is no edge
    lengths = np.array([1.0, 1.0, 1.0, 2.0, 0.0])
    made = {count: canonical(average_linkage(edges, lengths, 7, count)) for count in (7, 6, 5, 4, 3, 1)}
    assert made[7] == [0, 1, 2, 3, 4, 5, 6]
    assert made[6] == [0, 0, 1, 2, 3, 4, 5]
    assert made[5] == [0, 0, 0, 1, 2, 3, 4]
    assert made[4] == [0, 0, 0, 0, 1, 2, 3]
    assert made[3] == made[1] == [0, 0, 0, 0, 1, 1, 2]
    edges, lengths = (np.array([0, 0, 1, 2]), np.array([1, 4, 4, 3])), np.array([1.0, 2.0, 2.5, 2.25])
    assert canonical(average_linkage(edges, lengths, 5, 3)) == [0, 0, 1, 2, 0]


def test_parts_of_the_graph_are_linked_by_their_shortest_edges() -> None:
    angles = torch.tensor([0.0, 0.01, 0.02, 1.0, 1.01, 1.02, 2.5, 2.51, 2.52])
    x = torch.stack([angles.cos(), angles.sin()], 1)
    i, j = np.arange(9), np.arange(9) // 3 * 3
    graph = connected(x, (i, j)).tocoo()
    added = {(max(a, b), min(a, b)) for a, b in zip(graph.row.tolist(), graph.col.tolist(), strict=True)}
    assert added - {(max(a, b), min(a, b)) for a, b in zip(i.tolist(), j.tolist(), strict=True)} == {(3, 2), (6, 5)}


def naive_robin(candidates: list[int], labels: list[int], draw: list[float], budget: int) -> list[int]:
    groups: dict[int, list[int]] = {}
    for row in candidates:
        groups.setdefault(labels[row], []).append(row)
    order = sorted(groups.values(), key=lambda group: (len(group), group[0]))
    picks: list[int] = []
    while len(picks) < budget:
        for group in order:
            if group and len(picks) < budget:
                row = min(group, key=lambda row: draw[row])
                group.remove(row)
                picks.append(row)
    return picks


@pytest.mark.parametrize("budget", [1, 7, 20, 30])
def test_clusters_take_turns_from_the_smallest_on(budget: int) -> None:
    generator = np.random.default_rng(budget)
    labels, draw = generator.integers(0, 9, 50), generator.random(50)
    candidates = np.sort(generator.permutation(50)[:30])
    found = round_robin(torch.from_numpy(candidates), labels[candidates], draw[candidates], budget)
    assert found.tolist() == naive_robin(candidates.tolist(), labels.tolist(), draw.tolist(), budget)


def round_of(x: Tensor, **changes) -> Round:
    torch.manual_seed(3)
    head = nn.Linear(x.shape[1], 4)
    return replace(Round(ForwardPass(head, x, batch_size=16), 5, 2), **changes)


@pytest.mark.parametrize(
    ("candidates", "size", "budget"), [(2, 3, 9), (10, 10, 4), (1, 5, 6), (100, 4, 60), (3, 99, 5)]
)
def test_a_choice_is_that_of_the_definition(candidates: int, size: int, budget: int) -> None:
    x = rows(60)
    asked = round_of(x)
    picked = select_from(asked, budget, "cluster-margin", ClusterMarginConfig(candidates, size))
    p = asked.logits.double().softmax(1).sort(1, descending=True).values
    margins = (p[:, 0] - p[:, 1]).tolist()
    lowest = sorted(sorted(range(60), key=lambda row: (margins[row], row))[: candidates * budget])
    labels = naive(x, max(1, 60 // size), None)
    draw = draws.uniform(5, 2, np.arange(60), "robin").tolist()
    assert picked.indices.tolist() == naive_robin(lowest, labels, draw, budget)
    assert picked.scores is None
    assert list(picked.seconds) == ["features", "clusters", "choose"]


def test_clusters_are_found_once_and_followed_by_the_ids_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(60)
    memory: dict = {}
    select_from(round_of(x, remembered=memory), 4, "cluster-margin")
    kept = {key: value.clone() for key, value in memory.items()}
    assert canonical(kept["clusters"].tolist()) == naive(x, 6, None)
    monkeypatch.setattr(cluster_margin, "clusters", None)  # not called again
    left = torch.from_numpy(np.random.default_rng(0).permutation(60)[:40])
    asked = round_of(torch.randn(40, 7), row_ids=left, remembered=memory)  # other features, other order
    picked = select_from(asked, 5, "cluster-margin", ClusterMarginConfig(candidates=3))
    margins = asked.forward.uncertainty(asked.logits, "margin")
    lowest = sorted(margins.argsort(descending=True, stable=True)[:15].tolist())
    labels = kept["clusters"][left].tolist()
    assert picked.indices.tolist() == naive_robin(lowest, labels, draws.uniform(5, 2, left.numpy(), "robin"), 5)
    assert all(torch.equal(memory[key], kept[key]) for key in kept)


def test_rows_that_have_no_cluster_are_clustered_with_the_rest_anew() -> None:
    memory: dict = {}
    select(nn.Linear(7, 4), rows(40), 4, "cluster-margin", remembered=memory)
    assert len(memory["ids"]) == 40
    select(nn.Linear(7, 4), rows(30), 4, "cluster-margin", row_ids=torch.arange(20, 50), remembered=memory)
    assert memory["ids"].tolist() == list(range(20, 50))


def test_equal_rows_one_row_and_a_budget_of_all() -> None:
    same = rows(1).expand(30, 7).contiguous()
    picked = select(nn.Linear(7, 4), same, 30, "cluster-margin")
    assert sorted(picked.indices.tolist()) == list(range(30))
    assert select(nn.Linear(7, 4), rows(1), 1, "cluster-margin").indices.tolist() == [0]
    assert len(set(select(nn.Linear(7, 4), torch.zeros(25, 7), 8, "cluster-margin").indices.tolist())) == 8


def test_equal_rows_beyond_the_small_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of copies, larger than their neighbours are many: the graph falls into parts that have to be linked."""
    monkeypatch.setattr(cluster_margin, "SMALL", 10)
    x = rows(4, groups=4).repeat(20, 1)
    assert canonical(clusters(x, 4)) == [0, 1, 2, 3] * 20
    assert len(set(clusters(x, 2).tolist())) == 2


CONFIG = RunConfig(
    strategy="cluster-margin", initial=12, budget=5, rounds=3, pool=80, test=20, training=TrainingConfig(epochs=1)
)


def test_a_run_keeps_its_clusters_in_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dm2_fast.run(replace(CONFIG, output=tmp_path / "whole"))
    state = newest_state(whole.folder / "checkpoints")
    assert len(state.remembered["ids"]) == 68
    assert [bool("clusters" in result.seconds) for result in state.results] == [True, False, False, False]
    dm2_fast.run(replace(CONFIG, rounds=1, output=tmp_path / "less"))
    monkeypatch.setattr(cluster_margin, "clusters", None)
    count = 0

    def stop(line: str) -> None:
        nonlocal count
        count += line.startswith("    1")
        if count:
            raise KeyboardInterrupt

    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(replace(CONFIG, output=tmp_path / "stopped"), echo=stop)
    monkeypatch.setattr(cluster_margin, "clusters", None)  # not called again
    dm2_fast.run(replace(CONFIG, output=tmp_path / "stopped"))
    for name in ("selected.csv", "model.pt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_with_other_candidates_each_round_a_run_goes_on(tmp_path: Path) -> None:
    result = dm2_fast.run(replace(CONFIG, candidates=20, output=tmp_path / "run"))
    assert len(torch.cat(result.chosen).unique()) == 27


def test_wrong_options_are_named_at_the_door() -> None:
    for options, message in (
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"size": 0}, "size must be at lea"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterMarginConfig(**options)
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(nn.Linear(7, 4), rows(9), 3, "cluster-margin", multilabel="mean")
