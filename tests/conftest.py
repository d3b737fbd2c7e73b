"""Triton runs interpreted where there is no GPU, and memory that nobody wrote is seen."""

import importlib
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from dm2_fast.operations.backends import triton_is_missing

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported, which import torch does not do

os.environ.pop("COLUMNS", None)  # a width that pytest-xdist sets, to which commands would fit their lines

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what it runs in the background ignore it

settings.register_profile("dm2", derandomize=True, deadline=None, max_examples=25)
settings.load_profile("dm2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a triton that is too old for the kernels, which `auto` then leaves out, their tests are left out too."""
    why = triton_is_missing()
    for item in items:
        named = any(word in item.name for word in ("triton", "_tile")) and item.path.name != "test_backends.py"
        of_kernels = item.path.parent.name == "kernels" or named
        if why and (of_kernels or "large_tiles" in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason=f"the kernels need {why}"))


def _poison(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*args: Any, **kwargs: Any) -> Tensor:
        out = allocate(*args, **kwargs)
        if out.device.type == "meta" or out.dtype == torch.bool:
            return out
        with torch.no_grad():
            if out.is_floating_point() or out.is_complex():
                return out.fill_(torch.nan)
            return out.fill_(torch.iinfo(out.dtype).max // 3)

    return poisoned


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", _poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", _poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poison(torch.Tensor.new_empty))


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large tiles, since the interpreter pays per operation and not per element."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        tile = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": 32, "num_warps": 4}
        module = importlib.import_module("dm2_fast.kernels.knn")
        monkeypatch.setattr(module, "_TILE", tile)
        monkeypatch.setattr(module, "_BLOCK_K", 64)


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "triton":
        request.getfixturevalue("large_tiles")
    return request.param
