"""What every test of an adapter has: one thread, and graph networks whose training is cut short."""

import pytest
import torch

from dm2_fast.strategies import graph_network


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(graph_network, "STEPS", 3)
