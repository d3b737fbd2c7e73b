"""CoreSet, BADGE, ProbCover, UncertainGCN and CoreGCN against their definitions: dense, float64, written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import Round, draws, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.nearest import lower_to_nearest, nearest_squared
from dm2_fast.strategies import badge, graph_network, prob_cover
from dm2_fast.strategies.core_gcn import CoreGCNConfig
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategies.prob_cover import ProbCoverConfig
from dm2_fast.strategies.uncertain_gcn import UncertainGCNConfig

NAMES = ("coreset", "uncertain-gcn", "core-gcn", "badge", "prob-cover")


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_network, "STEPS", 5)


def rows(m: int, d: int, seed: int = 0, clusters: int = 4) -> Tensor:
    """Non-negative rows around a few centres, like features behind a ReLU; the last three repeat the first three."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(clusters, d, generator=generator) * 2
    x = centres[torch.arange(m) % clusters] + 0.3 * torch.randn(m, d, generator=generator)
    x = x.relu()
    x[-3:] = x[:3]
    return x


def make_round(m: int = 60, n: int = 9, d: int = 21, classes: int = 4, **changes) -> Round:
    """A round whose features are its inputs: the model is its own head."""
    torch.manual_seed(3)
    x = rows(m + n, d)
    head = nn.Linear(d, classes)
    with torch.no_grad():
        head.weight *= 3
    pool, labelled = torch.cat([x[n : m + n - 3], x[n : n + 3]]), x[:n]
    forward = ForwardPass(
        head, pool, batch_size=changes.pop("batch_size", 16), num_threads=changes.pop("threads", None)
    )
    return replace(Round(forward, 5, 2, None, labelled, torch.arange(n) % classes), **changes)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    return (x.double()[:, None] - y.double()).square().sum(-1)


def naive_k_center(x: Tensor, centres: Tensor, budget: int) -> list[int]:
    picks: list[int] = []
    for _ in range(budget):
        taken = torch.cat([centres, x[picks]])
        far = squared_distances(x, taken).amin(1) if len(taken) else torch.full((len(x),), torch.inf)
        far[picks] = -1
        picks.append(int(np.flatnonzero(far.numpy() == far.max().item())[0]))
    return picks


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 16, 37, 130])
def test_k_center_takes_the_farthest_row_and_never_one_twice(d: int, dtype: torch.dtype, threads: int) -> None:
    x, centres = rows(300, d).to(dtype), rows(7, d, 1).to(dtype)
    distances = nearest_squared(x, centres, num_threads=threads)
    before = distances.clone()
    torch.testing.assert_close(distances.double(), squared_distances(x, centres).amin(1), rtol=1e-5, atol=0)
    budget = 300 if d == 37 else 40
    picks = k_center_greedy(x, budget, distances, num_threads=threads)
    assert len(set(picks.tolist())) == budget
    assert torch.equal(distances, before)
    true = squared_distances(x, x[picks])
    nearest = squared_distances(x, centres).amin(1)
    for step, row in enumerate(picks.tolist()):
        assert nearest[row] >= nearest.max() * (1 - 1e-5)
        nearest = nearest.minimum(true[:, step])


def test_k_center_breaks_exact_ties_to_the_lower_row() -> None:
    x = torch.tensor([[0.0], [2.0], [-2.0], [2.0], [1.0], [0.0]])
    distances = nearest_squared(x, torch.zeros(1, 1))
    assert k_center_greedy(x, 6, distances).tolist() == naive_k_center(x, torch.zeros(1, 1), 6) == [1, 2, 4, 0, 3, 5]


