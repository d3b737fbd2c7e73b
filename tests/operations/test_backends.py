import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dm2_fast
from dm2_fast.info import info
from dm2_fast.operations import backends, cpp, reference

needs_kernels = pytest.mark.skipif(backends.triton_is_missing() is not None, reason=str(backends.triton_is_missing()))
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


HEAVY = ("triton", "torchvision", "sklearn", "scipy", "matplotlib", "jsonargparse", "yaml")

# Runs in a process that does not interpret Triton and has imported nothing else.
FRESH = """
import json, os, sys
import dm2_fast

seen = {}
seen["before use"] = sorted({name.partition(".")[0] for name in sys.modules})
dm2_fast.knn
seen["imported"] = sorted({name.partition(".")[0] for name in sys.modules})
import torch
x = torch.arange(12.0).reshape(4, 3)
indices = dm2_fast.knn(x, 2)[1]
dm2_fast.uncertainty(dm2_fast.mix(x, indices, 0.5))
dm2_fast.pairwise(x)
seen["used"] = sorted({name.partition(".")[0] for name in sys.modules})

def error(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]

seen["errors"] = [error(call) for call in (
    lambda: dm2_fast.knn(x, 1, backend="triton"),
    lambda: dm2_fast.pairwise(x, backend="triton"),
    lambda: dm2_fast.mix(x, indices, 0.5, backend="triton"),
    lambda: dm2_fast.uncertainty(x, backend="triton"),
)]
import triton
os.environ["TRITON_INTERPRET"] = "1"
seen["late"] = error(lambda: dm2_fast.knn(x, 1, backend="triton"))
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", FRESH], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_the_cpu_is_served_by_cpp(dtype: torch.dtype) -> None:
    assert backends.resolve("auto", torch.zeros(2, 2, dtype=dtype), "knn") is cpp


@pytest.mark.parametrize("dtype", [torch.uint8, *FLOATS])
def test_other_devices_are_served_by_torch(dtype: torch.dtype) -> None:
    assert backends.resolve("auto", torch.zeros(2, 2, dtype=dtype, device="meta"), "knn") is reference


@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_may_be_forced_everywhere(dtype: torch.dtype) -> None:
    for device in ("cpu", "meta"):
        assert backends.resolve("torch", torch.zeros(2, 2, dtype=dtype, device=device), "knn") is reference


@needs_kernels
def test_triton_serves_the_gpu_or_the_interpreter_but_for_float64() -> None:
    from dm2_fast import kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for dtype in (torch.uint8, torch.float16, torch.bfloat16, torch.float32):
        x = torch.zeros(2, 2, dtype=dtype, device=device)
        assert backends.resolve("triton", x, "knn") is kernels
        assert backends.resolve("auto", x, "knn") is (kernels if device == "cuda" else cpp)
    double = torch.zeros(2, 2, dtype=torch.float64, device=device)
    assert backends.resolve("auto", double, "knn") is (reference if device == "cuda" else cpp)


@pytest.mark.parametrize(
    ("backend", "x", "error", "message"),
    [
        ("cuda", torch.zeros(2), ValueError, "backend must be one of auto, triton, cpp, torch, got 'cuda'"),
        ("", torch.zeros(2), ValueError, "backend must be one of auto, triton, cpp, torch, got ''"),
        (None, torch.zeros(2), ValueError, "backend must be one of auto, triton, cpp, torch, got None"),
        (
            "cpp",
            torch.zeros(2, device="meta"),
            RuntimeError,
            r"backend='cpp' needs a CPU tensor, got device=meta \(use backend='auto'\)",
        ),
        (
            "triton",
            torch.zeros(2, dtype=torch.float64),
            RuntimeError,
            r"backend='triton' needs float32, float16 or bfloat16, got float64 \(use backend='torch'\)",
        ),
    ],
)
def test_what_cannot_run_says_why_and_what_to_do(
    backend: str, x: torch.Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        backends.resolve(backend, x, "knn")


@needs_kernels
def test_triton_without_a_gpu_or_the_interpreter_says_what_to_do(fresh: dict[str, Any]) -> None:
    want = "backend='triton' needs a CUDA tensor, got device=cpu (or set TRITON_INTERPRET=1 before triton is imported)"
    assert fresh["errors"] == [["RuntimeError", want]] * 4


@needs_kernels
def test_an_interpreter_that_was_asked_for_too_late_says_what_to_do(fresh: dict[str, Any]) -> None:
    error, message = fresh["late"]
    assert error == "RuntimeError"
    assert "set TRITON_INTERPRET=1 before triton is imported" in message


def test_triton_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == "triton" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    x = torch.zeros(2, 2, device="cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(
        RuntimeError, match=r"'triton' needs the triton package \(on Linux, pip install 'dm2_fast\[triton\]'\)"
    ):
        backends.resolve("triton", x, "knn")


@pytest.fixture
def said_nothing_yet() -> Iterator[None]:
    for said in (backends._extension, backends._kernels):
        said.cache_clear()
    yield
    for said in (backends._extension, backends._kernels):
        said.cache_clear()


@pytest.mark.usefixtures("said_nothing_yet")
@pytest.mark.parametrize(("version", "enough"), [("3.2.0", False), ("3.5.1", False), ("3.6.0", True), ("4.0.0", True)])
def test_a_triton_that_is_too_old_leaves_a_gpu_to_plain_torch_and_says_so_once(
    version: str, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triton.__version__", version)
    gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32)
    if enough:
        assert backends.implementation("auto", gpu, "knn").__name__ == "dm2_fast.kernels"
        return
    with pytest.warns(UserWarning, match=rf"plain torch is used .* triton 3.6 or newer, got {version}"):
        assert backends.implementation("auto", gpu, "knn") is reference
    assert backends.implementation("auto", gpu, "knn") is reference
    with pytest.raises(RuntimeError, match=rf"backend='triton' needs triton 3.6 or newer, got {version}"):
        backends.implementation("triton", gpu, "knn")


@pytest.mark.usefixtures("said_nothing_yet")
def test_without_the_extension_a_cpu_runs_plain_torch_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(9, 4)
    expected = dm2_fast.knn(x, 2, backend="torch")
    monkeypatch.setitem(sys.modules, "dm2_fast._C", None)
    with pytest.warns(UserWarning, match="since the C\\+\\+ extension is missing") as warned:
        distances, indices = dm2_fast.knn(x, 2)
    assert len(warned) == 1
    dm2_fast.knn(x, 2)  # a second warning would be an error
    assert torch.equal(distances, expected[0])
    assert torch.equal(indices, expected[1])
    with pytest.raises(RuntimeError, match="backend='cpp' needs the C\\+\\+ extension: install a wheel"):
        dm2_fast.knn(x, 2, backend="cpp")
    assert any("cpp" in line and "C++ extension: missing" in line for line in info(Path(".")))


def test_threads_are_an_option_of_cpp_alone() -> None:
    assert backends.thread_options(cpp, 3) == {"num_threads": 3}
    assert backends.thread_options(cpp, None) == {}
    assert backends.thread_options(reference, 3) == {}
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"num_threads must be at least 1, got {wrong}"):
            backends.thread_options(reference, wrong)


@pytest.mark.parametrize("when", ["imported", "used"])
def test_the_core_loads_only_torch_and_numpy(fresh: dict[str, Any], when: str) -> None:
    assert {"torch", "numpy"} <= set(fresh[when])
    assert not set(HEAVY) & set(fresh[when])
    assert "torch" not in fresh["before use"]
