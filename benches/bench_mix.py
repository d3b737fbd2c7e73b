"""mix on CIFAR-sized uint8 images with ten neighbours, normalised, against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dm2_fast


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def bench_mix(
    timed: Callable[..., Any], backend: str, device: torch.device, memory_format: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randint(0, 256, (5000, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    pool = pool.contiguous(memory_format=memory_format)
    rows = torch.arange(256, device=device)
    neighbours = torch.randint(0, 5000, (256, 10), generator=generator).to(device)
    options: dict[str, Any] = {"rows": rows, "normalize": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}
    expected = dm2_fast.mix(pool, neighbours, 0.5, backend="torch", **options)
    torch.testing.assert_close(dm2_fast.mix(pool, neighbours, 0.5, backend=backend, **options), expected)
    call = lambda: dm2_fast.mix(pool, neighbours, 0.5, backend=backend, **options)  # noqa: E731
    timed(call, rows=256, k=10, bytes_read=256 * 11 * 3072)
