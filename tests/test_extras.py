"""An environment without the extras, made by blocking the imports of what they install."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dm2_fast import extras

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

BLOCKED = (
    "baal", "skactiveml", "small_text", "tensorboard",
    "docstring_parser", "jsonargparse", "matplotlib", "scipy", "sklearn", "threadpoolctl", "torchvision", "tqdm",
    "triton", "yaml",
)  # fmt: skip

CORE = """
import importlib, json, pkgutil, sys, warnings
for package in BLOCKED:
    sys.modules[package] = None
warnings.simplefilter("error")
warnings.filterwarnings("ignore", "vaal trains|ll4al trains")
import torch
import dm2_fast
from dm2_fast.extras import MissingExtra

seen = {"modules": {}, "picked": {}, "said": {}}

def said(name, call):
    try:
        call()
    except MissingExtra as error:
        seen["said"][name] = str(error)

for module in pkgutil.walk_packages(dm2_fast.__path__, "dm2_fast."):
    if module.name.startswith("dm2_fast.kernels") or module.name == "dm2_fast.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except MissingExtra as error:
        seen["modules"][module.name] = str(error)
for name in dm2_fast.__all__:
    getattr(dm2_fast, name)

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
pool, labelled, labels = torch.randn(40, 4), torch.randn(9, 4), torch.arange(9) % 3

def pick(strategy):
    picked = dm2_fast.select(model, pool, 5, strategy, labelled=labelled, labels=labels)
    seen["picked"][strategy] = len(picked.indices)

for strategy in dm2_fast.strategies.names():
    said(strategy, lambda: pick(strategy))
said("run", lambda: dm2_fast.run(dm2_fast.RunConfig()))
said("beta", lambda: dm2_fast.select(model, pool, 5, options=dm2_fast.DM2Config(lam="beta")))
from dm2_fast.experiment import models
from dm2_fast.experiment.data import sets
for name in ("resnet18", "vgg16"):
    said(name, lambda: models.build(name, 3, (32, 32), 10))
for name in ("digits", "cifar10"):
    said(name, lambda: sets.load(name))
print(json.dumps(seen))
""".replace("BLOCKED", repr(BLOCKED))


@pytest.fixture(scope="module")
def core() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", CORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_module_can_be_imported_but_for_those_of_the_commands_and_the_adapters(core: dict[str, Any]) -> None:
    lacking = {name.removeprefix("dm2_fast."): said for name, said in core["modules"].items()}
    adapters = {name: said for name, said in lacking.items() if name.startswith("adapters.")}
    for name in adapters:
        del lacking[name]
    assert [name for name in lacking if not name.startswith("paper.")] == ["commands", "options"]
    assert {said.partition(": ")[2] for said in lacking.values()} == {"pip install 'dm2_fast[run]'"}
    assert {name.partition(".")[2]: said.partition(" needs ")[2] for name, said in adapters.items()} == {
        "baal": "baal: pip install 'dm2_fast[baal]'",
        "skactiveml": "scikit-activeml: pip install 'dm2_fast[skactiveml]'",
        "sklearn": "scipy: pip install 'dm2_fast[strategies]'",
        "small_text": "small-text: pip install 'dm2_fast[small-text]'",
    }


def test_strategies_run_without_extras_or_name_theirs(core: dict[str, Any]) -> None:
    needing = {"prob-cover", "cluster-margin"}
    assert needing & set(core["picked"]) == set()
    assert len(core["picked"]) >= 20
    assert set(core["picked"].values()) == {5}
    for strategy in needing:
        assert core["said"][strategy] == f"strategy {strategy} needs scikit-learn: pip install 'dm2_fast[strategies]'"
    assert core["said"]["beta"] == "lam='beta' needs scipy: pip install 'dm2_fast[strategies]'"


def test_what_a_run_needs_is_named_before_it_starts(core: dict[str, Any]) -> None:
    assert core["said"]["run"] == "a run needs pyyaml: pip install 'dm2_fast[run]'"
    assert core["said"]["resnet18"] == "model resnet18 needs torchvision: pip install 'dm2_fast[run]'"
    assert core["said"]["vgg16"] == "model vgg16 needs torchvision: pip install 'dm2_fast[run]'"
    assert core["said"]["digits"] == "data set digits needs scikit-learn: pip install 'dm2_fast[run]'"
    assert core["said"]["cifar10"] == "data set cifar10 needs torchvision: pip install 'dm2_fast[run]'"


def command_of_the_core(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    block = f"import sys\nfor package in {BLOCKED}:\n    sys.modules[package] = None\n"
    code = f"{block}from dm2_fast.cli import main\nmain({arguments})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["run", "--help"], ["info", "--check"]])
def test_the_command_names_its_extra_in_one_line(arguments: list[str]) -> None:
    done = command_of_the_core(arguments)
    assert done.returncode == 2
    assert done.stderr == (
        "dm2-fast: error: the command dm2-fast needs docstring-parser: pip install 'dm2_fast[run]'\n"
    )


def test_info_needs_no_extra_and_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    done = command_of_the_core(["info"])
    assert done.returncode == 0, done.stderr
    assert {"versions", "extras", "devices", "backends", "data sets"} <= set(done.stdout.splitlines())

    def installed(package: str) -> str:
        if package in ("scipy", "torchvision"):
            raise metadata.PackageNotFoundError(package)
        return "1"

    monkeypatch.setattr(metadata, "version", installed)
    found = dict(extras.installed())
    assert found["run"] == "without torchvision (pip install 'dm2_fast[run]')"
    assert found["strategies"] == "without scipy (pip install 'dm2_fast[strategies]')"
    assert found["triton"] == "installed"
    assert not {"all", "bench", "docs", "test"} & set(found)


def test_the_extras_hold_what_the_messages_promise() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    core = {name.partition(">")[0] for name in project["dependencies"]}
    assert core == {"torch", "numpy"}
    promised = {extra: " ".join(wanted) for extra, wanted in project["optional-dependencies"].items()}
    for package in ("torchvision", "matplotlib", "tqdm", "jsonargparse", "docstring-parser", "pyyaml", "strategies"):
        assert package in promised["run"]
    for package in ("scipy", "scikit-learn", "threadpoolctl"):
        assert package in promised["strategies"]
    assert "dm2_fast[run]" in promised["test"]


def test_a_bar_that_is_wanted_and_cannot_be_shown_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dm2_fast import progress

    progress._has_tqdm.cache_clear()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.tqdm([1, 2], disable=True)) == [1, 2]
    with pytest.warns(UserWarning, match=r"no progress bars without tqdm: pip install 'dm2_fast\[run\]'") as warned:
        progress.tqdm(total=3, desc="rows")
    assert len(warned) == 1
    with progress.tqdm(total=3, desc="rows") as bar:  # a second warning would be an error
        bar.update(2)
        assert bar.n == 2
    progress._has_tqdm.cache_clear()


def test_everything_can_be_imported_without_the_extension() -> None:
    code = (
        "import sys\nsys.modules['dm2_fast._C'] = None\nimport torch, dm2_fast\nprint(dm2_fast.knn(torch.eye(4), 1)[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the C++ extension is missing") == 1
