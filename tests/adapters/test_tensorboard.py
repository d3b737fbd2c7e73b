"""What `--tensorboard` writes, read back by TensorBoard's own reader."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dm2_fast
from dm2_fast.cli import main

sys.path.insert(0, str(Path(__file__).parents[1]))
from interrupted import CONFIG

from dm2_fast.experiment import TensorBoard


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "histograms": 0}).Reload()


def test_the_numbers_and_pictures_of_a_run(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run")

    class Stop(Exception):
        pass

    def stop(event: dm2_fast.RoundEvent) -> None:
        if event.round == 1:
            raise Stop

    with pytest.raises(Stop):
        dm2_fast.run(config, callbacks=[TensorBoard(), stop])
    result = dm2_fast.run(config, callbacks=[TensorBoard()])  # it goes on, and repeats what was written
    found = read(tmp_path / "run")
    assert [event.step for event in found.Scalars("accuracy")] == [round.labelled for round in result.rounds]
    for name in ("accuracy", "accuracy_fgsm", "loss"):
        values = [getattr(round.evaluation, name) for round in result.rounds]
        assert [event.value for event in found.Scalars(name)] == pytest.approx(values)
    for stage in result.rounds[0].seconds:
        assert found.Scalars(f"seconds/{stage}")[0].value == pytest.approx(result.rounds[0].seconds[stage], abs=1e-6)
    assert [event.step for event in found.Images("chosen")] == [12, 17]
    assert [event.step for event in found.Images("learning curve")] == [22]
    assert len(found.Histograms("scores of the chosen")) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = [
        "--initial",
        "12",
        "--budget",
        "5",
        "--rounds",
        "1",
        "--pool",
        "40",
        "--test",
        "20",
        "--training.epochs",
        "1",
    ]
    output = tmp_path / "one"
    main(["run", "--tensorboard", "--strategy", "margin", *size, "--output", str(output)])
    assert len(read(output).Scalars("accuracy")) == 2
    main(["run", "--tensorboard", "--strategies", "margin,coreset", *size, "--output", str(tmp_path / "two")])
    folders = [path for path in (tmp_path / "two").iterdir() if (path / "tensorboard").exists()]
    assert [len(read(folder).Scalars("loss")) for folder in folders] == [2, 2]
    assert "rounds.csv" in capsys.readouterr().out
