"""knn and pairwise on ReLU-like features, against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dm2_fast


def features(m: int, d: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(32, d, generator=generator)
    return (torch.randn(m, 32, generator=generator) @ basis).relu().to(device)


@pytest.mark.parametrize(("m", "d"), [(1000, 128), (1000, 512)])
def bench_knn(timed: Callable[..., Any], backend: str, device: torch.device, m: int, d: int) -> None:
    x, k = features(m, d, device), 10
    _, expected = dm2_fast.knn(x[:200], k, backend="torch")
    _, found = dm2_fast.knn(x[:200], k, backend=backend)
    assert (found == expected).float().mean() > 0.999
    timed(lambda: dm2_fast.knn(x, k, backend=backend), m=m, d=d, k=k, steps=m * m * d)


@pytest.mark.parametrize(("m", "d"), [(1000, 128), (1000, 512)])
def bench_pairwise(timed: Callable[..., Any], backend: str, device: torch.device, m: int, d: int) -> None:
    x = features(m, d, device)
    expected = dm2_fast.pairwise(x[:200], backend="torch")
    torch.testing.assert_close(dm2_fast.pairwise(x[:200], backend=backend), expected)
    timed(lambda: dm2_fast.pairwise(x, backend=backend), m=m, d=d, steps=m * m * d)
