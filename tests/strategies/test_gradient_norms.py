"""ent-gn and exp-gn against autograd in float64, one sample and one label at a time."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import Round, select_from, strategies
from dm2_fast.model import derivatives
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.ent_gn import EntGNConfig
from dm2_fast.strategies.exp_gn import ExpGNConfig


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(54, 4, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(x)), inplace=True), 2)
        return self.head(self.drop(x.flatten(1)))


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def model(request: pytest.FixtureRequest) -> Net:
    torch.manual_seed(0)
    net = Net(request.param)
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 3, 6, 6))
        net.head.weight *= 4
    return net


@pytest.fixture
def pool() -> Tensor:
    return torch.rand(21, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def round_of(model: nn.Module, pool: Tensor, **options) -> Round:
    return Round(ForwardPass(model, pool, **{"batch_size": 8} | options))


def naive(model: nn.Module, pool: Tensor, loss: Callable[[Tensor], Tensor], last: bool) -> list[Tensor]:
    """The norms of the gradient of each sample's loss, summed over the parameters."""
    twin = type(model)(model.head.bias is not None).double().eval()
    twin.load_state_dict(model.state_dict())
    parameters = list((twin.head if last else twin).parameters())
    found = []
    for sample in pool.double():
        gradients = torch.autograd.grad(loss(twin(sample[None])[0]), parameters)
        found.append(sum(gradient.norm() for gradient in gradients))
    return found


def entropy(z: Tensor) -> Tensor:
    return -(z.softmax(0) * z.log_softmax(0)).sum()


def loss_of_label(c: int, z: Tensor) -> Tensor:
    return -z.log_softmax(0)[c]


def naive_expected(model: nn.Module, pool: Tensor, last: bool) -> Tensor:
    by_label = [torch.stack(naive(model, pool, partial(loss_of_label, c), last)) for c in range(4)]
    with torch.no_grad():
        p = model.double().eval()(pool.double()).softmax(1)
    model.float()
    return (p * torch.stack(by_label, 1)).sum(1)


@pytest.mark.parametrize("layers", ["all", "last"])
def test_the_scores_of_ent_gn_are_those_of_autograd(model: Net, pool: Tensor, layers: str) -> None:
    picked = select_from(round_of(model, pool), 9, "ent-gn", EntGNConfig(layers))
    expected = torch.stack(naive(model, pool, entropy, layers == "last"))
    torch.testing.assert_close(picked.scores, expected, rtol=2e-5, atol=1e-7)
    assert picked.indices.tolist() == expected.argsort(descending=True)[:9].tolist()
    assert list(picked.seconds) == [{"all": "entropy_slope", "last": "features"}[layers], "choose"]


@pytest.mark.parametrize("layers", ["all", "last"])
def test_the_scores_of_exp_gn_are_the_expected_norms_of_autograd(model: Net, pool: Tensor, layers: str) -> None:
    picked = select_from(round_of(model, pool), 9, "exp-gn", ExpGNConfig(layers=layers))
    expected = naive_expected(model, pool, layers == "last")
    torch.testing.assert_close(picked.scores, expected, rtol=2e-5, atol=1e-7)
    assert picked.indices.tolist() == expected.argsort(descending=True)[:9].tolist()
    assert not torch.allclose(picked.scores, torch.stack(naive(model, pool, entropy, layers == "last")), rtol=1e-2)


@pytest.mark.parametrize("layers", ["all", "last"])
def test_the_gradient_of_the_expected_loss_is_that_of_the_entropy(model: Net, pool: Tensor, layers: str) -> None:
    expected = select_from(round_of(model, pool), 5, "exp-gn", ExpGNConfig("loss", layers))
    assert torch.equal(expected.scores, select_from(round_of(model, pool), 5, "ent-gn", EntGNConfig(layers)).scores)


@pytest.mark.parametrize("name", ["ent-gn", "exp-gn"])
def test_neither_batches_nor_neighbours_change_a_gradient(
    name: str, model: Net, pool: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = select_from(round_of(model, pool), 3, name).scores
    part = select_from(round_of(model, pool[4:9], batch_size=2), 3, name).scores
    torch.testing.assert_close(part, whole[4:9], rtol=1e-5, atol=1e-7)
    monkeypatch.setattr(derivatives, "_ELEMENTS", 1)  # one sample at a time
    torch.testing.assert_close(select_from(round_of(model, pool), 3, name).scores, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ent-gn", "exp-gn"])
def test_certain_rows_come_last_and_ties_go_to_the_lower_row(name: str, pool: Tensor) -> None:
    """A softmax of 0 and 1 has no gradient, nor has the entropy of a uniform one; copies have one score."""
    head = nn.Linear(3, 3)
    nn.init.eye_(head.weight)
    nn.init.zeros_(head.bias)
    x = torch.tensor([[9e4, 0.0, 0], [0, 0, 0], [1, 2, 0], [0, 9e4, 0], [1, 2, 0]])
    picked = select_from(round_of(head, x), 5, name)
    assert torch.isfinite(picked.scores).all()
    assert picked.scores[0] == picked.scores[3] == 0
    uniform = picked.scores[1].item()
    assert uniform == pytest.approx(0, abs=1e-12) if name == "ent-gn" else uniform > 0.5
    assert picked.indices.tolist()[:2] == [2, 4]
    assert name == "ent-gn" or picked.indices.tolist()[-2:] == [0, 3]


@pytest.mark.parametrize("name", ["ent-gn", "exp-gn"])
def test_only_trained_parameters_count(name: str, model: Net, pool: Tensor) -> None:
    before = select_from(round_of(model, pool), 3, name, strategies.get(name).options(layers="last")).scores
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model has a gradient: call model.requires_grad_"):
        select_from(round_of(model, pool), 3, name)
    model.head.requires_grad_(True)
    torch.testing.assert_close(select_from(round_of(model, pool), 3, name).scores, before, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["ent-gn", "exp-gn"])
def test_the_model_comes_back_untouched(name: str, model: Net, pool: Tensor) -> None:
    model.train()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    select_from(round_of(model, pool), 3, name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["ent-gn", "exp-gn"])
def test_what_cannot_be_computed_is_named(name: str, model: Net, pool: Tensor) -> None:
    from dm2_fast import select

    with pytest.raises(TypeError, match=f"{name} needs a torch module, and the model is a function: pass the nn.Mod"):
        select(lambda batch: batch.flatten(1)[:, :4], pool, 3, name)
    options = strategies.get(name).options
    with pytest.raises(ValueError, match="head must be a linear layer for layers='last', got Net"):
        select(model, pool, 3, name, options(layers="last"), head="", prepare="off")
    with pytest.raises(ValueError, match="layers must be one of all, last, got 'first'"):
        options(layers="first")
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(model, pool, 3, name, multilabel="mean")
    with pytest.raises(ValueError, match="expected must be one of norm, loss, got 'gradient'"):
        ExpGNConfig("gradient")
