"""What a run would find on this machine."""

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import dm2_fast
from dm2_fast import _C, backends, kernel_check
from dm2_fast.experiment import data


@dataclass(frozen=True)
class InfoConfig:
    """What to look at.

    Args:
        data_dir: Folder of the torchvision data sets.
        check: Also compare every GPU kernel with plain torch, on each GPU; without one, in Triton's interpreter.
    """

    data_dir: Path = Path("data")
    check: bool = False


def info(data_dir: Path) -> list[str]:
    """Describe versions, devices, backends and data sets, a line each; what is missing with what to do about it."""
    sections = {
        "versions": _versions(),
        "devices": _devices(),
        "backends": _backends(),
        "data sets": _data_sets(data_dir),
    }
    lines: list[str] = []
    for title, entries in sections.items():
        lines += ["", title, *(f"  {name:<14}{what}" for name, what in entries)]
    return lines[1:]


def check_kernels() -> tuple[list[str], bool]:
    """Compare every Triton kernel with plain torch: a line each, and whether all agree."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    lines = [
        "",
        "kernels" if devices else "kernels, interpreted because there is no GPU: their results, not their code",
    ]
    if not devices:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    agree = True
    for device in devices or [torch.device("cpu")]:
        try:
            backends.resolve("triton", torch.zeros(1, 1, device=device))
        except RuntimeError as error:
            lines.append(f"  {device!s:<14}not checked: {error}")
            continue
        for operation in kernel_check.OPERATIONS:
            problem, seconds = kernel_check.time_check(operation, device)
            agree &= problem is None
            what = f"agrees with plain torch, {1000 * seconds:.0f} ms" if problem is None else f"disagrees: {problem}"
            lines.append(f"  {operation:<14}{what}{f' on {device}' if devices else ''}")
    return lines, agree


def machine(device: torch.device) -> list[str]:
    """What timings depend on: the processor, the threads, the versions and the commit."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    here = Path(__file__).parent
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
    versions = [f"{name} {version}" for name, version in _versions()]
    return [
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}, instruction set {_C.isa()}",
        ", ".join([*versions, f"commit {commit.stdout.strip() or 'unknown'}"]),
    ]


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def _versions() -> Iterator[tuple[str, str]]:
    yield "dm2_fast", dm2_fast.__version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in ("torch", "torchvision", "triton", "numpy"):
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, f"not installed (pip install {package})"


def _devices() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{torch.get_num_threads()} threads (--threads, or OMP_NUM_THREADS)"
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        yield f"cuda:{i}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}"
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None or torch.version.hip is not None
        why = (
            "torch sees none (check its driver)" if built else "this torch is built without one (install one for CUDA)"
        )
        yield "cuda", f"no GPU: {why}"


def _backends() -> Iterator[tuple[str, str]]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in backends.NAMES[1:]:
        x = torch.zeros(1, 1, device="cpu" if name == "cpp" else device)
        try:
            module = backends.resolve(name, x)
        except RuntimeError as error:
            yield name, f"not available: {error}"
        else:
            detail = f", instruction set {_C.isa()}" if name == "cpp" else ""
            yield name, "available" + (", interpreted" if getattr(module, "INTERPRETED", False) else detail)


def _data_sets(data_dir: Path) -> Iterator[tuple[str, str]]:
    for name in data.NAMES:
        place = data.place(name, data_dir)
        if place is None:
            yield name, "comes with scikit-learn"
        elif place.exists():
            yield name, f"found in {place}"
        else:
            yield name, f"not found: {place} (--data-dir, or dm2-fast run --dataset {name} --download)"
