"""BatchBALD against its definition: every configuration of labels, one at a time, in plain Python."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dm2_fast import Round, draws, select, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies import batchbald
from dm2_fast.strategies.bald import BALDConfig
from dm2_fast.strategies.batchbald import BatchBALDConfig, greedy


def networks(m: int = 9, t: int = 4, c: int = 3, seed: int = 0) -> Tensor:
    """Softmax (m, t, c) of networks that disagree; the last row repeats the first."""
    p = (3 * torch.randn(m, t, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(2)
    p[-1] = p[0]
    return p


def joint_information(p: np.ndarray, rows: list[int]) -> float:
    """H(y_1..y_b) - mean over t of H(y_1..y_b | t)."""
    _, t, c = p.shape
    joint, conditional = 0.0, 0.0
    for labels in itertools.product(range(c), repeat=len(rows)):
        per_network = [math.prod(p[row, n, y] for row, y in zip(rows, labels, strict=True)) for n in range(t)]
        q = sum(per_network) / t
        joint -= q * math.log(q) if q > 0 else 0
        conditional -= sum(r * math.log(r) for r in per_network if r > 0) / t
    return joint - conditional


def naive(p: np.ndarray, budget: int) -> list[int]:
    picks: list[int] = []
    for _ in range(budget):
        found = [-math.inf if x in picks else joint_information(p, [*picks, x]) for x in range(len(p))]
        best = max(found)
        picks.append(next(x for x, value in enumerate(found) if value > best - 1e-12))
    return picks


@pytest.mark.parametrize("seed", range(5))
def test_picks_are_those_with_the_largest_joint_information(seed: int) -> None:
    p = networks(seed=seed)
    assert greedy(p, 5, 3**5, 0, 0).tolist() == naive(p.numpy(), 5)


def test_a_batch_avoids_what_it_knows_already() -> None:
    """bald takes both copies of the row that tells most."""
    sure, less = torch.tensor([0.9, 0.1]).double(), torch.tensor([0.8, 0.2]).double()
    first = torch.stack([sure, sure, 1 - sure, 1 - sure])  # tells networks 0 and 1 from 2 and 3
    p = torch.stack([first, first, torch.stack([less, 1 - less, less, 1 - less])])
    bald = torch.special.entr(p.mean(1)).sum(1) - torch.special.entr(p).sum(2).mean(1)
    assert bald[1] > bald[2]
    assert greedy(p, 2, 100, 0, 0).tolist() == [0, 2] == naive(p.numpy(), 2)


def test_the_state_of_a_batch_is_its_joint_distribution() -> None:
    p = networks()
    batch = batchbald.Labels(p, 27, 0, 0)
    for row in (4, 2, 7):
        batch.add(row)
    given = (batch.networks @ p[1]) * batch.weights[:, None]
    for i, (a, b, c) in enumerate(itertools.product(range(3), repeat=3)):
        per_network = p[4, :, a] * p[2, :, b] * p[7, :, c]
        assert batch.weights[i].item() == pytest.approx(per_network.mean().item(), abs=1e-15)
        torch.testing.assert_close(batch.networks[i], per_network / per_network.sum(), atol=1e-12, rtol=0)
        torch.testing.assert_close(given[i], (per_network[:, None] * p[1]).mean(0), atol=1e-15, rtol=1e-12)


def naive_drawn(p: np.ndarray, rows: list[int], per_network: int, seed: int, round: int) -> np.ndarray:
    """P(t | labels) for labels drawn from each network, one configuration at a time, by products of probabilities."""
    _, t, c = p.shape
    uniforms = [draws.generator(seed, round, "configurations", i).random(t * per_network) for i in range(len(rows))]
    posterior = []
    for k in range(t * per_network):
        n, likelihood = k // per_network, [1.0] * t
        for i, row in enumerate(rows):
            total, label = 0.0, c - 1
            for y in range(c):
                total += p[row, n, y]
                if uniforms[i][k] < total:
                    label = y
                    break
            likelihood = [value * p[row, other, label] for other, value in enumerate(likelihood)]
        posterior.append([value / sum(likelihood) for value in likelihood])
    return np.array(posterior)


def test_beyond_the_table_labels_are_drawn_from_each_network_and_kept() -> None:
    p = networks()
    batch = batchbald.Labels(p, 20, 5, 2)
    rows = [4, 2, 7, 1]
    for i, row in enumerate(rows):
        batch.add(row)
        if i < 2:
            assert len(batch.weights) == 3 ** (i + 1)  # 27 would be more than 20
            continue
        assert torch.equal(batch.weights, torch.full((20,), 1 / 20, dtype=torch.float64))
        np.testing.assert_allclose(batch.networks, naive_drawn(p.numpy(), rows[: i + 1], 5, 5, 2), atol=1e-12)
    entropies = torch.special.entr(batch.networks @ p.transpose(0, 1).reshape(4, -1)).reshape(20, 9, 3).sum(2).mean(0)
    torch.testing.assert_close(batch.entropies(), entropies, atol=1e-12, rtol=0)


def test_the_draws_estimate_the_exact_information() -> None:
    p = networks(m=6)
    exact = batchbald.Labels(p, 3**4, 1, 0)
    for row in (0, 1, 2, 3):
        exact.add(row)
    drawn = batchbald.Labels(p, 60_000, 1, 0)
    drawn.weights = p.new_ones(60_001)  # the table would be too large
    for row in (0, 1, 2, 3):
        drawn.add(row)
    assert len(drawn.weights) == 60_000
    # standard deviation of a mean of 60,000 entropies that lie in [0, log(3)]: below log(3) / 2 / sqrt(60,000)
    np.testing.assert_allclose(drawn.entropies(), exact.entropies(), atol=5 * math.log(3) / 2 / math.sqrt(60_000))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    p = networks(m=40)
    whole = greedy(p, 8, 100, 0, 0)
    monkeypatch.setattr(batchbald, "_BLOCK", 1)
    assert torch.equal(greedy(p, 8, 100, 0, 0), whole)


def test_long_batches_do_not_underflow_and_take_every_row_once() -> None:
    p = networks(m=400, c=10, seed=3)
    picks = greedy(p, 400, 40, 0, 0)
    assert sorted(picks.tolist()) == list(range(400))
    batch = batchbald.Labels(p, 40, 0, 0)
    for row in range(399):
        batch.add(row)
    assert torch.isfinite(batch.networks).all()
    assert torch.isfinite(batch.entropies()).all()


def test_networks_that_agree_leave_the_lower_rows_and_certain_rows_come_last() -> None:
    same = networks(m=6)[:, :1].expand(6, 4, 3).contiguous()
    assert greedy(same, 6, 9, 0, 0).tolist() == list(range(6))
    certain = torch.zeros(5, 4, 3, dtype=torch.float64)
    certain[:, :, 0] = 1
    certain[3, 1:] = torch.tensor([0.0, 1, 0]).double()
    assert greedy(certain, 5, 9, 0, 0).tolist() == [3, 0, 1, 2, 4]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def test_a_choice_begins_with_that_of_bald_from_the_passes_of_the_round(model: nn.Module) -> None:
    pool = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    asked = Round(ForwardPass(model, pool, batch_size=8), 7, 3)
    picked = select_from(asked, 6, "batchbald", BatchBALDConfig(passes=6, configurations=60))
    bald = select_from(asked, 6, "bald", BALDConfig(passes=6))
    assert picked.scores is None
    assert picked.indices[0] == bald.indices[0]
    assert picked.indices.tolist() == greedy(asked.sampled(6), 6, 60, 7, 3).tolist()
    assert list(picked.seconds) == ["features", "sampled", "choose"]


def test_a_large_budget_says_what_it_costs(model: nn.Module) -> None:
    pool = torch.randn(110, 5, generator=torch.Generator().manual_seed(1))
    options = BatchBALDConfig(passes=4, configurations=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(model, pool, 100, "batchbald", options)
    with pytest.warns(UserWarning, match=r"budget of 101 takes about 1e\+06 multiplications, .* log\(4\) = 1.39 nats"):
        assert len(select(model, pool, 101, "batchbald", options).indices) == 101


def test_what_is_wrong_is_named(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="passes must be at least 2, got 1"):
        BatchBALDConfig(passes=1)
    with pytest.raises(ValueError, match="configurations must be at least 30, got 29"):
        BatchBALDConfig(configurations=29)
    pool = torch.randn(9, 5)
    with pytest.raises(TypeError, match="batchbald needs a torch module, and the model is a function"):
        select(lambda x: x[:, :3], pool, 3, "batchbald")
    with pytest.raises(ValueError, match="model must have a dropout layer"):
        select(nn.Linear(5, 3), pool, 3, "batchbald")
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(model, pool, 3, "batchbald", multilabel="mean")
