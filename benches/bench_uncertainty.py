"""uncertainty of logits, against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dm2_fast
from dm2_fast.operations.uncertainty import Uncertainty


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("kind", ["least-confidence", "entropy", "margin"])
def bench_uncertainty(
    timed: Callable[..., Any], backend: str, device: torch.device, kind: Uncertainty, classes: int
) -> None:
    logits = 3 * torch.randn(50_000, classes, generator=torch.Generator().manual_seed(0)).to(device)
    expected = dm2_fast.uncertainty(logits[:500], kind, backend="torch")
    torch.testing.assert_close(dm2_fast.uncertainty(logits[:500], kind, backend=backend), expected)
    timed(lambda: dm2_fast.uncertainty(logits, kind, backend=backend), rows=50_000, classes=classes)
