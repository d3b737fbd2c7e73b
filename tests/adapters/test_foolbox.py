"""The attacks against those of foolbox, on digits and a network that was trained a little."""

import foolbox
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import fgsm, pgd
from dm2_fast.experiment import models
from dm2_fast.experiment.data.sets import load

IMAGES = 500


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    data = load("digits")
    torch.manual_seed(0)
    model = models.build("cnn", 1, (8, 8), 10).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, y = data.x.float() / 255, data.y
    for step in range(120):
        rows = torch.arange(step * 64, step * 64 + 64) % len(x)
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), x[:IMAGES], y[:IMAGES]


@pytest.mark.parametrize("epsilon", [0.03, 0.1])
@pytest.mark.parametrize("attack", ["fgsm", "pgd"])
def test_the_success_is_that_of_foolbox(trained: tuple[nn.Module, Tensor, Tensor], attack: str, epsilon: float) -> None:
    model, x, y = trained
    theirs = foolbox.attacks.LinfFastGradientAttack()
    if attack == "pgd":
        theirs = foolbox.attacks.LinfPGD(abs_stepsize=2.5 * epsilon / 20, steps=20, random_start=False)
    _, _, success = theirs(foolbox.PyTorchModel(model, (0, 1)), x, y, epsilons=epsilon)
    mine = fgsm(model, x, y, epsilon) if attack == "fgsm" else pgd(model, x, y, epsilon, steps=20)
    with torch.no_grad():
        found = int((model(mine).argmax(1) != y).sum())
    assert 20 < found < IMAGES
    assert abs(found - int(success.sum())) <= 1
