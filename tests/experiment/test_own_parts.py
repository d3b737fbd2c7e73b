import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import dm2_fast
from dm2_fast import Round, RunConfig, select_from
from dm2_fast.cli import main
from dm2_fast.experiment import TrainingConfig, models
from dm2_fast.experiment.config import resolve
from dm2_fast.model.passes import ForwardPass

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_parts.py"


@pytest.mark.slow
def test_the_example_runs_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_parts.py").write_text(EXAMPLE.read_text())
    commands = re.findall(r"^    (?:python|dm2-fast) (.*)$", EXAMPLE.read_text(), re.MULTILINE)
    python, alone, compared = (shlex.split(command) for command in commands)
    subprocess.run([sys.executable, *python], check=True, capture_output=True)
    quick = ["--training.epochs", "1", "--test", "20", "--pool", "60", "--rounds", "1"]
    main([*alone, *quick])
    assert "own_parts:balanced on shapes.npz with own_parts:net, seed 0" in capsys.readouterr().out
    main([*compared, *quick])
    out = capsys.readouterr().out
    names = sorted(folder.name for folder in Path("runs").iterdir())
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in names] == [
        "shapes-own_parts-net-2strategies-2seeds",
        "shapes-own_parts-net-dm2-seed0",
        "shapes-own_parts-net-dm2-seed1",
        "shapes-own_parts-net-own_parts-balanced-seed0",
        "shapes-own_parts-net-own_parts-balanced-seed1",
    ]
    assert out.splitlines()[-1] == f"runs/{names[0]}: report.csv, report.png"
    assert re.search(r"^\| own_parts:balanced \| 40 +\| 2 ", out, re.M)


PARTS = """
import torch
from torch import nn
from dm2_fast import Picked

calls = []
def model(channels, size, classes):
    calls.append((channels, size, classes))
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(channels * size[0] * size[1], classes))
def not_a_module(channels, size, classes):
    return lambda x: x
def too_narrow(channels, size, classes):
    return model(channels, size, classes - 1)
class Pair(nn.Module):
    def forward(self, x):
        return x, x
def pair(channels, size, classes):
    return Pair()
def last(round, budget, options):
    return Picked(torch.arange(len(round) - budget, len(round)).flip(0), None)
def returns(value):
    return lambda round, budget, options: value
rows = torch.tensor
indices = returns(rows([0, 1, 2]))
too_few = returns(Picked(rows([0, 1]), None))
floats = returns(Picked(rows([0.0, 1.0, 2.0]), None))
a_list = returns(Picked([0, 1, 2], None))
outside = returns(Picked(rows([0, 1, 20]), None))
negative = returns(Picked(rows([0, -1, 2]), None))
twice = returns(Picked(rows([4, 7, 4]), None))
some_scores = returns(Picked(rows([0, 1, 2]), torch.zeros(3)))
list_scores = returns(Picked(rows([0, 1, 2]), [0.0] * 20))
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_own.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_own", raising=False)
    return tmp_path


def test_a_model_of_one_s_own_is_called_with_what_it_must_fit(parts: Path) -> None:
    torch.manual_seed(0)
    model = models.build("my_own:model", 2, (5, 6), 4)
    assert sys.modules["my_own"].calls == [(2, (5, 6), 4)]
    assert all(module.training for module in model.modules())
    torch.manual_seed(0)
    want = nn.Linear(60, 4)
    assert torch.equal(model[2].weight, want.weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not_a_module", "my_own:not_a_module must return a torch.nn.Module, got a function"),
        ("too_narrow", r"must turn 2 images of 1x8x8 into logits of shape \(2, 10\), got \(2, 9\)"),
        ("pair", r"must turn 2 images of 1x8x8 into logits of shape \(2, 10\), got a tuple"),
    ],
)
def test_what_a_model_of_one_s_own_returns_is_checked(name: str, message: str, parts: Path) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(f"my_own:{name}", 1, (8, 8), 10)


def a_round() -> Round:
    return Round(ForwardPass(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(20, 1, 2, 2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("indices", r"strategy my_own:indices must return a dm2_fast.Picked\(indices, scores\), got a Tensor"),
        ("too_few", r"must choose 3 rows as an int64 tensor of shape \(3,\), got torch.int64 of shape \(2,\)"),
        ("floats", r"must choose 3 rows as an int64 tensor of shape \(3,\), got torch.float32 of shape \(3,\)"),
        ("a_list", r"must choose 3 rows as an int64 tensor of shape \(3,\), got \[0, 1, 2\]"),
        ("outside", "must choose rows of the pool, 0 to 19, got 20"),
        ("negative", "must choose rows of the pool, 0 to 19, got -1"),
        ("twice", "must choose distinct rows, got row 4 more than once"),
        ("some_scores", r"must return None or a score for each of the 20 rows, got shape \(3,\)"),
        ("list_scores", r"must return None or a score for each of the 20 rows, got \[0\.0"),
    ],
)
def test_what_a_strategy_of_one_s_own_chooses_is_checked(name: str, message: str, parts: Path) -> None:
    with pytest.raises(ValueError, match=message):
        select_from(a_round(), 3, f"my_own:{name}")


def test_strategies_of_ours_and_of_one_s_own_are_found_by_name(parts: Path) -> None:
    assert select_from(a_round(), 3, "my_own:last").indices.tolist() == [19, 18, 17]
    with pytest.raises(ValueError, match="strategy must be one of random, .*, got 'dm3'"):
        dm2_fast.strategies.get("dm3")


def test_a_run_labels_what_a_strategy_of_one_s_own_chose(parts: Path) -> None:
    quick = RunConfig(initial=10, budget=3, rounds=2, pool=50, test=20, training=TrainingConfig(epochs=1))
    config = replace(quick, strategy="my_own:last", model="my_own:model", output=parts / "run")
    result = dm2_fast.run(config)
    random = dm2_fast.run(replace(config, strategy="random", output=parts / "random"))
    initial, first, second = (rows.tolist() for rows in result.chosen)
    assert initial == random.chosen[0].tolist()
    assert first == sorted(first, reverse=True)
    assert second == sorted(second, reverse=True)
    assert max(second) < min(first)
    assert (parts / "run" / "round_02.png").exists()
    assert re.fullmatch(
        r"digits-my_own-model-my_own-last-seed0-\w{8}", resolve(replace(config, output=None)).output.name
    )


def test_a_function_that_is_not_there_is_named_before_any_work(parts: Path) -> None:
    for name in ("model", "strategy"):
        with pytest.raises(ValueError, match="module my_own has no function 'nothing'"):
            dm2_fast.run(RunConfig(**{name: "my_own:nothing", "output": parts / "run"}))
    assert not (parts / "run").exists()


FRAGILE = """
import os
import torch
from torch import nn
from dm2_fast import Picked

