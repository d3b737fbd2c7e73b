"""The pages about other packages: every example runs, in the environment that has the packages."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import documents  # noqa: E402  # beside the other tests

PAGES = sorted((ROOT / "docs" / "frontends").glob("*.md"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict = {}
    for block in documents.blocks(page):
        documents.run(block, names)
    if page.name == "trackers.md":
        calls = with_stand_ins(names, monkeypatch, folder)
        assert calls["log_params"] == 1
        assert calls["log_metrics"] == 4
        assert calls["log_artifact"] == calls["Image"] == 2
        assert (calls["init"], calls["log"]) == (1, 2)


def with_stand_ins(names: dict, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, int]:
    """How often the two trackers of the page call each function of their packages in a run of two rounds."""
    import dm2_fast

    calls: dict[str, int] = {}

    def counting(name: str):
        def call(*arguments, **keywords):
            calls[name] = calls.get(name, 0) + 1
            return SimpleNamespace()

        return call

    for package, functions in (
        ("mlflow", ("log_params", "log_metrics", "log_artifact")),
        ("wandb", ("init", "log", "Image")),
    ):
        module = ModuleType(package)
        for function in functions:
            setattr(module, function, counting(function))
        monkeypatch.setitem(sys.modules, package, module)
    config = dm2_fast.RunConfig(
        strategy="margin", initial=12, budget=5, rounds=1, pool=40, test=20, output=folder / "tracked",
        training=dm2_fast.experiment.TrainingConfig(epochs=1),
    )  # fmt: skip
    dm2_fast.run(config, callbacks=[names["MLflow"](), names["WeightsAndBiases"]()])
    return calls
