"""VAAL against its definition: losses one sample at a time, and its training by the formulas of Adam."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dm2_fast
from dm2_fast import Round, RunConfig, select, select_from
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies import vaal
from dm2_fast.strategies.vaal import VAAL, AutoEncoder, VAALConfig
from dm2_fast.training_part import TrainingStep

SMALL = VAALConfig(latent=3, width=4, beta=0.7, adversary=0.6, epochs=2)


def step_of(x: Tensor, unlabelled: Tensor) -> TrainingStep:
    """A step whose draws go through the unlabelled samples, again and again."""
    position = 0

    def draw(number: int) -> Tensor:
        nonlocal position
        position += number
        return unlabelled[torch.arange(position - number, position) % len(unlabelled)]

    return TrainingStep(0, 1, x, torch.zeros(len(x)), torch.zeros(len(x), 2), draw, left=len(unlabelled))


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.weight @ x + layer.bias


def naive_vae_loss(part: VAAL, labelled: Tensor, unlabelled: Tensor, noise: list[Tensor]) -> Tensor:
    """One sample at a time, the auto-encoder of vectors."""
    total = torch.zeros(())
    for x, eps in ((labelled, noise[0]), (unlabelled, noise[1])):
        for row in range(len(x)):
            hidden = linear(part.vae.encoder[1], x[row].flatten()).clamp(min=0)
            mean, log_variance = linear(part.vae.mean, hidden), linear(part.vae.log_variance, hidden)
            code = mean + eps[row] * (log_variance / 2).exp()
            back = linear(part.vae.decoder[2], linear(part.vae.decoder[0], code).clamp(min=0))
            error = sum((back[i] - x[row].flatten()[i]) ** 2 for i in range(len(back))) / len(back)
            kl = sum(
                0.5 * (mean[i] ** 2 + log_variance[i].exp() - 1 - log_variance[i]) for i in range(len(mean))
            ) / len(mean)
            d = naive_discriminator(part, mean)
            total = total + (error + 0.7 * kl - 0.6 * torch.sigmoid(d).log()) / len(x)
    return total


def naive_discriminator(part: VAAL, mean: Tensor) -> Tensor:
    d = part.discriminator
    return linear(d[4], linear(d[2], linear(d[0], mean).clamp(min=0)).clamp(min=0))[0]


def naive_discriminator_loss(part: VAAL, labelled: Tensor, unlabelled: Tensor) -> Tensor:
    total = torch.zeros(())
    for x, is_labelled in ((labelled, True), (unlabelled, False)):
        for row in x:
            mean = linear(part.vae.mean, linear(part.vae.encoder[1], row.flatten()).clamp(min=0))
            p = torch.sigmoid(naive_discriminator(part, mean.detach()))
            total = total - (p if is_labelled else 1 - p).log() / len(x)
    return total


class Adam:
    """The formulas, one tensor at a time."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters, self.t = parameters, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]

    def step(self, loss: Tensor) -> None:
        self.t += 1
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, g, (m, v) in zip(self.parameters, gradients, self.moments, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p -= 5e-4 * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)


def made(shape: tuple[int, ...], options: VAALConfig = SMALL) -> VAAL:
    torch.manual_seed(0)
    return vaal.part(nn.Identity(), torch.zeros(2, *shape), options)


def test_a_step_is_two_of_the_auto_encoder_and_one_of_the_discriminator_by_the_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    x, unlabelled = torch.randn(5, 6, generator=generator), torch.randn(11, 6, generator=generator)
    part, twin = made((6,)), made((6,))
    of_vae, of_discriminator = Adam(list(twin.vae.parameters())), Adam(list(twin.discriminator.parameters()))
    taken, step = step_of(x, unlabelled), step_of(x, unlabelled)
    for _ in range(2):
        torch.manual_seed(3)
        found = part.loss(step)
        assert found.item() == 0
        assert not found.requires_grad
        assert all(p.grad is None for p in part.parameters())  # nothing for the optimizer of the run
        torch.manual_seed(3)
        for _ in range(2):
            drawn = taken.unlabelled(5)
            noise = [torch.randn(5, 3), torch.randn(5, 3)]
            of_vae.step(naive_vae_loss(twin, x, drawn, noise))
        of_discriminator.step(naive_discriminator_loss(twin, x, taken.unlabelled(5)))
    for (name, p), q in zip(part.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(p, q[1], atol=3e-6, rtol=1e-4, msg=name)


def test_every_weight_of_the_losses_is_seen() -> None:
    x, unlabelled = torch.randn(5, 6), torch.randn(5, 6)
    losses = []
    for change in ({}, {"beta": 0.1}, {"adversary": 0.1}, {"latent": 4}):
        part = made((6,), replace(SMALL, **change))
        torch.manual_seed(0)
        losses.append(part.vae_loss(x, unlabelled).item())
    assert len(set(losses)) == 4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 5, 9), (1, 3, 3), (7,), (4, 6)])