@pytest.mark.parametrize("more", [1, 7, 1000])
@pytest.mark.parametrize("labelled", [0, 3])
def test_k_center_looks_only_at_rows_that_may_be_the_farthest(
    more: int, labelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small whole numbers, so that distances are exact and most of them are shared by several rows."""
    x = torch.randint(-3, 4, (200, 3), generator=torch.Generator().manual_seed(more)).float()
    centres = x[:labelled]
    monkeypatch.setattr("dm2_fast.strategies.k_center._MORE_ROWS", more)
    looked_at = []
    monkeypatch.setattr(
        "dm2_fast.strategies.k_center.lower_to_nearest",
        lambda rows, *others, **compute: looked_at.append(len(rows)) or lower_to_nearest(rows, *others, **compute),
    )
    picks = k_center_greedy(x, 60, nearest_squared(x, centres))
    assert picks.tolist() == naive_k_center(x, centres, 60)
    assert (max(looked_at[2:12]) < len(x)) == (more < 1000)
    barred = nearest_squared(x, x[:3])
    barred[50:] = -1
    assert sorted(k_center_greedy(x, 50, barred).tolist()) == list(range(50))


def test_k_center_keeps_the_digits_of_near_rows() -> None:
    """The distances come from differences: a matrix product would see 1e4 and lose 1e-6."""
    x = 100 + torch.tensor([[0.0, 0.0], [1e-4, 0.0], [0.0, 3e-4], [2e-4, 0.0]])
    exact = squared_distances(x, x[:1])[:, 0]
    torch.testing.assert_close(nearest_squared(x, x[:1]).double(), exact, rtol=1e-6, atol=0)


def test_k_center_on_any_device_is_the_same_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from dm2_fast.operations import backends, reference

    x, centres = rows(80, 19), rows(7, 19, 1)
    first = k_center_greedy(x, 20, nearest_squared(x, centres))
    monkeypatch.setattr(backends, "resolve", lambda *_: reference)
    assert k_center_greedy(x, 20, nearest_squared(x, centres)).tolist() == first.tolist()


def test_k_center_names_wrong_arguments() -> None:
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="distances must be .*4.*float32.*, got .*3"):
        k_center_greedy(x, 1, torch.zeros(3))
    with pytest.raises(ValueError, match=r"budget must be in \[0, 3\] for 3 rows that may be chosen, got 4"):
        k_center_greedy(x, 4, torch.tensor([0.0, 0.0, -1.0, 0.0]))


def test_coreset_is_k_center_from_the_labelled_set_without_normalising() -> None:
    state = make_round()
    picked = select_from(state, 12, "coreset")
    assert picked.indices.tolist() == naive_k_center(state.features, state.labelled_features, 12)
    assert picked.scores is None
    normalised = naive_k_center(F.normalize(state.features), F.normalize(state.labelled_features), 12)
    assert picked.indices.tolist() != normalised


def gradients(state: Round) -> Tensor:
    """(m, C * d): the outer product of softmax - one-hot and the features, in float64."""
    p = state.logits.double().softmax(1)
    q = p - F.one_hot(p.argmax(1), p.shape[1])
    return (q[:, :, None] * state.features.double()[:, None]).flatten(1)


def test_badge_knows_every_distance_of_gradients() -> None:
    state = make_round()
    g = gradients(state)
    factors = badge.Gradients(state.features, state.logits)
    torch.testing.assert_close(factors.squared_norms, g.square().sum(1), rtol=1e-6, atol=0)
    for row in range(len(g)):
        found = factors.nearer(torch.full((len(g),), torch.inf, dtype=torch.float64), row)
        torch.testing.assert_close(found, squared_distances(g, g[row : row + 1])[:, 0], rtol=2e-6, atol=0)


def test_badge_distances_do_not_cancel_between_near_gradients() -> None:
    x = rows(20, 33).double()
    x[1:] = x[0] + 1e-5 * torch.randn(19, 33, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([2.0, 1.0, 0.0]).expand(20, 3).double() + 1e-5 * x[:, :3]
    state = Round(ForwardPass(nn.Identity(), x))
    state._kept["features", None] = (x, logits)
    g = gradients(state)
    found = badge.Gradients(x, logits).nearer(torch.full((20,), torch.inf, dtype=torch.float64), 0)
    torch.testing.assert_close(found, squared_distances(g, g[:1])[:, 0], rtol=1e-6, atol=0)
    assert found[1:].min() > 0


@pytest.mark.parametrize("budget", [1, 25, 60])
def test_badge_is_k_means_plus_plus_with_a_keyed_number_per_step(budget: int) -> None:
    state = make_round()
    g = gradients(state)
    u = draws.uniform(5, 2, np.arange(budget), "seeding")
    picks = [int(g.square().sum(1).argmax())]
    for step in range(1, budget):
        weights = squared_distances(g, g[picks]).amin(1).numpy()
        weights[picks] = 0
        if weights.max() == 0:
            weights = np.ones(len(g))
            weights[picks] = 0
        picks.append(int(np.flatnonzero(np.cumsum(weights) > u[step] * weights.sum())[0]))
    picked = select_from(state, budget, "badge")
    assert picked.indices.tolist() == picks
    assert len(set(picks)) == budget


def test_badge_draws_with_probability_proportional_to_the_squared_distance() -> None:
    weights, free = torch.tensor([0.0, 1.0, 3.0, 0.0], dtype=torch.float64), torch.tensor([True, True, True, False])
    assert [badge.draw(weights, free, u) for u in (1e-9, 0.24, 0.26, 1.0)] == [1, 1, 2, 2]
    assert [badge.draw(0 * weights, free, u) for u in (1e-9, 0.3, 0.4, 0.99, 1.0)] == [0, 0, 1, 2, 2]


def test_badge_without_any_gradient_draws_uniformly_from_what_is_left() -> None:
    state = make_round()
    state.__dict__ |= {"features": state.features, "logits": torch.tensor([[1e4, 0.0, 0.0, 0.0]]).expand(60, 4)}
    picks = select_from(state, 60, "badge").indices.tolist()
    assert sorted(picks) == list(range(60))
    assert picks[:5] != [0, 1, 2, 3, 4]


def naive_cover(x: Tensor, labelled: Tensor, radius: float, budget: int) -> tuple[list[int], int]:
    """(picks, how many were chosen by what they cover)."""
    x, labelled = F.normalize(x.float()), F.normalize(labelled.float())
    near = (squared_distances(x, x) < radius**2).numpy()
    near[np.arange(len(x)), np.arange(len(x))] = True
    covered = (squared_distances(x, labelled) < radius**2).any(1).numpy()
    picks: list[int] = []
    while len(picks) < budget and not covered.all():
        picks.append(int((near & ~covered).sum(1).argmax()))
        covered |= near[picks[-1]]
    by_cover = len(picks)
    while len(picks) < budget:
        far = squared_distances(x, torch.cat([labelled, x[picks]])).amin(1)
        far[picks] = -1
        picks.append(int(far.argmax()))
    return picks, by_cover


@pytest.mark.parametrize("radius", [0.05, 0.15, 0.25, 0.4, 3.0])
def test_prob_cover_takes_the_ball_with_the_most_uncovered_rows(radius: float) -> None:
    state = make_round()
    expected, by_cover = naive_cover(state.features, state.labelled_features, radius, 30)
    assert select_from(state, 30, "prob-cover", ProbCoverConfig(radius)).indices.tolist() == expected
    assert by_cover > 3 or radius > 0.2


def test_prob_cover_s_graph_is_exact_at_the_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows exactly at the radius, one float32 step inside and one outside, in blocks that cut the rows unevenly."""
    monkeypatch.setattr(prob_cover, "_BLOCK", 7 * 40)
    x = F.normalize(rows(40, 23)).float()
    radius = float(squared_distances(x[:1], x[11:12]).sqrt())
    for r in (radius, np.nextafter(radius, 2), np.nextafter(radius, 0), 0.2):
        near = squared_distances(x, x).sqrt() < r
        graph = prob_cover.Graph(x, r)
        for row in range(40):
            expected = set(np.flatnonzero(near[row].numpy()).tolist()) | {row}
            found = graph.neighbours(np.array([row])).tolist()
            assert len(found) == len(set(found))
            assert set(found) == expected


def test_prob_cover_s_radius_is_the_largest_of_the_asked_purity() -> None:
    from sklearn.cluster import KMeans

    x = F.normalize(rows(90, 12, clusters=6))
    radius = prob_cover.pure_radius(x, 5, 0.9, 17)
    labels = torch.from_numpy(KMeans(5, n_init=1, random_state=17).fit_predict(x.numpy()))
    distances, other = squared_distances(x, x).sqrt(), labels[:, None] != labels

    def purity(r: float) -> float:
        return float((~((distances < r) & other).any(1)).double().mean())

    assert purity(radius) >= 0.9 > purity(radius * (1 + 3e-6))
    state = make_round()
    chosen = select_from(state, 10, "prob-cover")
    both = torch.cat([F.normalize(state.features), F.normalize(state.labelled_features)])
    key = int(draws.uniform(5, 2, np.zeros(1, np.int64), "clusters")[0] * 2**32)
    fixed = ProbCoverConfig(prob_cover.pure_radius(both, 4, 0.95, key))
    assert chosen.indices.tolist() == select_from(state, 10, "prob-cover", fixed).indices.tolist()


def test_prob_cover_measures_its_radius_on_pool_and_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    state, used = make_round(), []

    class Spy(prob_cover.Graph):
        def __init__(self, x: Tensor, radius: float) -> None:
            used.append(radius)
            super().__init__(x, radius)

    monkeypatch.setattr(prob_cover, "Graph", Spy)
    select_from(state, 10, "prob-cover", ProbCoverConfig(purity=0.6))
    key = int(draws.uniform(5, 2, np.zeros(1, np.int64), "clusters")[0] * 2**32)
    pool, labelled = F.normalize(state.features), F.normalize(state.labelled_features)
    assert used == [prob_cover.pure_radius(torch.cat([pool, labelled]), 4, 0.6, key)]
    assert used != [prob_cover.pure_radius(pool, 4, 0.6, key)]


def test_prob_cover_refuses_a_graph_beyond_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prob_cover, "MOST_EDGES", 100)
    with pytest.raises(ValueError, match=r"radius 3 links about 3.5e\+03 pairs of the 60 rows, more than the 100"):
        select_from(make_round(), 3, "prob-cover", ProbCoverConfig(3.0))


