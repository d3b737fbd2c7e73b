"""What a run would find on this machine."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dm2_fast import extras
from dm2_fast.experiment.data import sets
from dm2_fast.experiment.machine import versions
from dm2_fast.operations import backends, kernel_check
from dm2_fast.words import count


@dataclass(frozen=True)
class InfoConfig:
    """What to look at.

    Args:
        data_dir: Folder of the torchvision data sets.
        check: Also compare every GPU kernel with plain torch, on each GPU; without one, in Triton's interpreter.
    """

    data_dir: Path = Path("data")
    check: bool = False


def write_info(config: InfoConfig, echo: Callable[[str], None]) -> bool:
    """Echo `info`, and the check of the kernels if it is asked for; whether that found nothing wrong."""
    lines, agree = check_kernels() if config.check else ([], True)  # first: it decides whether Triton is interpreted
    for line in [*info(config.data_dir), *lines]:
        echo(line)
    return agree


def info(data_dir: Path) -> list[str]:
    """Describe versions, devices, backends and data sets, a line each; what is missing with what to do about it."""
    sections = {
        "versions": versions(),
        "extras": extras.installed(),
        "devices": _devices(),
        "backends": _backends(),
        "data sets": _data_sets(data_dir),
    }
    lines: list[str] = []
    for title, entries in sections.items():
        lines += ["", title, *(f"  {name:<15}{what}" for name, what in entries)]
    return lines[1:]


def check_kernels() -> tuple[list[str], bool]:
    """Compare every Triton kernel with plain torch: a line each, and whether all agree."""
    devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    lines = ["", "kernels"]
    if not devices:
        lines[1] += ", interpreted because there is no GPU: their results, not their code"
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported
    agree = True
    for device in devices or [torch.device("cpu")]:
        try:
            backends.implementation("triton", torch.zeros(1, 1, device=device), "knn")
        except RuntimeError as error:
            lines.append(f"  {device!s:<15}not checked: {error}")
            continue
        for operation in kernel_check.OPERATIONS:
            problem, seconds = kernel_check.time_check(operation, device)
            agree &= problem is None
            what = f"agrees with plain torch, {1000 * seconds:.0f} ms" if problem is None else f"disagrees: {problem}"
            lines.append(f"  {operation:<15}{what}{f' on {device}' if devices else ''}")
    return lines, agree


def _devices() -> Iterator[tuple[str, str]]:
    yield "cpu", f"{count(torch.get_num_threads(), 'thread')} (--threads, or OMP_NUM_THREADS)"
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
        if name == "cpp" and not backends.has_extension():
            yield name, f"{backends.extension()} ({backends.BUILD_EXTENSION})"
            continue
        try:
            module = backends.implementation(name, x, "knn")
        except RuntimeError as error:
            yield name, f"not available: {error}"
        else:
            detail = f", {backends.extension()}" if name == "cpp" else ""
            yield name, "available" + (", interpreted" if getattr(module, "INTERPRETED", False) else detail)


def _data_sets(data_dir: Path) -> Iterator[tuple[str, str]]:
    for name in sets.NAMES:
        place = sets.place(name, data_dir)
        if place is None:
            yield name, "comes with scikit-learn"
        elif place.exists():
            yield name, f"found in {place}"
        else:
            yield name, f"not found: {place} (--data-dir, or dm2-fast run --dataset {name} --download)"