def test_samples_of_every_shape_are_reconstructed_in_it(shape: tuple[int, ...]) -> None:
    model = AutoEncoder(shape, SMALL)
    x = torch.randn(3, *shape)
    mean, log_variance = model.encode(x)
    assert mean.shape == log_variance.shape == (3, 3)
    assert model.decoder(mean).shape == x.shape
    convolutions = [m for m in model.encoder if isinstance(m, nn.Conv2d)]
    levels = {(3, 32, 32): 4, (1, 28, 28): 3, (1, 8, 8): 2, (2, 5, 9): 1}.get(shape, 0)
    assert [c.out_channels for c in convolutions] == [4, 8, 16, 32][:levels]


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_select_trains_the_parts_in_the_call_says_so_and_takes_the_most_unlabelled(images: Tensor) -> None:
    model = Flat().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    asked = Round(ForwardPass(model, images[9:], batch_size=8), 7, 3, labelled=images[:9])
    with pytest.warns(
        UserWarning, match="vaal trains its auto-encoder and discriminator in this call, 2 passes over 9"
    ):
        picked = select_from(asked, 6, "vaal", SMALL)
    assert list(picked.seconds) == ["auto-encoder", "codes", "choose"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    part = vaal.trained(asked, SMALL)
    part.eval()
    with torch.no_grad():
        expected = torch.stack([-part.discriminator(part.vae.encode(x[None])[0])[0, 0] for x in images[9:]])
    torch.testing.assert_close(picked.scores, expected, atol=1e-5, rtol=0)
    assert picked.indices.tolist() == picked.scores.argsort(descending=True, stable=True)[:6].tolist()
    again = Round(ForwardPass(model, images[9:], batch_size=8), 7, 3, labelled=images[:9])
    with pytest.warns(UserWarning, match="vaal trains"):
        assert torch.equal(select_from(again, 6, "vaal", SMALL).scores, picked.scores)


def test_it_learns_to_find_what_the_labelled_set_lacks() -> None:
    """Two kinds of vectors, of which one is labelled: nearly all that is chosen is of the other kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(80) % 2
    pool = 3 * (2 * kinds[:, None] - 1) + torch.randn(80, 6, generator=generator)
    labelled = -3 + torch.randn(20, 6, generator=generator)
    options = VAALConfig(latent=4, epochs=60)
    with pytest.warns(UserWarning, match="vaal trains"):
        picked = select(nn.Linear(6, 2), pool, 20, "vaal", options, labelled=labelled)
    assert kinds[picked.indices].sum() >= 18


def test_copies_tie_to_the_lower_row(images: Tensor) -> None:
    asked = Round(ForwardPass(Flat(), images[9:17].repeat(2, 1, 1, 1), batch_size=8), labelled=images[:9])
    with pytest.warns(UserWarning, match="vaal trains"):
        picked = select_from(asked, 16, "vaal", SMALL)
    assert (picked.indices[1::2] == picked.indices[::2] + 8).all()


def test_without_unlabelled_samples_nothing_is_trained() -> None:
    part = made((6,))
    before = [p.clone() for p in part.parameters()]
    part.loss(step_of(torch.randn(5, 6), torch.empty(0, 6)))
    assert all(torch.equal(p, q) for p, q in zip(part.parameters(), before, strict=True))


QUICK = RunConfig(
    strategy="vaal", options=SMALL, initial=12, budget=5, rounds=1, pool=17, test=20, training=TrainingConfig(epochs=4)
)


def test_in_a_run_it_trains_beside_the_network_and_does_not_reach_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the pool is empty; with a network without dropout, which draws from the same random state."""
    seen = []
    loss = VAAL.loss
    monkeypatch.setattr(VAAL, "loss", lambda self, step: seen.append(step.left) or loss(self, step))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "vaal_net.py").write_text(
        "from torch import nn\ndef build(size, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], classes))\n"
    )
    config = replace(QUICK, model="vaal_net:build")
    with_parts = dm2_fast.run(replace(config, output=tmp_path / "a"))
    assert seen == [5] * 4 + [0] * 4
    assert "auto-encoder" not in with_parts.rounds[0].seconds
    random = dm2_fast.run(replace(config, strategy="random", options=None, rounds=0, output=tmp_path / "b"))
    mine, theirs = with_parts.rounds[0].evaluation, random.rounds[0].evaluation
    assert mine.accuracy == theirs.accuracy
    assert mine.loss == pytest.approx(theirs.loss, rel=1e-5)  # the draws change the order of the samples in a batch


def test_killed_in_its_training_a_run_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0)
    config = replace(QUICK, pool=40)
    dm2_fast.run(replace(config, output=tmp_path / "whole"))
    loss, count = VAAL.loss, 0

    def stop(self, step):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return loss(self, step)

    monkeypatch.setattr(VAAL, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(replace(config, output=tmp_path / "stopped"))
    monkeypatch.setattr(VAAL, "loss", loss)
    dm2_fast.run(replace(config, output=tmp_path / "stopped"))
    for name in ("selected.csv", "model.pt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_checkpoint_has_the_state_of_its_optimizers() -> None:
    x, unlabelled = torch.randn(5, 6), torch.randn(9, 6)
    part, other = made((6,)), made((6,))
    part.loss(step_of(x, unlabelled))
    other.load_state_dict(copy.deepcopy(part.state_dict()))
    for one in (part, other):
        torch.manual_seed(5)
        one.loss(step_of(x, unlabelled))
    assert all(torch.equal(p, q) for p, q in zip(part.parameters(), other.parameters(), strict=True))


def test_what_is_wrong_is_named(images: Tensor) -> None:
    with pytest.raises(ValueError, match="compares with labelled samples: pass labelled= with at least one"):
        select(Flat(), images, 3, "vaal")
    tokens = torch.randint(0, 5, (20, 6))
    with pytest.warns(UserWarning, match="vaal trains"), pytest.raises(TypeError, match="vaal reconstructs samples"):
        select(nn.Embedding(5, 3), tokens, 3, "vaal", labelled=tokens)
    for options, message in (
        ({"latent": 0}, "latent must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"beta": -1.0}, "beta must be at least 0 and finite, got -1.0"),
        ({"adversary": math.nan}, "adversary must be at least 0 and finite, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            VAALConfig(**options)