def dense_adjacency(x: Tensor) -> Tensor:
    """A = S D^-1 + I with S = X X^T - diag and D its column sums; a column without a positive sum is left out."""
    s = x @ x.T
    s = s - torch.diag(torch.diagonal(s))
    degree = s.sum(0)
    return s @ torch.diag(torch.where(degree > 1e-6, 1 / degree, 0)) + torch.eye(len(x), dtype=x.dtype)


def naive_network(pool: Tensor, labelled: Tensor, lam: float, seed: int, round: int, steps: int, block: int):
    """The network by autograd on the dense graph, in float64, with the same weights and dropout."""
    x = F.normalize(torch.cat([pool, labelled]).float()).double()
    a, m = dense_adjacency(x), len(x)

    def generator(number: int) -> torch.Generator:
        key = draws.uniform(seed, round, np.array([number]), "graph")[0]
        return torch.Generator().manual_seed(int(key * 2**53))

    start = generator(0)
    shapes = [((x.shape[1], 128), 128), ((128,), 128), ((128, 1), 1), ((1,), 1)]
    weights = [((2 * torch.rand(s, generator=start) - 1) / n**0.5).double().requires_grad_() for s, n in shapes]
    w1, b1, w2, b2 = weights
    optimizer = torch.optim.Adam(weights, lr=1e-3, weight_decay=5e-4)
    blocks = range(0, m, block)
    for step in range(steps):
        kept = torch.cat([
            torch.empty(min(block, m - i), 128).bernoulli_(0.7, generator=generator(1 + step * len(blocks) + b))
            for b, i in enumerate(blocks)
        ])  # fmt: skip
        s = torch.sigmoid(a @ ((a @ x @ w1 + b1).relu() * kept / 0.7) @ w2 + b2)[:, 0]
        loss = -s[len(pool) :].log().mean() - lam * (1 - s[: len(pool)]).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    hidden = (a @ x @ w1 + b1).relu()
    return torch.sigmoid(a @ hidden @ w2 + b2)[:, 0].detach(), hidden.detach()


