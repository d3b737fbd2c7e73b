from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import Round, draws, select_from
from dm2_fast.model.dropout import sampled_dropout
from dm2_fast.model.passes import ForwardPass
from dm2_fast.model.repeated import softmax_moments
from dm2_fast.strategies.bald import BALDConfig
from dm2_fast.strategies.entropy_bayesian import EntropyBayesianConfig

PASSES = 5


class Net(nn.Module):
    """Dropout of channels, a dropout layer that is called twice, BatchNorm, and one layer with p = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.off = nn.Dropout(0.0)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.channels = nn.Dropout2d(0.3)
        self.hidden = nn.Linear(216, 12)
        self.units = nn.Dropout(0.4)
        self.last = nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.channels(self.norm(self.conv(self.off(x))).relu())
        x = self.units(self.hidden(x.flatten(1)).relu())
        return self.head(self.units(self.last(x).relu()))


class OnlyBeforeHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(108, 12), nn.ReLU(), nn.Dropout(0.4))
        self.head = nn.Linear(12, 4)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.body(x))


def trained(net: Any) -> Any:
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 6, 6))  # BatchNorm statistics that are not the initial ones
        net.head.weight *= 4  # scores that differ
    net.calls = 0
    return net


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return trained(Net())


@pytest.fixture
def shallow() -> OnlyBeforeHead:
    torch.manual_seed(0)
    return trained(OnlyBeforeHead())


@pytest.fixture
def pool() -> Tensor:
    return torch.rand(21, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def mask(number: int, position: int, call: int, shape: tuple[int, ...], p: float) -> Tensor:
    draw = draws.generator(7, 3, "dropout", number, position, call).random(shape)
    return torch.from_numpy((draw >= p) / (1 - p))


def naive_logits(net: nn.Module, x: Tensor, number: int) -> Tensor:
    """One pass by hand, float64."""
    weights = {name: value.double() for name, value in net.state_dict().items()}
    x = x.double()
    if isinstance(net, OnlyBeforeHead):
        x = F.linear(x.flatten(1), weights["body.1.weight"], weights["body.1.bias"]).relu()
        return F.linear(x * mask(number, 0, 0, (12,), 0.4), weights["head.weight"], weights["head.bias"])
    x = F.conv2d(x, weights["conv.weight"], weights["conv.bias"], padding=1)
    mean, var = (weights[f"norm.running_{name}"][:, None, None] for name in ("mean", "var"))
    x = (x - mean) / (var + 1e-5).sqrt() * weights["norm.weight"][:, None, None] + weights["norm.bias"][:, None, None]
    x = x.relu() * mask(number, 0, 0, (6, 1, 1), 0.3)
    x = F.linear(x.flatten(1), weights["hidden.weight"], weights["hidden.bias"]).relu() * mask(number, 1, 0, (12,), 0.4)
    x = F.linear(x, weights["last.weight"], weights["last.bias"]).relu() * mask(number, 1, 1, (12,), 0.4)
    return F.linear(x, weights["head.weight"], weights["head.bias"])


def naive_moments(net: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    p = torch.stack([naive_logits(net, x, number).softmax(1) for number in range(PASSES)])
    return p.mean(0), -(p * p.log()).sum(2).mean(0)


def round_of(net: nn.Module, pool: Tensor, **options) -> Round:
    return Round(ForwardPass(net, pool, **{"batch_size": 8} | options), seed=7, round=3)


@pytest.mark.parametrize("name", ["model", "shallow"])
def test_dropout_passes_are_those_of_the_definition(name: str, pool: Tensor, request: pytest.FixtureRequest) -> None:
    net = request.getfixturevalue(name)
    state = round_of(net, pool)
    mean, entropy = state.dropout(PASSES)
    expected_mean, expected_entropy = naive_moments(net, pool)
    assert mean.dtype == entropy.dtype == torch.float64
    torch.testing.assert_close(mean, expected_mean, atol=2e-6, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy, atol=2e-6, rtol=0)
    assert "dropout" in state.seconds


def test_the_three_scores_are_those_of_the_definition(model: Net, pool: Tensor) -> None:
    mean, expected = naive_moments(model, pool)
    predictive = -(mean * mean.log()).sum(1)
    cases = [
        ("bald", BALDConfig(PASSES), predictive - expected),
        ("entropy-bayesian", EntropyBayesianConfig(PASSES), predictive),
        ("entropy-bayesian", EntropyBayesianConfig(PASSES, "expected"), expected),
    ]
    picks = []
    for name, options, scores in cases:
        picked = select_from(round_of(model, pool), 6, name, options)
        torch.testing.assert_close(picked.scores, scores, atol=4e-6, rtol=0)
        assert picked.indices.tolist() == scores.sort(descending=True, stable=True).indices[:6].tolist()
        picks.append(picked.indices.tolist())
        every = select_from(round_of(model, pool), 21, name, options)
        assert sorted(every.indices.tolist()) == list(range(21))
    assert len({tuple(rows) for rows in picks}) == 3


def test_strategies_share_the_passes_of_a_round(model: Net, pool: Tensor) -> None:
    state = round_of(model, pool)
    select_from(state, 3, "bald", BALDConfig(PASSES))
    calls = model.calls
    assert calls == 3 * PASSES + 1  # three batches, and one to see where dropout acts
    select_from(state, 3, "entropy-bayesian", EntropyBayesianConfig(PASSES))
    assert model.calls == calls
    select_from(state, 3, "bald", BALDConfig(PASSES + 1))
    assert model.calls > calls


def test_where_dropout_only_stands_before_the_head_the_rest_runs_once(shallow: OnlyBeforeHead, pool: Tensor) -> None:
    state = round_of(shallow, pool)
    _ = state.features, state.head
    shallow.calls = 0
    mean, entropy = state.dropout(PASSES)
    assert shallow.calls == 1
    whole = ForwardPass(shallow, pool, batch_size=8)
    with sampled_dropout(shallow, 7, 3) as use:
        expected_mean, expected_entropy = softmax_moments(whole, PASSES, use)
    assert torch.equal(mean, expected_mean)
    assert torch.equal(entropy, expected_entropy)


class Scaled(OnlyBeforeHead):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mul_(0.5)


class ChangedAfterDropout(OnlyBeforeHead):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).sub_(1))


class TwoHeads(OnlyBeforeHead):
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) + self.head(x.flip(1))


@pytest.mark.parametrize("kind", [Scaled, ChangedAfterDropout, TwoHeads])
def test_what_comes_between_dropout_and_logits_is_not_skipped(kind: type, pool: Tensor) -> None:
    torch.manual_seed(0)
    net = trained(kind())
    mean, entropy = round_of(net, pool, head="head").dropout(PASSES)
    with sampled_dropout(net, 7, 3) as use:
        expected_mean, expected_entropy = softmax_moments(ForwardPass(net, pool, batch_size=8), PASSES, use)
    assert torch.equal(mean, expected_mean)
    assert torch.equal(entropy, expected_entropy)


def test_a_head_that_the_caller_names_elsewhere_is_no_reason_for_other_passes(
    shallow: OnlyBeforeHead, pool: Tensor
) -> None:
    mean, _ = round_of(shallow, pool, head="body.1").dropout(PASSES)
    torch.testing.assert_close(mean, naive_moments(shallow, pool)[0], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["model", "shallow"])
def test_batches_and_neighbours_in_the_pool_change_nothing(
    name: str, pool: Tensor, request: pytest.FixtureRequest
) -> None:
    net = request.getfixturevalue(name)
    mean, entropy = round_of(net, pool).dropout(PASSES)
    other_mean, other_entropy = round_of(net, pool, batch_size=5).dropout(PASSES)
    torch.testing.assert_close(other_mean, mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(other_entropy, entropy, atol=1e-6, rtol=0)
    part = round_of(net, pool[3:9]).dropout(PASSES)
    torch.testing.assert_close(part[0], mean[3:9], atol=1e-6, rtol=0)


def test_another_seed_or_round_draws_other_networks(model: Net, pool: Tensor) -> None:
    first = round_of(model, pool).dropout(PASSES)[0]
    for seed, number in ((8, 3), (7, 4)):
        other = Round(ForwardPass(model, pool, batch_size=8), seed, number).dropout(PASSES)[0]
        assert (other - first).abs().max() > 1e-3


def test_equal_rows_score_equally_and_the_lower_one_comes_first(model: Net, pool: Tensor) -> None:
    twice = torch.cat([pool[:8], pool[:8]])
    for name in ("bald", "entropy-bayesian"):
        picked = select_from(round_of(model, twice), 16, name)
        assert torch.equal(picked.scores[:8], picked.scores[8:])
        assert (picked.indices[1::2] == picked.indices[::2] + 8).all()


LAYERS = [
    (nn.Dropout(0.3), (5, 4), (5, 4)),
    (nn.Dropout1d(0.3), (50, 4), (50, 1)),
    (nn.Dropout2d(0.3), (50, 2, 4), (50, 1, 1)),
    (nn.Dropout3d(0.3), (50, 2, 2, 2), (50, 1, 1, 1)),
    (nn.AlphaDropout(0.3), (5, 4), (5, 4)),
    (nn.FeatureAlphaDropout(0.3), (50, 2, 4), (50, 1, 1)),
    (nn.Dropout(1.0), (5, 4), (5, 4)),
    (nn.AlphaDropout(1.0), (5, 4), (5, 4)),
]


@pytest.mark.parametrize(("layer", "shape", "mask_shape"), LAYERS, ids=lambda value: str(value))
def test_a_layer_drops_and_scales_as_in_training(layer: nn.Module, shape: tuple, mask_shape: tuple) -> None:
    x = torch.full((3, *shape), 1.5)
    torch.manual_seed(0)
    trained = torch.cat([layer.train()(x) for _ in range(20)])
    with sampled_dropout(net := nn.Sequential(layer.eval()), 7, 3) as use:
        use(2)
        out = net(x)
    keep = draws.generator(7, 3, "dropout", 2, 0, 0).random(mask_shape) >= layer.p
    kept, dropped = trained.max(), trained.min()
    expected = torch.where(torch.from_numpy(keep), kept, dropped).expand(x.shape)
    torch.testing.assert_close(out, expected)
    if layer.p < 1:
        assert 0 < keep.mean() < 1
        assert kept > dropped
    assert torch.equal(layer(x), x)  # and nothing is left behind


def test_masks_keep_a_unit_with_probability_1_minus_p() -> None:
    net = nn.Sequential(nn.Dropout(0.3))
    x = torch.ones(2, 40_000)
    with sampled_dropout(net.eval()) as use:
        use(0)
        first = net(x)
        use(1)
        second = net(x)
    assert (first != 0).double().mean().item() == pytest.approx(0.7, abs=0.01)  # 4 standard deviations
    assert torch.equal(first[0], first[1])
    both = ((first != 0) & (second != 0)).double().mean().item()
    assert both == pytest.approx(0.49, abs=0.01)


@pytest.mark.parametrize("fails", [False, True])
def test_model_and_random_state_come_back_untouched(model: Net, pool: Tensor, fails: bool) -> None:
    model.train()
    model.norm.eval()  # a mode of its own
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    if fails:
        bad = pool.clone()
        bad[20] = torch.nan
        with pytest.raises(ValueError, match="NaN"):
            select_from(round_of(model, bad), 3, "bald")
    else:
        select_from(round_of(model, pool), 3, "bald")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


class SamplesSecond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(x.flatten(2).permute(2, 0, 1)).mean(0))


@pytest.mark.parametrize("strategy", ["bald", "entropy-bayesian"])
@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 2)), r"model must have a dropout layer .* p > 0\).*, got none"),
        (nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(108, 2)), "model must have a dropout layer"),
        (Functional(), "model must have a dropout layer"),
        (SamplesSecond(), r"dropout must see one row per sample, got \(36, 8, 3\) for 8 samples"),
    ],
)
def test_a_model_that_dropout_cannot_sample_is_refused(
    strategy: str, net: nn.Module, message: str, pool: Tensor
) -> None:
    with pytest.raises(ValueError, match=message):
        select_from(round_of(net, pool), 3, strategy)


@pytest.mark.parametrize("strategy", ["bald", "entropy-bayesian"])
@pytest.mark.parametrize("budget", [0, 22])
def test_a_budget_out_of_range_costs_no_forward_pass(strategy: str, budget: int, model: Net, pool: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"budget must be in \[1, 21\] for a pool of 21 rows, got {budget}"):
        select_from(round_of(model, pool), budget, strategy)
    assert model.calls == 0


def test_wrong_options_are_named_at_the_door() -> None:
    for options in (BALDConfig, EntropyBayesianConfig):
        with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
            options(passes=0)
    with pytest.raises(ValueError, match="reading must be one of predictive, expected, got 'total'"):
        EntropyBayesianConfig(reading="total")
