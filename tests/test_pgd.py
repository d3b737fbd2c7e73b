"""PGD against a plain loop in float64, closed forms, and its bounds."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import draws, fgsm, pgd
from dm2_fast.experiment.attacks import accuracies_under_attack

NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 5)).eval()


def images(n: int = 13, seed: int = 1) -> Tensor:
    x = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return x.where(x > 0.1, 0.0).where(x < 0.9, 1.0)  # so that clipping matters


def losses(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=x.dtype)[:, None, None] for values in NORMALIZE)
    return F.cross_entropy(model((x - mean) / std), y, reduction="none")


def naive_pgd(model: nn.Module, x: Tensor, y: Tensor, epsilon: float, steps: int, restarts: int, seed: int) -> Tensor:
    """Row by row in the dtype of x; every point on the way is looked at, and the whole step of FGSM."""
    out = x.clone()
    for row in range(len(x)):
        seen: list[Tensor] = []
        for restart in range(restarts):
            here = x[row : row + 1].clone()
            if restart:
                noise = draws.generator(seed, restart, "attack", row).uniform(-1, 1, tuple(x.shape[1:]))
                here = (here + epsilon * torch.from_numpy(noise)).clamp(0, 1)
            for step in range(steps + 1):
                here = here.detach().requires_grad_()
                seen.append(here.detach())
                (gradient,) = torch.autograd.grad(losses(model, here, y[row : row + 1]).sum(), here)
                if step == 0 and restart == 0:
                    seen.append((here + epsilon * gradient.sign()).clamp(0, 1).detach())
                moved = here + 2.5 * epsilon / steps * gradient.sign()
                here = moved.minimum(x[row] + epsilon).maximum(x[row] - epsilon).clamp(0, 1)
        found = torch.cat([losses(model, each, y[row : row + 1]).detach() for each in seen])
        out[row] = seen[int(found.argmax())][0]
    return out


@pytest.mark.parametrize(("steps", "restarts"), [(1, 1), (7, 1), (5, 3)])
def test_pgd_is_the_plain_loop(steps: int, restarts: int) -> None:
    model, x, y = network().double(), images().double(), torch.arange(13) % 5
    found = pgd(model, x, y, 0.05, steps=steps, restarts=restarts, seed=3, normalize=NORMALIZE, batch_size=4)
    torch.testing.assert_close(found, naive_pgd(model, x, y, 0.05, steps, restarts, 3), atol=1e-12, rtol=0)
    assert found.dtype == torch.float64


def test_float32_reaches_the_loss_of_the_float64_reference() -> None:
    x, y = images(), torch.arange(13) % 5
    reached = losses(network(), pgd(network(), x, y, 0.05, normalize=NORMALIZE), y)
    reference = losses(network().double(), naive_pgd(network().double(), x.double(), y, 0.05, 20, 1, 0), y)
    torch.testing.assert_close(reached.double(), reference, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("step_size", [None, 0.3, 0.0])
def test_pgd_never_lowers_the_loss_that_fgsm_finds(seed: int, step_size: float | None) -> None:
    model, x = network(seed), images(40, seed)
    y = torch.arange(40) % 5
    once = losses(model, fgsm(model, x, y, 0.1, normalize=NORMALIZE), y)
    many = pgd(model, x, y, 0.1, steps=5, step_size=step_size, normalize=NORMALIZE)
    assert (losses(model, many, y) >= once - 1e-5).all()
    assert (many - x).abs().max() <= 0.1 + 1e-6
    assert many.min() >= 0
    assert many.max() <= 1
    more = losses(model, pgd(model, x, y, 0.1, steps=5, restarts=3, normalize=NORMALIZE), y)
    assert (more >= losses(model, pgd(model, x, y, 0.1, steps=5, normalize=NORMALIZE), y) - 1e-5).all()


def test_on_a_linear_model_of_two_classes_fgsm_is_the_closed_form_and_pgd_cannot_beat_it() -> None:
    """The loss rises with the margin of the other class, and no point of the box has a larger one than FGSM's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).double()
    x = torch.rand(30, 3, 4, 4, dtype=torch.float64)
    y = torch.arange(30) % 2
    weight = model[1].weight.detach()
    slope = (weight[1 - y] - weight[y]).view(30, 3, 4, 4)
    closed = (x + 0.1 * slope.sign()).clamp(0, 1)
    once, many = fgsm(model, x, y, 0.1), pgd(model, x, y, 0.1, restarts=3)
    assert torch.equal(once, closed)
    found = [F.cross_entropy(model(each), y, reduction="none").detach() for each in (closed, many)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


def test_batches_and_order_change_nothing_and_the_model_comes_back() -> None:
    model, x = network(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    model.train()
    first = pgd(model, x, None, 0.05, restarts=2, normalize=NORMALIZE, batch_size=13)
    second = pgd(model, x, None, 0.05, restarts=2, normalize=NORMALIZE, batch_size=5)
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_without_labels_the_predicted_ones_are_left() -> None:
    model, x = network(), images()
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    predicted = model((x - mean) / std).argmax(1)
    same = pgd(model, x, predicted, 0.05, normalize=NORMALIZE)
    assert torch.equal(pgd(model, x, None, 0.05, normalize=NORMALIZE), same)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
        ({"step_size": -1.0}, "step_size must be at least 0 and finite, got -1.0"),
        ({"epsilon": math.nan}, "epsilon must be at least 0 and finite, got nan"),
    ],
)
def test_wrong_arguments_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pgd(network(), images(), None, **{"epsilon": 0.1} | options)


# Attacks on a trained model


def test_final_attacks_report_pgd_and_warn_of_catastrophic_overfitting(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = network(), images(60, 5)
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    y = model((x - mean) / std).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = accuracies_under_attack(model, x, y, NORMALIZE, 0.001)
    attacked = pgd(model, x, y, 0.001, normalize=NORMALIZE)
    assert found == {"accuracy_pgd": (model((attacked - mean) / std).argmax(1) == y).double().mean().item()}
    monkeypatch.setattr("dm2_fast.experiment.attacks.fgsm", lambda model, x, *_, **__: x)  # a step that finds nothing
    with pytest.warns(UserWarning, match="100% are right under FGSM but .* under PGD: .*catastrophic overfitting"):
        accuracies_under_attack(model, x, y, NORMALIZE, 0.5)