@pytest.mark.parametrize("signed", [False, True])
def test_the_graph_is_the_dense_one(signed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_network, "_BLOCK", 16)
    x = rows(40, 13)
    x[5] = 0
    if signed:
        x[30:] *= -1  # these are more unlike the rest than like each other
    a = dense_adjacency(F.normalize(x).double())
    assert _lonely(x) == (10 if signed else 0)
    assert ((a - torch.eye(40)).abs().sum(0) == 0).sum() == 1 + _lonely(x)
    f = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    network = graph_network.GraphNetwork(F.normalize(x), 2, 0, 0)
    found, transposed = network.smooth(f), network.smooth_transposed(f)
    scale = a.abs() @ f.double().abs() + a.T.abs() @ f.double().abs()
    assert ((found - a @ f.double()).abs() <= 1e-5 * scale).all()
    assert ((transposed - a.T @ f.double()).abs() <= 1e-5 * scale).all()


def _lonely(x: Tensor) -> int:
    """How many rows but the zero one have a column sum of at most 1e-6."""
    s = F.normalize(x).double() @ F.normalize(x).double().T
    return int(((s.sum(0) - s.diagonal()) <= 1e-6).sum()) - 1


def test_the_network_is_that_of_autograd_on_the_dense_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_network, "_BLOCK", 16)
    monkeypatch.setattr(graph_network, "STEPS", 30)
    state = make_round()
    pool, labelled = state.features, state.labelled_features
    s, hidden = graph_network.label_scores(pool, labelled, 1.7, 5, 2)
    expected, expected_hidden = naive_network(pool, labelled, 1.7, 5, 2, 30, 16)
    torch.testing.assert_close(s.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.double(), expected_hidden, atol=1e-5, rtol=0)
    assert s.std() > 1e-3


