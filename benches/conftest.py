"""What the benches share: the device, its backends, and a clock that waits for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BACKENDS = ("triton", "torch") if DEVICE.type == "cuda" else ("cpp", "torch")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def device() -> torch.device:
    return DEVICE


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """Time call() after one warm-up round, which pays any compilation; info is saved beside the timings."""

    def synchronised(call: Callable[[], Any]) -> Any:
        result = call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    def run(call: Callable[[], Any], **info: Any) -> Any:
        benchmark.extra_info.update(info)
        return benchmark.pedantic(synchronised, args=(call,), rounds=5, warmup_rounds=1)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    if DEVICE.type == "cuda":
        machine_info["gpu"] = torch.cuda.get_device_name()