class Fragile(nn.Sequential):
    def forward(self, x):
        if os.environ.get("FRAGILE") == "model" and len(x) > 11:
            raise ValueError("their own words")
        return super().forward(x)

def build(channels, size, classes):
    if os.environ.get("FRAGILE") == "build":
        raise KeyError("their own words")
    return Fragile(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))

def choose(round, budget, options):
    if os.environ.get("FRAGILE") == "strategy":
        raise TypeError("their own words")
    return Picked(torch.arange(budget), None)
"""


@pytest.mark.parametrize(
    ("broken", "cause", "message"),
    [
        ("build", KeyError, r"^fragile:build raised KeyError when called with channels=1, size=\(8, 8\), classes=10$"),
        ("model", ValueError, r"^the model of fragile:build raised ValueError on images of shape \(1, 8, 8\)$"),
        ("strategy", TypeError, "^fragile:choose raised TypeError when asked for 3 of 38 rows$"),
    ],
)
def test_an_error_of_the_user_s_code_stays_theirs_and_nothing_is_lost(
    broken: str, cause: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fragile.py").write_text(FRAGILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    quick = RunConfig(initial=12, budget=3, rounds=1, pool=50, test=20, training=TrainingConfig(epochs=1))
    config = replace(quick, strategy="fragile:choose", model="fragile:build", output=tmp_path / "run")
    monkeypatch.setenv("FRAGILE", broken)
    with pytest.raises(RuntimeError, match=message) as caught:
        dm2_fast.run(config)
    assert type(caught.value.__cause__) is cause
    assert "their own words" in str(caught.value.__cause__)
    monkeypatch.delenv("FRAGILE")
    assert len(dm2_fast.run(config).rounds) == 2
