"""ISAL against its definition: a dense Hessian in float64, one labelled sample and one row of the pool at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import Round, draws, select, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.isal import ISALConfig

N, M = 10, 25


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.max_pool2d(self.norm(self.conv(x)).tanh(), 2).flatten(1)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 2, 4, 4))
        net.head.weight *= 3
    return net


@pytest.fixture
def images() -> Tensor:
    return torch.rand(N + M, 2, 4, 4, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(N) % 3


def round_of(model: nn.Module, images: Tensor, **options) -> Round:
    forward = ForwardPass(model, images[N:], **{"batch_size": 8} | options)
    return Round(forward, 7, 3, labelled=images[:N], labels=LABELS)


class Twin:
    """Gradients and Hessians in the weights of more than one dimension, as vectors and matrices."""

    def __init__(self, model: nn.Module) -> None:
        self.net = type(model)().double().eval()
        self.net.load_state_dict(model.state_dict())
        self.weights = [p for p in self.net.parameters() if p.ndim > 1]

    def loss(self, x: Tensor, y: int | None) -> Tensor:
        z = self.net(x.double()[None])[0]
        return -z.log_softmax(0)[int(z.argmax()) if y is None else y]

    def gradient(self, x: Tensor, y: int | None) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(x, y), self.weights)])

    def hessian(self, x: Tensor, y: int) -> Tensor:
        gradients = torch.autograd.grad(self.loss(x, y), self.weights, create_graph=True)
        flat = torch.cat([g.flatten() for g in gradients])
        rows = [torch.autograd.grad(g, self.weights, retain_graph=True) for g in flat]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def naive(model: nn.Module, images: Tensor, options: ISALConfig) -> Tensor:
    twin = Twin(model)
    labelled, labels = images[:N], LABELS.tolist()
    v = sum(twin.gradient(x, y) for x, y in zip(labelled, labels, strict=True)) / N
    hessians = [twin.hessian(x, y) for x, y in zip(labelled, labels, strict=True)]
    batch, mean = min(options.samples, N), torch.zeros(())
    for restart in range(options.restarts):
        generator = draws.generator(7, 3, "influence", restart)
        order: list[int] = []
        while len(order) < options.steps * batch:
            order += generator.permutation(N).tolist()
        s = v
        for step in range(options.steps):
            h = sum(hessians[i] for i in order[step * batch : (step + 1) * batch]) / batch
            s = v + (1 - options.damping) * s - h @ s / options.scale
        mean = mean + s / options.scale / options.restarts
    return torch.stack([twin.gradient(x, None) @ mean for x in images[N:]])


@pytest.mark.parametrize(
    "options",
    [
        ISALConfig(damping=0.1, scale=20, steps=7, restarts=2, samples=3),
        ISALConfig(damping=0.1, scale=20, steps=1, restarts=1, samples=1),
        ISALConfig(damping=0.3, scale=10, steps=4, restarts=1, samples=64),
    ],
)
def test_scores_and_picks_are_those_of_the_definition(model: Net, images: Tensor, options: ISALConfig) -> None:
    picked = select_from(round_of(model, images), 7, "isal", options)
    expected = naive(model, images, options)
    torch.testing.assert_close(picked.scores, expected, rtol=0, atol=2e-6 * expected.abs().max().item())
    assert picked.indices.tolist() == expected.argsort(descending=True)[:7].tolist()
    assert list(picked.seconds) == ["influence", "choose"]


def test_many_steps_reach_the_inverse_of_the_damped_hessian(model: Net, images: Tensor) -> None:
    """On all labelled samples at once, s is (H + damping * scale)^-1 v: influence as Koh and Liang define it."""
    options = ISALConfig(damping=0.05, scale=200, steps=300, restarts=1, samples=N)
    scores = select_from(round_of(model, images), 3, "isal", options).scores
    twin = Twin(model)
    pairs = list(zip(images[:N], LABELS.tolist(), strict=True))
    v = sum(twin.gradient(x, y) for x, y in pairs) / N
    h = sum(twin.hessian(x, y) for x, y in pairs) / N
    s = torch.linalg.solve(h + 0.05 * 200 * torch.eye(len(h), dtype=h.dtype), v)
    expected = torch.stack([twin.gradient(x, None) @ s for x in images[N:]])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


QUICK = ISALConfig(damping=0.1, scale=20, steps=3, restarts=2, samples=3)


def test_every_option_is_seen(model: Net, images: Tensor) -> None:
    first = select_from(round_of(model, images), 3, "isal", QUICK).scores
    for change in ({"damping": 0.2}, {"scale": 30.0}, {"steps": 4}, {"restarts": 3}, {"samples": 4}):
        other = select_from(round_of(model, images), 3, "isal", ISALConfig(**vars(QUICK) | change)).scores
        assert not torch.allclose(other, first, rtol=1e-4), change


def test_batches_change_nothing_but_seed_and_round_do(model: Net, images: Tensor) -> None:
    whole = select_from(round_of(model, images), 3, "isal", QUICK).scores
    small = select_from(round_of(model, images, batch_size=3), 3, "isal", QUICK).scores
    torch.testing.assert_close(small, whole, rtol=0, atol=1e-5 * whole.abs().max().item())
    other = round_of(model, images)
    other.seed = 8
    assert not torch.allclose(select_from(other, 3, "isal", QUICK).scores, whole, rtol=1e-4)


def test_the_reference_is_the_labelled_set_alone(model: Net, images: Tensor) -> None:
    """Of the pool, a row's score depends on the row; of the labelled set, it depends on every sample and label."""
    whole = select_from(round_of(model, images), 3, "isal", QUICK).scores
    half = select_from(round_of(model, images[: N + 8]), 3, "isal", QUICK).scores
    torch.testing.assert_close(half, whole[:8], rtol=0, atol=1e-5 * whole.abs().max().item())
    asked = round_of(model, images)
    asked.labels = (LABELS + 1) % 3
    assert not torch.allclose(select_from(asked, 3, "isal", QUICK).scores, whole, rtol=1e-2)


