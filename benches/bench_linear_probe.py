"""linear_probe on ReLU-like features with ten neighbours, against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_distance import features

import dm2_fast


@pytest.mark.parametrize("classes", [10, 100])
def bench_linear_probe(timed: Callable[..., Any], backend: str, device: torch.device, classes: int) -> None:
    m, d, k = 10_000, 512, 10
    generator = torch.Generator().manual_seed(1)
    x = features(m, d, device)
    neighbours = torch.randint(0, m, (m, k), generator=generator).to(device)
    weight = torch.randn(classes, d, generator=generator).to(device) / d**0.5
    bias = torch.randn(classes, generator=generator).to(device)
    some = torch.arange(500, device=device)
    expected = dm2_fast.linear_probe(x, neighbours[:500], 0.5, weight, bias, rows=some, backend="torch")
    found = dm2_fast.linear_probe(x, neighbours[:500], 0.5, weight, bias, rows=some, backend=backend)
    torch.testing.assert_close(found, expected)
    call = lambda: dm2_fast.linear_probe(x, neighbours, 0.5, weight, bias, backend=backend)  # noqa: E731
    timed(call, rows=m, d=d, k=k, classes=classes)
