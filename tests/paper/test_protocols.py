"""Every protocol that comes with the package: all its runs are well formed, and its command runs at toy size."""

import csv
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from dm2_fast.cli import main
from dm2_fast.experiment.config import resolve
from dm2_fast.paper.colours import style
from dm2_fast.paper.full import full_config
from dm2_fast.paper.probe import Probe
from dm2_fast.paper.protocol import FOLDER, names, read_protocol
from dm2_fast.paper.study import StudyConfig
from dm2_fast.strategies import get

ALL = sorted(file.stem for file in FOLDER.glob("*.yaml"))
QUICK = {
    "dataset": "digits", "model": "cnn", "pool": 60, "test": 30, "initial": 12, "budget": 5, "rounds": 1,
    "attack": "pgd", "candidates": None, "eval_attacked": 10, "training": {"epochs": 1},
}  # fmt: skip


def test_each_table_and_figure_has_a_protocol_for_two_cores_and_one_of_the_paper_s_sizes() -> None:
    for show in ("table1", "table2", "table3", "table5", "figure1", "figure4"):
        assert names(show) == [f"paper-{show}", f"small-{show}"]
    assert names("probe") == ["large-probe", "small-probe", "sweep-probe"]


@pytest.mark.parametrize("name", ALL)
def test_every_curve_of_a_protocol_is_well_formed(name: str) -> None:
    protocol = read_protocol(name)
    for cell, values in protocol.cells.items():
        assert protocol.fingerprint(cell, protocol.against)
        for options in protocol.methods.values():
            if protocol.show == "probe":
                Probe(**values)
                assert options["strategy"] in ("greedy-oracle", "full-data") or get(options["strategy"])
            else:
                resolve(full_config(values, options, 0, Path("data"), "cpu"))


@pytest.mark.parametrize("name", [name for name in ALL if name != "sweep-probe"])
def test_no_two_methods_look_alike(name: str) -> None:
    protocol = read_protocol(name)
    looks = [style(method, protocol.against) for method in protocol.methods]
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == len(looks)


def toy(name: str, folder: Path) -> Path:
    """The protocol with one small cell, two of its methods and one seed."""
    values: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    cell = dict(next(iter(values["cells"].values())))
    quick = {"features": "pixels"} if values["show"] == "probe" else {}
    values["cells"] = {
        "toy": {**cell, **quick, **{k: v for k, v in QUICK.items() if not quick or k in Probe.__annotations__}}
    }
    kept = [
        values["against"],
        next(m for m in reversed(values["methods"]) if m not in (values["against"], "full-data")),
    ]
    values["methods"] = {method: values["methods"][method] for method in kept}
    for options in values["methods"].values():
        if (options.get("dm2") or {}) != "published" and "offset" in (options.get("dm2") or {}):
            options["dm2"]["offset"] = min(3, options["dm2"]["offset"])
    values["seeds"], values["compared"], values["fewer"] = 1, None, None
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.mark.parametrize("name", [n if n.startswith("small") else pytest.param(n, marks=pytest.mark.slow) for n in ALL])
def test_the_command_of_a_protocol_runs_at_toy_size(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = toy(name, tmp_path), tmp_path / "out"
    show = name.partition("-")[2]
    main(["bench", show, "--protocol", str(file), "--output", str(out), "--device", "cpu"])
    told = capsys.readouterr().out
    assert "about" in told
    assert {"comparison.md", "comparison.csv", "curves.png", "differences.png", "curves"} <= {
        f.name for f in out.iterdir()
    }
    if show.startswith("table"):
        with (out / f"{show}.csv").open() as lines:
            table = list(csv.DictReader(lines))
        assert {line["method"] for line in table} == set(read_protocol(str(file)).methods)
        measures = {line["measure"] for line in table}
        assert (
            {"accuracy", "accuracy_fgsm", "accuracy_pgd"} if show in ("table3", "table5") else {"accuracy"}
        ) <= measures
        assert " ".join((out / f"{show}.md").read_text().split()) in " ".join(told.split())  # which wraps long lines
    elif show.startswith("figure"):
        assert (out / f"{show}.png").stat().st_size > 5000


def test_the_question_of_table_3_is_one_command() -> None:
    protocol = read_protocol("small-table3")
    for name in ("random", "margin", "dm2"):
        plain, twins = (full_config({}, protocol.methods[m], 0, Path(), "cpu") for m in (name, f"{name}-at"))
        assert (resolve(plain).adversarial.train, twins.adversarial.train) == ("off", "round")
        assert (plain.strategy, plain.options) == (twins.strategy, twins.options)
    assert all(cell["attack"] == "autoattack" for cell in protocol.cells.values())


def test_the_commands_of_curves_make_these_curves_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = read_protocol("small-probe")
    everywhere = protocol.restricted(None, ["random", "margin"], [*range(25, 30), 40]).keys
    here = protocol.restricted(["mnist-start20", "cifar10-start20"], ["badge"], [25]).keys
    more = protocol.restricted(["mnist-start20", "digits-start20"], ["margin"], [41, 42]).keys
    commands = protocol.commands([*everywhere, *here, *more])
    asked: list[StudyConfig] = []
    monkeypatch.setattr("dm2_fast.commands.study", lambda config, echo: asked.append(config) or tmp_path)
    for line in commands:
        main(shlex.split(line)[1:])
    made = [job for each in asked for job in protocol.restricted(each.cells, each.methods, each.seeds).keys]
    assert {each.protocol for each in asked} == {"small-probe"}
    assert sorted(made) == sorted([*everywhere, *here, *more])
    assert len(commands) == 4
    assert "--seeds 25-29,40 " in commands[0]
