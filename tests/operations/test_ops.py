"""The operations under torch.compile and torch.export, on the CPU."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dm2_fast
import dm2_fast.ops

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
INDICES = torch.arange(40).reshape(20, 2) * 7 % 20
LAM, WEIGHT = torch.tensor(0.25), X[:3] * 2
PIXELS = torch.arange(20 * 3 * 2 * 4).remainder(256).to(torch.uint8).reshape(20, 3, 2, 4)
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "knn": (torch.ops.dm2_fast.knn, (X, 3)),
    "knn of queries": (torch.ops.dm2_fast.knn, (X.double(), 20, "rms", X[:5].double(), "torch")),
    "mix": (torch.ops.dm2_fast.mix, (X, INDICES, LAM)),
    "mix of pixels": (
        torch.ops.dm2_fast.mix,
        (
            PIXELS.contiguous(memory_format=torch.channels_last),
            INDICES[:2],
            LAM,
            None,
            torch.tensor([4, 0]),
            [0.5] * 3,
            [0.2] * 3,
        ),
    ),
    "linear probe": (torch.ops.dm2_fast.linear_probe, (X, INDICES, LAM, WEIGHT)),
    "linear probe in double": (
        torch.ops.dm2_fast.linear_probe,
        (X.double(), INDICES, LAM, WEIGHT.double(), torch.zeros(3).double(), "entropy"),
    ),
}


def acquisition(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    _, indices = torch.ops.dm2_fast.knn(x * 2, 3)
    mixed = torch.ops.dm2_fast.mix(x, indices, x.new_tensor(0.5))
    scores = torch.ops.dm2_fast.linear_probe(x, indices, x.new_tensor(0.5), weight)
    return mixed.relu() + 1, scores * 2


def want(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    indices = dm2_fast.knn(x, 3)[1]
    return dm2_fast.mix(x, indices, 0.5).relu() + 1, dm2_fast.linear_probe(x, indices, 0.5, weight) * 2


@pytest.mark.parametrize("name", CALLS)
def test_operations_are_registered_soundly(name: str) -> None:
    op, arguments = CALLS[name]
    results = torch.library.opcheck(op.default, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_tracer_is_told_is_what_comes(name: str) -> None:
    op, arguments = CALLS[name]
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        told = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
    came = op(*arguments)
    for fake, real in zip(*([t] if isinstance(t, Tensor) else t for t in (told, came)), strict=True):
        assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


def test_operations_compile_into_one_graph() -> None:
    compiled: Callable[..., Any] = torch.compile(acquisition, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(X, WEIGHT), want(X, WEIGHT), strict=True):
        assert torch.equal(got, expected)


def test_operations_export_for_any_number_of_rows() -> None:
    class Acquisition(torch.nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
            return acquisition(x, weight)

    rows = torch.export.Dim("rows", min=5)
    program = torch.export.export(Acquisition(), (X, WEIGHT), dynamic_shapes=({0: rows}, None))
    for x in (X, X[:11]):
        for got, expected in zip(program.module()(x, WEIGHT), want(x, WEIGHT), strict=True):
            assert torch.equal(got, expected)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="k must be in .*, got 20"):
        torch.ops.dm2_fast.knn(X, 20)
    with pytest.raises(ValueError, match="mean and std must both be given or left out, got mean="):
        torch.ops.dm2_fast.mix(X, INDICES, LAM, mean=[0.5])


def test_registering_loads_nothing_heavy() -> None:
    code = "import sys, dm2_fast.ops; print([m for m in ('triton', 'torchvision', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
