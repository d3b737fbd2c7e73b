"""The whole round, `select` on CIFAR-sized images with a small network, against the model as it is."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch

import dm2_fast
from dm2_fast.experiment import models


@pytest.mark.parametrize("prepare", ["auto", "off"])
def bench_select(timed: Callable[..., Any], device: torch.device, prepare: Literal["auto", "off"]) -> None:
    torch.manual_seed(0)
    model = models.build("mobilenet", 3, (32, 32), 10).to(device)
    pool = torch.randint(0, 256, (500, 3, 32, 32), dtype=torch.uint8)
    expected = dm2_fast.select(model, pool, 50, prepare="off")
    torch.testing.assert_close(
        dm2_fast.select(model, pool, 50, prepare=prepare).scores, expected.scores, atol=1e-6, rtol=0
    )
    timed(lambda: dm2_fast.select(model, pool, 50, prepare=prepare), rows=500, k=10)
