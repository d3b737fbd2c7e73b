"""What the callbacks of a run are told: what its files say, once a round, whatever happened before."""

import csv
import sys
from dataclasses import fields, replace
from pathlib import Path

import interrupted
import pytest
import torch

import dm2_fast
from dm2_fast.cli import main
from dm2_fast.experiment.config import resolve
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.events import event_of
from dm2_fast.experiment.state import RoundResult, State
from dm2_fast.experiment.training import Evaluation

CONFIG = interrupted.CONFIG


def told(folder: Path, events: list[dm2_fast.RoundEvent], **others) -> dm2_fast.experiment.Result:
    return dm2_fast.run(replace(CONFIG, output=folder, **others), callbacks=[events.append])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dm2_fast.RoundEvent]]:
    folder, events = tmp_path_factory.mktemp("reference") / "run", list[dm2_fast.RoundEvent]()
    told(folder, events)
    return folder, events


def test_a_round_is_told_as_the_files_have_it(reference) -> None:
    folder, events = reference
    with (folder / "rounds.csv").open() as file:
        rounds = list(csv.DictReader(file))
    with (folder / "selected.csv").open() as file:
        selected = list(csv.DictReader(file))
    assert len(events) == len(rounds) == CONFIG.rounds + 1
    for r, (event, line) in enumerate(zip(events, rounds, strict=True)):
        assert (event.folder, event.round, event.new) == (folder, r, True)
        assert event.config["strategy"] == CONFIG.strategy
        assert event.labelled == int(line["labelled"])
        for name in ("accuracy", "accuracy_fgsm", "loss"):
            assert event.metrics[name] == pytest.approx(float(line[name]), abs=1e-6)
        for name, seconds in event.seconds.items():
            assert f"{seconds:.3f}" == line[f"seconds_{name}"]
        chosen = [row for row in selected if int(row["round"]) == r + 1]
        assert event.rows == [int(row["row"]) for row in chosen]
        last = r == CONFIG.rounds
        if not last:
            assert event.scores == pytest.approx([float(row["score"]) for row in chosen])
        assert event.pictures == [folder / ("curve.png" if last else f"round_{r + 1:02d}.png")]
        assert all(picture.exists() for picture in event.pictures)
    assert events[-1].rows == []
    assert events[-1].scores is None


def test_values_are_plain(reference) -> None:
    for event in reference[1]:
        for field in fields(event):
            assert type(getattr(event, field.name)) in (type(reference[0]), dict, int, list, type(None), bool)
        assert {type(row) for row in event.rows} <= {int}
        assert {type(score) for score in event.scores or []} <= {float}
        assert {type(value) for value in event.metrics.values()} == {float}


def same(event: dm2_fast.RoundEvent, other: dm2_fast.RoundEvent) -> bool:
    """Whether two runs told the same, places and timings aside."""

    def plain(event: dm2_fast.RoundEvent) -> dm2_fast.RoundEvent:
        config = event.config | {"output": None}
        pictures = [Path(path.name) for path in event.pictures]
        return replace(event, folder=Path(), config=config, seconds={}, pictures=pictures, new=True)

    return plain(event) == plain(other)


def test_a_run_that_goes_on_tells_every_round_again(reference, tmp_path: Path) -> None:
    events: list[dm2_fast.RoundEvent] = []

    def stop(event: dm2_fast.RoundEvent) -> None:
        events.append(event)
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        dm2_fast.run(replace(CONFIG, output=tmp_path / "run"), callbacks=[stop])
    assert len(events) == 1  # and the round is kept
    again: list[dm2_fast.RoundEvent] = []
    told(tmp_path / "run", again)
    assert [event.new for event in again] == [False] + [True] * CONFIG.rounds
    assert all(same(a, b) for a, b in zip(again, reference[1], strict=True))
    finished: list[dm2_fast.RoundEvent] = []
    told(tmp_path / "run", finished)
    assert [event.new for event in finished] == [False] * (CONFIG.rounds + 1)
    assert all(same(a, b) for a, b in zip(finished, reference[1], strict=True))


def test_without_scores(tmp_path: Path) -> None:
    events: list[dm2_fast.RoundEvent] = []
    told(tmp_path / "run", events, strategy="coreset", options=None, rounds=1)
    assert [event.scores for event in events] == [None, None]
    assert len(events[0].rows) == CONFIG.budget


def test_a_callback_is_a_function(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="callbacks must be functions of a RoundEvent, got 'wandb'"):
        dm2_fast.run(replace(CONFIG, output=tmp_path / "run"), callbacks=["wandb"])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_tensorboard_names_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(SystemExit) as end:
        main(["run", "--tensorboard"])
    assert end.value.code == 2
    error = "dm2-fast: error: --tensorboard needs tensorboard: pip install 'dm2_fast[tensorboard]'\n"
    assert capsys.readouterr().err == error


def test_further_accuracies_are_among_the_metrics() -> None:
    others = {"accuracy_pgd": 0.25}
    result = RoundResult(0, 12, Evaluation(0.5, 0.4, 1.5, others), 0.1, {})
    state = State([torch.arange(3)], [None], results=[result])
    event = event_of(resolve(replace(CONFIG, rounds=0)), Path("run"), state, load("digits"), 0, True)
    assert event.metrics == {"accuracy": 0.5, "accuracy_fgsm": 0.4, "loss": 1.5, "accuracy_pgd": 0.25, "epsilon": 0.1}
    assert others == {"accuracy_pgd": 0.25}
