"""The sdist and the wheel that is built from it, installed beside the packages of this environment and nowhere else."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dm2_fast import __version__

pytestmark = [pytest.mark.slow, pytest.mark.release, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parent.parent
BUILD_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


def command(*arguments: object, folder: Path, path: str = os.environ["PATH"]) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "PYTHONPATH")}
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env=environment | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build_wheel(sdist: Path, folder: Path, path: str) -> tuple[Path, str]:
    said = command(
        sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", folder, sdist,
        folder=folder, path=path,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel, said


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    source = folder / "source"
    source.mkdir()
    for part in ("dm2_fast", "kernels", "csrc"):
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, source)
    return folder / command(sys.executable, "-c", BUILD_SDIST, folder, folder=source).splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"), os.environ["PATH"])[0]


def environment_with(wheel: Path, folder: Path) -> Path:
    """The Python of a new environment with this wheel, which sees the packages installed here, the source tree not."""
    command(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder)
    python = folder / "env" / "bin" / "python"
    site = Path(command(python, "-c", "import site; print(site.getsitepackages()[0])", folder=folder).strip())
    others = [entry for entry in sys.path if entry.endswith("-packages")]
    (site / "others.pth").write_text("\n".join(others))
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    command(sys.executable, "-m", "pip", "--python", python, *install, folder=folder)
    where = command(python, "-c", "import dm2_fast; print(dm2_fast.__file__)", folder=folder).strip()
    assert Path(where).is_relative_to(folder)
    assert command(python.with_name("dm2-fast"), "--version", folder=folder) == f"dm2-fast {__version__}\n"
    return python


def test_the_wheel_passes_the_tests_of_the_core_without_a_compiler(wheel: Path, tmp_path: Path) -> None:
    python = environment_with(wheel, tmp_path)
    for name in ("tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    nothing = str(tmp_path / "env" / "bin")
    assert shutil.which("g++", path=nothing) is shutil.which("cc", path=nothing) is None
    said = command(
        python, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider", "tests/operations", "tests/model",
        folder=tmp_path, path=nothing,
    )  # fmt: skip
    assert " passed" in said


def test_a_build_without_a_compiler_warns_and_runs_plain_torch(sdist: Path, tmp_path: Path) -> None:
    built, said = build_wheel(sdist, tmp_path, "")
    assert said.count('building extension "dm2_fast._C" failed') == 1
    with zipfile.ZipFile(built) as archive:
        assert not [name for name in archive.namelist() if "_C." in name and name.endswith(".so")]
    python = environment_with(built, tmp_path)
    code = "import torch, dm2_fast; print(dm2_fast.knn(torch.eye(4), 1)[1].tolist())"
    found = command(python, "-c", code, folder=tmp_path, path="")
    assert found.count("the C++ extension is missing") == 1
    assert found.splitlines()[-1] == "[[1], [0], [0], [0]]"
    assert "C++ extension: missing" in command(python, "-m", "dm2_fast", "info", folder=tmp_path, path="")


def test_the_wheel_holds_what_is_used_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    wanted = {"kernels/knn.py", "py.typed", "_C.pyi", "paper/protocols/small-probe.yaml"}
    assert {f"dm2_fast/{name}" for name in wanted} <= set(names)
    assert len([name for name in names if name.startswith("dm2_fast/_C.") and name.endswith(".so")]) == 1
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"dm2_fast"}


def test_the_core_replaces_no_package_of_a_running_project(wheel: Path, tmp_path: Path) -> None:
    """Without an index pip fails unless what stands here satisfies the wheel; it would install dm2_fast alone."""
    report = tmp_path / "report.json"
    pip = (sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--report", report)
    command(*pip, wheel, folder=tmp_path)
    found = json.loads(report.read_text())["install"]
    assert {package["metadata"]["name"] for package in found} <= {"dm2_fast"}
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    wanted = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    assert sorted(wanted) == ["Requires-Dist: numpy>=1.26", "Requires-Dist: torch>=2.5"]
