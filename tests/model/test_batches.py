"""Plain batches are the samples: bit for bit, in the layout in which mixed ones come, whatever the pool is."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mix import mix

POOL = torch.rand(11, 3, 4, 5, generator=torch.Generator().manual_seed(0)) - 0.5
POOLS = {
    "contiguous": POOL,
    "channels_last": POOL.to(memory_format=torch.channels_last),
    "every second": POOL.repeat_interleave(2, 0)[::2],
    "turned": POOL.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
    "float64": POOL.double(),
    "bfloat16": POOL.bfloat16(),
    "array": POOL.numpy(),
    "gradient": POOL.clone().requires_grad_(),
}


@pytest.mark.parametrize("normalize", [None, (0.5, (1.0, 2.0, 4.0))])
@pytest.mark.parametrize("name", POOLS)
def test_batches_are_mixtures_with_nothing(name: str, normalize: tuple | None) -> None:
    pool = POOLS[name]
    model = nn.Conv2d(3, 4, 3)
    model.to(torch.float64 if name == "float64" else torch.float32)
    found = list(ForwardPass(model, pool, normalize, batch_size=4).batches("plain"))
    assert [(first, keep) for _, first, keep in found] == [(0, 4), (4, 4), (8, 3)]
    with torch.no_grad():
        for batch, first, keep in found:
            assert isinstance(batch, Tensor)
            rows = torch.arange(first, first + 4).clamp(max=10)
            expected = mix(pool, torch.empty(4, 0, dtype=torch.int64), 1.0, rows=rows, normalize=normalize)
            assert torch.equal(batch, expected.to(model.weight.dtype))
            assert batch.stride() == expected.stride()
            assert not batch.requires_grad
            if normalize is None:
                assert torch.equal(batch[:keep], torch.as_tensor(pool)[first : first + keep].to(batch.dtype))
            batch.zero_()  # of its own memory
    assert np.abs(np.asarray(torch.as_tensor(pool).detach().float())).max() > 0.4
