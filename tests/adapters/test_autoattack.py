"""AutoAttack on a few digits and a small network: a smoke test of `--attack autoattack`."""

import torch
import torch.nn.functional as F
from torch import nn

from dm2_fast.experiment.attacks import accuracies_under_attack
from dm2_fast.experiment.data.sets import load


def test_autoattack_is_at_least_as_strong_as_pgd() -> None:
    data = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    mean, std = data.normalize
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model((data.x.float() / 255 - mean) / std), data.y).backward()
        optimizer.step()
    state = torch.get_rng_state()
    found = accuracies_under_attack(model, data.x_test[:8], data.y_test[:8], data.normalize, 0.05, "autoattack")
    assert set(found) == {"accuracy_pgd", "accuracy_autoattack"}
    assert 0 < found["accuracy_autoattack"] <= found["accuracy_pgd"]
    assert torch.equal(torch.get_rng_state(), state)
