"""Imports run downwards through the package, and every package that it needs is declared."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PACKAGE, KERNELS, CSRC = ROOT / "dm2_fast", ROOT / "kernels", ROOT / "csrc"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each imports itself and those behind it; dm2_fast is the package's own __init__.py.
ORDER = (
    "__main__", "cli", "commands", "options", "info", "paper", "selecting", "experiment", "adapters", "ops", "dm2_fast",
    "distributed", "acquire", "strategies", "plugins", "strategy", "training_part", "adversarial", "round", "share",
    "picked", "traps", "stage", "model", "operations", "threads", "draws", "terminal", "extras", "progress", "words",
    "kernels", "_C",
)  # fmt: skip
CORE = ORDER[ORDER.index("dm2_fast") :]
EXTRAS = ("run", "strategies", "triton", "robust", "skactiveml", "baal", "small-text", "tensorboard")
# By make test.
NAMED_OTHERWISE = {  # and not installed here, or not known to Python 3.10
    "skactiveml": ["scikit-activeml"], "small_text": ["small-text"], "baal": ["baal"], "pyautoattack": ["pyautoattack"],
    "sklearn": ["scikit-learn"],
}  # fmt: skip
ON_FIRST_USE = {("dm2_fast", "experiment")}  # in TYPE_CHECKING; __getattr__ imports what is asked for


def imported(file: Path, *, in_functions: bool = True) -> Iterator[str]:
    """The dotted names that a file imports; of `from x import y`, x.y."""
    nodes: list[ast.AST] = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif in_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.extend(ast.iter_child_nodes(node))


def part_of(file: Path) -> str:
    """Where a file of dm2_fast stands in ORDER."""
    part = file.relative_to(PACKAGE).with_suffix("").parts[0]
    return "dm2_fast" if part == "__init__" else part


def part_named(name: str) -> str | None:
    """Where an imported name stands in ORDER; None outside dm2_fast."""
    package, _, rest = name.partition(".")
    part = rest.partition(".")[0]
    if package != "dm2_fast":
        return None
    inside = part in ("kernels", "_C") or (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists()
    return part if part and inside else "dm2_fast"


def others(names: Iterator[str]) -> set[str]:
    """The packages among these names that do not come with Python."""
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"dm2_fast"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downwards(file: Path) -> None:
    here = part_of(file)
    for name in imported(file):
        there = part_named(name)
        if there is not None and (here, there) not in ON_FIRST_USE:
            assert ORDER.index(there) >= ORDER.index(here), f"{here} must not import {name}"


def test_every_part_has_its_place() -> None:
    assert {part_of(file) for file in FILES} == set(ORDER) - {"kernels", "_C"}


def test_the_core_loads_torch_and_numpy_only() -> None:
    core = [file for file in FILES if part_of(file) in CORE]
    assert {package for file in core for package in others(imported(file, in_functions=False))} <= {
        "numpy",
        "torch",
    }


FRESH = """
import json, sys
import numpy, torch
before = set(sys.modules)
import dm2_fast
dm2_fast.select, dm2_fast.knn, dm2_fast.fgsm
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_dm2_fast_loads_nothing_else() -> None:
    done = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert "dm2_fast.acquire" in loaded
    heavy = (
        "matplotlib", "sklearn", "scipy", "yaml", "torchvision", "jsonargparse", "triton", "threadpoolctl", "tqdm",
        "skactiveml", "baal", "small_text", "tensorboard",
    )  # fmt: skip
    assert [name for name in loaded if name.partition(".")[0] in heavy] == []
    assert {part_named(name) for name in loaded} - {None} <= {*CORE} - {"kernels"}


@pytest.mark.parametrize("file", sorted(KERNELS.glob("*.py")), ids=lambda file: file.name)
def test_kernels_import_torch_triton_and_themselves(file: Path) -> None:
    names = list(imported(file))
    assert others(iter(names)) <= {"torch", "triton"}
    assert all(name.startswith("dm2_fast.kernels.") for name in names if part_named(name))


def test_csrc_includes_the_standard_library_pybind11_and_itself() -> None:
    intrinsics = {"immintrin.h", "arm_neon.h"}
    sources = [*CSRC.glob("*.hpp"), *CSRC.glob("*.cpp")]
    assert sources
    for file in sources:
        for bracket, header in re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', file.read_text(), re.MULTILINE):
            if bracket == '"':
                assert (CSRC / header).exists(), f"{file.name} includes {header}"
            elif header.startswith("pybind11/"):
                assert file.name.startswith("bind"), f"{file.name} includes {header}"
            else:
                assert header in intrinsics or header.isidentifier(), f"{file.name} includes {header}"


def test_what_is_imported_is_declared() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    declared = {plain(re.split(r"[^\w.-]", line)[0]) for line in lines}
    distributions = NAMED_OTHERWISE | packages_distributions()
    for package in sorted(others(name for file in (*FILES, *KERNELS.glob("*.py")) for name in imported(file))):
        names = distributions.get(package, [package])
        assert declared & {plain(name) for name in names}, f"{package} is not declared"
