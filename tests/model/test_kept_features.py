"""Within a budget of memory, features that the model computes lie in a file."""

import pytest
import torch
from torch import nn

import dm2_fast
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.memory import is_mapped


@pytest.mark.parametrize("prepare", ["auto", "off"])
@pytest.mark.parametrize("m", [1, 64, 1000])
def test_they_are_those_without_a_budget(prepare: str, m: int) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), torch.rand(m, 6)
    expected = ForwardPass(model, x, batch_size=64, num_threads=2, prepare=prepare).features_and_logits()
    found = ForwardPass(model, x, batch_size=64, num_threads=2, prepare=prepare, memory="1GB").features_and_logits()
    assert is_mapped(found[0])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_choice_within_a_budget() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), torch.rand(900, 6)
    expected = dm2_fast.select(model, x, 9)
    assert torch.equal(dm2_fast.select(model, x, 9, memory="1MB").indices, expected.indices)