def test_uncertain_gcn_takes_the_scores_nearest_to_the_margin() -> None:
    state = make_round()
    s, hidden = naive_network(state.features, state.labelled_features, 1.2, 5, 2, 5, 2048)
    for margin in (0.1, 0.5):
        picked = select_from(state, 8, "uncertain-gcn", UncertainGCNConfig(margin=margin))
        torch.testing.assert_close(picked.scores.double(), -(s[:60] - margin).abs(), atol=1e-5, rtol=0)
        assert picked.indices.tolist() == picked.scores.sort(descending=True, stable=True).indices[:8].tolist()
    picked = select_from(state, 8, "core-gcn")
    assert picked.indices.tolist() == naive_k_center(hidden[:60], hidden[60:], 8)
    other = select_from(state, 8, "core-gcn", CoreGCNConfig(lam=40.0))
    _, hidden = naive_network(state.features, state.labelled_features, 40.0, 5, 2, 5, 2048)
    assert other.indices.tolist() == naive_k_center(hidden[:60], hidden[60:], 8)


@pytest.mark.parametrize("name", NAMES)
def test_neither_batches_nor_threads_change_a_pick_and_a_seed_does_where_it_is_used(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_network, "_BLOCK", 16)
    first = select_from(make_round(threads=1), 20, name)
    for threads in (2, 5):
        again = select_from(make_round(threads=threads), 20, name)
        assert torch.equal(again.indices, first.indices)
        assert first.scores is None or torch.equal(again.scores, first.scores)
    assert torch.equal(select_from(make_round(batch_size=7), 20, name).indices, first.indices)
    changed = [select_from(make_round(**key), 20, name).indices for key in ({"seed": 6}, {"round": 3})]
    if name in ("badge", "uncertain-gcn", "core-gcn"):
        assert not any(torch.equal(indices, first.indices) for indices in changed)
    if name == "coreset":
        assert all(torch.equal(indices, first.indices) for indices in changed)


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_pool_can_be_chosen_and_too_much_is_an_error(name: str) -> None:
    before = torch.get_num_threads()
    assert sorted(select_from(make_round(), 60, name).indices.tolist()) == list(range(60))
    for budget in (0, 61):
        with pytest.raises(ValueError, match=rf"budget must be in \[1, 60\] for a pool of 60 rows, got {budget}"):
            select_from(make_round(), budget, name)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"badge"}))
def test_a_labelled_set_is_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="compares with labelled samples: pass labelled="):
        select_from(make_round(labelled=None), 5, name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProbCoverConfig(0.0), "radius must be positive and finite or 'purity', got 0.0"),
        (lambda: ProbCoverConfig("pure"), "radius must be positive and finite or 'purity', got 'pure'"),
        (lambda: ProbCoverConfig(purity=1.5), r"purity must be in \(0, 1\], got 1.5"),
        (lambda: UncertainGCNConfig(lam=0.0), "lam must be positive and finite, got 0.0"),
        (lambda: UncertainGCNConfig(margin=-1.0), r"margin must be in \[0, 1\], got -1.0"),
        (lambda: CoreGCNConfig(lam=float("inf")), "lam must be positive and finite, got inf"),
        (lambda: CoreGCNConfig(lam="text"), "lam must be positive and finite, got 'text'"),
        (lambda: UncertainGCNConfig(margin=float("nan")), r"margin must be in \[0, 1\], got nan"),
    ],
)
def test_wrong_options_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
