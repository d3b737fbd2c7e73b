"""A strategy from outside the package has what those within have: options, passes, timings, a part in training."""

import csv
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import dm2_fast
from dm2_fast.cli import main
from dm2_fast.experiment import TrainingConfig
from dm2_fast.paper.timings import read_timings

OUTSIDE = '''
"""Scores rows by how hard a small module, trained beside the network, expects them to be."""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dm2_fast

steps = []


@dataclass(frozen=True)
class Options:
    """Options of hardness.

    Args:
        width: Hidden units of the module.
        sharpness: What the expected loss is multiplied by.
    """

    width: int = 6
    sharpness: float = 1.0


class Hardness(nn.Module):
    """Expects the loss of a sample from its logits."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, logits: Tensor) -> Tensor:
        return self.layers(logits.detach())[:, 0]

    def loss(self, step: dm2_fast.TrainingStep) -> Tensor:
        steps.append((step.epoch, step.epochs, tuple(step.inputs.shape), tuple(step.unlabelled(2).shape)))
        hard = F.cross_entropy(step.logits, step.labels, reduction="none").detach()
        return (self(step.logits) - hard).square().mean()


def part(model: nn.Module, samples: Tensor, options: Options) -> Hardness:
    with torch.no_grad():
        return Hardness(model(samples).shape[1], options.width)


def expected(asked: dm2_fast.Round, options: Options) -> Tensor:
    """The pass: kept in the round for whoever asks with the same options."""
    with torch.no_grad():
        module = asked.part or Hardness(asked.logits.shape[1], options.width)
        return asked.once("hardness", options.width, lambda: module(asked.logits))


def choose(asked: dm2_fast.Round, budget: int, options: Options) -> dm2_fast.Picked:
    scores = options.sharpness * expected(asked, options)
    with asked.stage("think"):
        return dm2_fast.Picked(scores.sort(descending=True, stable=True).indices[:budget], scores)


PASSES = (*dm2_fast.Strategy("", choose).passes, dm2_fast.Pass("hardness", expected))
STRATEGY = dm2_fast.Strategy("hardness", choose, Options, passes=PASSES, part=part)
'''
QUICK = ["--initial", "12", "--budget", "5", "--rounds", "1", "--pool", "60", "--test", "20", "--training.epochs", "3"]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "outside_hardness.py").write_text(OUTSIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "outside_hardness:STRATEGY"


def test_its_options_are_in_the_help(outside: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "select"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--strategy", outside, "--help"])
        assert stop.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "Options of hardness:" in text
        assert "--hardness.sharpness X What the expected loss is multiplied by. (default: 1" in text


def test_a_run_holds_its_options_its_stages_and_its_part(outside: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--strategy", outside, "--hardness.width", "7", *QUICK]
    main([*command, "--output", "first"])
    import outside_hardness  # type: ignore[import-not-found]

    values = yaml.safe_load(Path("first/config.yaml").read_text())
    assert values["strategy"] == outside
    assert values["hardness"] == {"width": 7, "sharpness": 1.0}
    assert "dm2" not in values
    with Path("first/rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    for stage in ("features", "hardness", "think"):
        assert float(rounds[0][f"seconds_{stage}"]) >= 0, stage
        assert rounds[1][f"seconds_{stage}"] == ""
    assert [step[0] for step in outside_hardness.steps] == [0, 1, 2, 0, 1, 2]
    assert {step[1:] for step in outside_hardness.steps} == {
        (3, (12, 1, 8, 8), (2, 1, 8, 8)), (3, (17, 1, 8, 8), (2, 1, 8, 8)),
    }  # fmt: skip

    main(["run", "--config", "first/config.yaml", "--output", "again"])
    assert Path("again/selected.csv").read_bytes() == Path("first/selected.csv").read_bytes()
    main(
        ["run", "--strategy", outside, "--hardness.width", "7", *QUICK, "--output", "sharp", "--hardness.sharpness=-1"]
    )
    assert Path("sharp/selected.csv").read_bytes() != Path("first/selected.csv").read_bytes()
    capsys.readouterr()
    main(["report", "first", "sharp", "--output", "report"])
    text = capsys.readouterr().out
    assert f"| {outside} hardness.sharpness=-1.0 " in text
    with Path("report/report.csv").open() as file:
        seconds = [float(line["selection_seconds_mean"] or "nan") for line in csv.DictReader(file)]
    own = sum(float(value) for name, value in rounds[0].items() if name[8:] in ("features", "hardness", "think"))
    assert seconds[0] == pytest.approx(own, abs=2e-3)


def test_its_part_is_trained_and_kept_while_a_training_is_interrupted(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dm2_fast.experiment.folder import checkpoint

    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0)
    config = dm2_fast.RunConfig(
        strategy=outside, initial=12, budget=5, rounds=1, pool=60, test=20, training=TrainingConfig(epochs=4)
    )
    whole = dm2_fast.run(dm2_fast.RunConfig(**{**vars(config), "output": Path("whole")}))
    import outside_hardness

    def stop(*arguments: object) -> torch.Tensor:
        outside_hardness.steps.append(None)
        if len(outside_hardness.steps) == 3:
            raise KeyboardInterrupt
        return loss(*arguments)

    loss = outside_hardness.Hardness.loss
    outside_hardness.steps.clear()
    monkeypatch.setattr(outside_hardness.Hardness, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(dm2_fast.RunConfig(**{**vars(config), "output": Path("stopped")}))
    monkeypatch.setattr(outside_hardness.Hardness, "loss", loss)
    ended = dm2_fast.run(dm2_fast.RunConfig(**{**vars(config), "output": Path("stopped")}))
    assert [rows.tolist() for rows in ended.chosen] == [rows.tolist() for rows in whole.chosen]
    assert Path("stopped/selected.csv").read_bytes() == Path("whole/selected.csv").read_bytes()


def test_table_4_times_it_and_charges_its_passes(outside: str) -> None:
    options = "--dataset digits --pool 80 --labelled 30 --epochs 1 --budgets 5 --classes 4 --repeats 1"
    main(["bench", "table4", *options.split(), "--methods", f"margin,{outside}", "--output", "table"])
    timings = read_timings(Path("table/timings.csv"))
    passes = {timing.name for timing in timings if timing.part == "pass"}
    assert passes == {"logits", "features", "hardness"}
    charged = {
        timing.name: timing.passes for timing in timings if timing.part == "selection" and timing.axis == "budget"
    }
    assert charged == {"margin": "logits", outside: "features+hardness"}
    assert f"| {outside} | 5 | " in Path("table/table4.md").read_text()


def test_from_python_it_is_chosen_by_itself_and_has_the_timings(outside: str) -> None:
    strategy = dm2_fast.strategies.get(outside)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    picked = dm2_fast.select(model, torch.rand(30, 1, 8, 8), 4, strategy)
    assert list(picked.seconds) == ["features", "hardness", "think"]
    with pytest.raises(TypeError, match="options of strategy hardness are a Options, got a DM2Config"):
        dm2_fast.select(model, torch.rand(30, 1, 8, 8), 4, strategy, dm2_fast.DM2Config())
