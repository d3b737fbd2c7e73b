"""The whole round, `select` on CIFAR-sized images with a small network, against the model as it is."""

from collections.abc import Callable

import pytest
import torch

import dm2_fast
from dm2_fast.experiment import models


@pytest.mark.parametrize("prepare", ["auto", "off"])
def bench_select(timed: Callable, device: torch.device, prepare: str) -> None:
    torch.manual_seed(0)
    model = models.build("mobilenet", 3, (32, 32), 10).to(device)
    pool = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8)
    call = lambda: dm2_fast.select(model, pool, 50, prepare=prepare)  # noqa: E731
    expected = dm2_fast.select(model, pool, 50, prepare="off")
    torch.testing.assert_close(call().scores, expected.scores, atol=1e-6, rtol=0)
    timed(call, rows=500, k=10)
