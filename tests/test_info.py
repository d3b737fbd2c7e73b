import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

import dm2_fast
from dm2_fast import _C
from dm2_fast.cli import main
from dm2_fast.info import info
from dm2_fast.operations.backends import triton_is_missing


def section(lines: list[str], title: str) -> dict[str, str]:
    """The entries below a title, by their first word."""
    start = lines.index(title) + 1
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return {line.split()[0]: line.strip().partition(" ")[2].strip() for line in lines[start:end]}


def test_info_tells_versions_devices_backends_and_data_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    main(["info", "--data-dir", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    versions = section(lines, "versions")
    assert versions["dm2_fast"] == dm2_fast.__version__
    assert versions["python"].startswith(platform.python_version())
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["numpy"] == numpy.__version__
    assert list(versions) == ["python", "dm2_fast", "torch", "torchvision", "triton", "numpy"]
    devices = section(lines, "devices")
    assert devices["cpu"].startswith(f"{torch.get_num_threads()} thread")
    assert devices["cuda"].startswith("no GPU: ")
    backends = section(lines, "backends")
    assert backends["torch"] == "available"
    assert backends["cpp"] == f"available, instruction set {_C.isa()}"
    found = section(lines, "data sets")
    assert found["digits"] == "comes with scikit-learn"
    assert found["mnist"] == f"found in {tmp_path}/MNIST/raw"
    assert found["svhn"].startswith(
        f"not found: {tmp_path}/train_32x32.mat (--data-dir, or dm2-fast run --dataset svhn"
    )
    assert len({line.index(line.split()[1]) for line in lines if line.startswith("  ")}) == 1, "columns are aligned"


def test_info_says_why_a_backend_is_not_available_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "from dm2_fast.info import *; print('\\n'.join(info(Path('.'))))"
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    triton = section(done.stdout.splitlines(), "backends")["triton"]
    if triton_is_missing() is None:
        assert triton.startswith("not available: backend='triton' needs a CUDA tensor")
        assert "set TRITON_INTERPRET=1" in triton
    else:
        assert triton.startswith("not available: backend='triton' needs triton 3.6 or newer")

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("dm2_fast.experiment.machine.metadata.version", missing)
    assert section(info(Path(".")), "versions")["triton"] == "not installed (pip install triton)"


def test_the_instruction_set_is_one_that_the_search_takes() -> None:
    assert _C.isa() in ("avx2", "neon", "generic")
    x = torch.rand(9, 4).numpy()
    ids, ones = numpy.arange(9), numpy.ones(9, numpy.float32)
    best = numpy.full((9, 2), numpy.inf, numpy.float32), numpy.full((9, 2), -1, numpy.int64)
    _C.knn(x, ones, ids, x, ones, ids, *best, 1.0, 1.0, num_threads=1, isa=_C.isa())


def test_torchvision_is_not_loaded_before_it_is_needed() -> None:
    command = "import sys, dm2_fast.cli; sys.exit('torchvision' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