def test_copies_tie_to_the_lower_row_and_one_labelled_sample_is_enough(model: Net, images: Tensor) -> None:
    pool = torch.cat([images[N : N + 8]] * 2)
    forward = ForwardPass(model, pool, batch_size=8)
    picked = select_from(Round(forward, labelled=images[:1], labels=LABELS[:1]), 16, "isal", QUICK)
    assert torch.isfinite(picked.scores).all()
    first, second = picked.indices[::2], picked.indices[1::2]
    assert (second == first + 8).all()


def test_the_model_comes_back_untouched(model: Net, images: Tensor) -> None:
    model.train()
    model.norm.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    select_from(round_of(model, images), 3, "isal", QUICK)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_is_wrong_is_named(model: Net, images: Tensor) -> None:
    with pytest.raises(TypeError, match="isal needs a torch module, and the model is a function"):
        select(lambda x: x.flatten(1)[:, :3], images, 3, "isal")
    with pytest.raises(ValueError, match="follows the loss of labelled samples: pass labels= with their classes"):
        select(model, images, 3, "isal", labelled=images)
    with pytest.raises(ValueError, match="compares with labelled samples: pass labelled= with at least one"):
        select(model, images, 3, "isal", labels=LABELS)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\], the classes of the model, got 3"):
        select(model, images, 3, "isal", labelled=images[: len(LABELS)], labels=LABELS.clamp(min=3))
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(model, images, 3, "isal", multilabel="mean")
    for options, message in (
        ({"damping": 1.0}, r"damping must be in \[0, 1\), got 1.0"),
        ({"scale": 0}, "scale must be positive and finite, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ISALConfig(**options)


def test_a_direction_has_the_shape_of_the_weights_and_no_bias_or_scale_is_in_it(model: Net, images: Tensor) -> None:
    derivatives = round_of(model, images).derivatives(matrices=True)
    assert {tuple(p.shape) for p in derivatives.parameters.values()} == {(3, 2, 3, 3), (3, 12)}
    assert len(round_of(model, images).derivatives().parameters) == 6
    assert np.isclose(sum(p.numel() for p in derivatives.parameters.values()), 54 + 36)
