import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dm2_fast import Picked, Round, draws, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.noise_stability import NoiseStabilityConfig, deviations


def choose(asked: Round, budget: int, options: object = None) -> Picked:
    return select_from(asked, budget, "noise-stability", options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(216, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 6, 6))
    return net


@pytest.fixture
def pool() -> Tensor:
    return torch.rand(21, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def naive_deviations(model: nn.Module, x: Tensor, passes: int, scale: float, noise: str) -> np.ndarray:
    """In float64, each network a dictionary of its own."""
    model = model.eval()
    state = {name: value.detach().double() for name, value in model.state_dict().items() if value.is_floating_point()}
    names = [name for name, _ in model.named_parameters() if noise == "global" or name.endswith("weight")]

    def softmax(weights: dict[str, Tensor]) -> np.ndarray:
        with torch.no_grad():
            return functional_call(model, weights, (x.double(),)).softmax(1).numpy()

    p = softmax(state)
    parts = []
    for t in range(passes):
        drawn = {
            name: draws.generator(7, 3, "noise", t, i)
            .standard_normal(tuple(state[name].shape), "float32")
            .astype(float)
            for i, name in enumerate(names)
        }
        if noise == "global":
            ratio = np.sqrt(sum((state[name].numpy() ** 2).sum() for name in names))
            ratio /= np.sqrt(sum((drawn[name] ** 2).sum() for name in names))
        noisy = dict(state)
        for name in names:
            if noise == "module":
                ratio = np.sqrt((state[name].numpy() ** 2).sum()) / np.sqrt((drawn[name] ** 2).sum())
            noisy[name] = state[name] + torch.from_numpy(scale * ratio * drawn[name])
        parts.append((softmax(noisy) - p) / np.sqrt((p**2).sum(1, keepdims=True)))
    return np.concatenate(parts, 1)


def naive_picks(x: np.ndarray, budget: int) -> list[int]:
    centres = [np.zeros(x.shape[1])]
    picks: list[int] = []
    for _ in range(budget):
        nearest = np.min([((x - centre) ** 2).sum(1) for centre in centres], axis=0)
        nearest[picks] = -1
        picks.append(int(nearest.argmax()))
        centres.append(x[picks[-1]])
    return picks


def round_of(model: nn.Module, pool: Tensor, **options) -> Round:
    return Round(ForwardPass(model, pool, **{"batch_size": 8} | options), seed=7, round=3)


@pytest.mark.parametrize("noise", ["module", "global"])
@pytest.mark.parametrize("double", [True, False])
def test_deviations_and_picks_are_those_of_the_definition(model: Net, pool: Tensor, noise: str, double: bool) -> None:
    expected = naive_deviations(model, pool, 4, 0.01, noise)
    model = model.double() if double else model
    options = NoiseStabilityConfig(passes=4, scale=0.01, noise=noise)
    state = round_of(model, pool)
    x = deviations(state.forward, options, 7, 3)
    assert x.dtype == (torch.float64 if double else torch.float32)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(x, expected, atol=1e-9 if double else 1e-6, rtol=0)
    picked = choose(state, 9, options)
    assert picked.indices.tolist() == naive_picks(expected, 9)
    assert picked.scores is None
    assert set(picked.seconds) == {"noise", "choose"}
    assert sorted(choose(state, 21, options).indices.tolist()) == list(range(21))


def test_the_two_readings_differ(model: Net, pool: Tensor) -> None:
    first, second = (
        deviations(round_of(model, pool).forward, NoiseStabilityConfig(2, noise=noise))
        for noise in ("module", "global")
    )
    assert (first - second).abs().max() > 1e-5


def test_the_first_noisy_networks_do_not_depend_on_how_many_follow(model: Net, pool: Tensor) -> None:
    forward = round_of(model, pool).forward
    short = deviations(forward, NoiseStabilityConfig(2), 7, 3)
    assert torch.equal(deviations(forward, NoiseStabilityConfig(3), 7, 3)[:, :8], short)
    assert not torch.equal(deviations(forward, NoiseStabilityConfig(2), 8, 3), short)
    assert not torch.equal(deviations(forward, NoiseStabilityConfig(2), 7, 4), short)


def test_batches_change_nothing(model: Net, pool: Tensor) -> None:
    options = NoiseStabilityConfig(3, scale=0.1)
    whole = deviations(round_of(model, pool).forward, options)
    torch.testing.assert_close(
        deviations(round_of(model, pool, batch_size=5).forward, options), whole, atol=2e-6, rtol=0
    )
    part = deviations(round_of(model, pool[3:9]).forward, options)
    torch.testing.assert_close(part, whole[3:9], atol=2e-6, rtol=0)


def test_model_and_random_state_come_back_untouched(model: Net, pool: Tensor) -> None:
    model.train()
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    precision = torch.get_float32_matmul_precision()
    choose(round_of(model, pool), 3, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.get_float32_matmul_precision() == precision
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_half_precision_is_widened_so_that_rounding_does_not_swamp_the_noise(model: Net, pool: Tensor) -> None:
    half = model.bfloat16()
    x = deviations(round_of(half, pool).forward, NoiseStabilityConfig(3), 7, 3)
    assert x.dtype == torch.float32
    assert half.head.weight.dtype == torch.bfloat16
    expected = naive_deviations(model.float(), pool, 3, 1e-3, "module")
    np.testing.assert_allclose(x, expected, atol=1e-6, rtol=0)


def test_a_head_named_by_the_caller_is_allowed(model: Net, pool: Tensor) -> None:
    first = choose(round_of(model, pool), 5, None)
    assert torch.equal(choose(round_of(model, pool, head=model.head), 5, None).indices, first.indices)


def test_equal_rows_are_chosen_last_and_once(model: Net, pool: Tensor) -> None:
    picked = choose(round_of(model, torch.cat([pool[:8], pool[:8]])), 16, None)
    assert sorted(picked.indices[:8].tolist()) == list(range(8))
    assert picked.indices[8:].tolist() == list(range(8, 16))


def test_where_nothing_deviates_the_lower_rows_are_chosen(model: Net, pool: Tensor) -> None:
    nn.init.zeros_(model.head.weight)
    assert choose(round_of(model, pool), 21, None).indices.tolist() == list(range(21))


class NoWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * self.scale


def test_a_model_without_what_is_perturbed_is_refused(pool: Tensor) -> None:
    with pytest.raises(ValueError, match="the model has no parameters that noise='module' can change"):
        choose(round_of(NoWeight(), pool), 3, None)
    assert len(choose(round_of(NoWeight(), pool), 3, NoiseStabilityConfig(noise="global")).indices) == 3


@pytest.mark.parametrize("budget", [0, 22])
def test_a_budget_out_of_range_is_named(budget: int, model: Net, pool: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"budget must be in \[1, 21\] for a pool of 21 rows, got {budget}"):
        choose(round_of(model, pool), budget, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"scale": float("nan")}, "scale must be positive and finite, got nan"),
        ({"noise": "layer"}, "noise must be one of module, global, got 'layer'"),
    ],
)
def test_wrong_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoiseStabilityConfig(**options)
