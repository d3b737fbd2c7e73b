"""Wrong kernels, planted through the interpreter, are found before their first result is used."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dm2_fast
from dm2_fast import kernels
from dm2_fast.cli import main
from dm2_fast.operations import backends, kernel_check, reference

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="plants errors through the interpreter")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Each test starts as a fresh process does, and leaves nothing found about planted kernels."""
    for cached in (kernel_check._fault, kernel_check._warn_once):
        cached.cache_clear()
    yield
    for cached in (kernel_check._fault, kernel_check._warn_once):
        cached.cache_clear()


def misplaced(right: Callable[..., None]) -> Callable[..., None]:
    """The last value of the result is not written."""

    def launch(*arguments: Any, **options: Any) -> None:
        out = next(a for a in reversed(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point())
        last = out.flatten()[-1].clone()
        right(*arguments, **options)
        out.view(-1)[-1] = last

    return launch


def last_tie(right: Callable[..., None]) -> Callable[..., None]:
    """Of equal distances the higher index comes first."""

    def launch(*arguments: Any, **options: Any) -> None:
        right(*arguments, **options)
        distances, indices = arguments[6:8]
        tied = distances[:, :-1] == distances[:, 1:]
        swapped = indices.clone()
        swapped[:, :-1][tied] = indices[:, 1:][tied]
        indices.copy_(swapped)

    return launch


def off(right: Callable[..., None]) -> Callable[..., None]:
    """Every value of the result is a thousandth too large."""

    def launch(*arguments: Any, **options: Any) -> None:
        right(*arguments, **options)
        next(a for a in reversed(arguments) if isinstance(a, torch.Tensor) and a.is_floating_point()).mul_(1.001)

    return launch


def crashed(right: Callable[..., None]) -> Callable[..., None]:
    def launch(*arguments: Any, **options: Any) -> None:
        raise ValueError("out of resource: shared memory")

    return launch


@pytest.mark.parametrize("operation", kernel_check.OPERATIONS)
def test_the_kernels_agree_with_plain_torch(operation: str) -> None:
    assert kernel_check.difference(operation, CPU) < 1e-5
    assert kernel_check.fault(operation, CPU) is None


@pytest.mark.parametrize("plant", [misplaced, off, crashed, last_tie])
@pytest.mark.parametrize("operation", kernel_check.OPERATIONS)
def test_a_wrong_kernel_is_found(operation: str, plant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if plant is last_tie and operation != "knn":
        return
    monkeypatch.setattr(kernels, operation, plant(getattr(kernels, operation)))
    found = kernel_check.fault(operation, CPU)
    assert found is not None
    assert found.startswith("ValueError: out of resource" if plant is crashed else "largest difference ")


def test_a_filter_that_loses_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dm2_fast.kernels.codes.margin", lambda error: torch.zeros(len(error), dtype=torch.int32))
    monkeypatch.setattr("dm2_fast.kernels.codes.reach", lambda l1, *rest: (l1 * 0).nan_to_num().int())
    assert str(kernel_check.fault("knn", CPU)).startswith("largest difference ")


def test_a_forced_kernel_that_disagrees_raises_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(9, 4)
    monkeypatch.setattr(kernels, "knn", misplaced(kernels.knn))
    want = (
        r"the Triton kernel 'knn' disagrees with plain torch on the cpu \(interpreted\): largest difference .* "
        r"\(use backend='torch'; please report this in the issue tracker of dm2_fast, with the output of dm2-fast info"
    )
    for _ in range(2):
        with pytest.raises(RuntimeError, match=want):
            dm2_fast.knn(x, 2, backend="triton")
    dm2_fast.pairwise(x, backend="triton")  # each kernel stands for itself


def test_auto_takes_plain_torch_where_a_kernel_disagrees_and_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "mix", off(kernels.mix))
    monkeypatch.setattr(kernel_check, "_name", lambda device: "a GPU")
    trusted = kernel_check.trusted
    monkeypatch.setattr(
        kernel_check, "trusted", lambda k, operation, device, forced: trusted(k, operation, CPU, forced)
    )
    x: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    with pytest.warns(
        RuntimeWarning, match=r"kernel 'mix' disagrees with plain torch on a GPU: largest difference 0\.0"
    ):
        assert backends.resolve("auto", x, "mix") is reference
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert backends.resolve("auto", x, "mix") is reference
        assert backends.resolve("auto", x, "uncertainty") is kernels


def test_a_kernel_is_checked_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    find = kernel_check.difference
    monkeypatch.setattr(kernel_check, "difference", lambda *given: calls.append(given) or find(*given))
    for _ in range(3):
        dm2_fast.uncertainty(torch.rand(5, 3), backend="triton")
    assert calls == [("uncertainty", CPU)]


def test_the_defaults_of_torch_do_not_matter_to_the_check() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            assert [kernel_check.fault(operation, CPU) for operation in kernel_check.OPERATIONS] == [None] * 5
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_info_check_prints_a_line_for_each_kernel(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    main(["info", "--check"])
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("kernels, interpreted because there is no GPU: their results, not their code")
    assert [line.split()[0] for line in lines[start + 1 :]] == list(kernel_check.OPERATIONS)
    assert all("agrees with plain torch, " in line and line.endswith(" ms") for line in lines[start + 1 :])

    _ = [cached.cache_clear() for cached in (kernel_check._fault, kernel_check._warn_once)]
    monkeypatch.setattr(kernels, "linear_probe", off(kernels.linear_probe))
    with pytest.raises(SystemExit) as exit:
        main(["info", "--check"])
    assert exit.value.code == 1
    assert "  linear_probe   disagrees: largest difference 0.00" in capsys.readouterr().out


def test_info_check_interprets_without_being_asked_to() -> None:
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "dm2_fast", "info", "--check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count("agrees with plain torch") == 5, done.stdout + done.stderr
