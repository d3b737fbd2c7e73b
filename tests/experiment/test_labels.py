import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import dm2_fast
from dm2_fast import DM2Config, RunConfig
from dm2_fast.cli import main
from dm2_fast.experiment import AdversarialConfig, TrainingConfig
from dm2_fast.experiment.config import fingerprint, identity, resolve
from dm2_fast.experiment.data.npz import read
from dm2_fast.experiment.data.sets import load

QUICK = TrainingConfig(epochs=1)
M, LABELLED = 60, [3, 8, 11, 17, 21, 30, 42, 44, 51, 57]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten rows with a label and fifty without, called by names of their own."""
    data = load("digits")
    y = np.full(M, -1)
    y[LABELLED] = data.y[LABELLED].numpy()
    arrays = {
        "x": data.x[:M, 0].numpy(),
        "y": y,
        "x_test": data.x_test[:20, 0].numpy(),
        "y_test": data.y_test[:20].numpy(),
    }
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays, classes=list("0123456789"), ids=[f"scan {i}" for i in range(M)])
    return path


def config_of(file: Path, **changes: object) -> RunConfig:
    base = RunConfig(
        dataset=str(file), strategy="dm2", oracle="file", budget=4, rounds=2, options=DM2Config(k=3), training=QUICK,
        output=file.parent / "run",
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def fill_in(path: Path, answers: dict[int, str] | None = None) -> list[int]:
    """Answer with the true labels, or with these; return the rows that were asked for."""
    lines = list(csv.DictReader(path.read_text().splitlines()))
    y, rows = load("digits").y, [int(line["row"]) for line in lines]
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "label"])
        writer.writerows([line["id"], (answers or {}).get(i, str(y[rows[i]].item()))] for i, line in enumerate(lines))
    return rows


def test_a_run_starts_from_the_labels_that_there_are_and_goes_on_by_those_filled_in(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, set[str]] = {}  # what stands above the pictures

    def draw(path: Path, grid: object, titles: list[list[str]], heading: str) -> None:
        drawn[path.name] = {title for line in titles for title in line}

    monkeypatch.setattr("dm2_fast.experiment.oracle.draw_images", draw)
    monkeypatch.setattr("dm2_fast.experiment.folder.sheet.draw_images", draw)
    config = config_of(file)
    waiting = dm2_fast.run(config)
    assert waiting.chosen[0].tolist() == LABELLED  # and no random ones
    assert waiting.to_label is not None
    header, first = waiting.to_label.read_text().splitlines()[:2]
    assert header == "order,row,id,label"
    assert first.split(",")[2] == f"scan {first.split(',')[1]}"
    asked = fill_in(waiting.to_label, {1: "?", 2: " ? "})
    assert drawn["to_label_1.png"] == {f"{i}: scan {row}" for i, row in enumerate(asked)}
    assert {f"scan {row}" for row in asked} <= drawn["round_01.png"]
    text = waiting.to_label.read_bytes()
    waiting = dm2_fast.run(config)
    assert (file.parent / "run" / "labels_01.csv").read_bytes() == text  # what was given is kept
    assert waiting.chosen[1].tolist() == [asked[0], asked[3]]
    assert waiting.to_label is not None
    again = fill_in(waiting.to_label)
    assert not {*again} & {*asked, *LABELLED}  # what was skipped is not asked for again
    finished = dm2_fast.run(config)
    assert finished.to_label is None
    assert [result.labelled for result in finished.rounds] == [10, 12, 16]
    with (file.parent / "run" / "selected.csv").open() as lines:
        table = list(csv.DictReader(lines))
    assert [line["id"] for line in table] == [f"scan {line['row']}" for line in table]
    assert [int(line["label"]) for line in table[:10]] == load("digits").y[LABELLED].tolist()


def test_what_was_skipped_leaves_the_pool(file: Path) -> None:
    config = config_of(file, strategy="random", options=None, budget=25)
    waiting = dm2_fast.run(config)
    assert waiting.to_label is not None
    asked = fill_in(waiting.to_label, {3: "?", 4: "?", 20: "?"})
    waiting = dm2_fast.run(config)
    assert waiting.to_label is not None
    again = fill_in(waiting.to_label)
    assert sorted([*LABELLED, *asked, *again]) == list(range(M))


def test_twins_of_skipped_rows_are_left_out(file: Path) -> None:
    config = config_of(file, strategy="dm2-at", rounds=1)
    waiting = dm2_fast.run(config)
    assert waiting.to_label is not None
    fill_in(waiting.to_label, {0: "?"})
    assert [result.labelled for result in dm2_fast.run(config).rounds] == [10, 13]


def test_random_rows_are_labelled_first_where_that_is_asked_for(file: Path) -> None:
    waiting = dm2_fast.run(config_of(file, initial=3))
    assert waiting.to_label is not None
    asked = fill_in(waiting.to_label)
    assert len(asked) == 3
    assert waiting.chosen[0].tolist() == LABELLED + asked
    assert dm2_fast.run(config_of(file, initial=3)).rounds[0].labelled == 13


def test_a_function_labels_what_nobody_knows(file: Path) -> None:
    calls: list[list[int]] = []

    def oracle(rows: Tensor, images: Tensor) -> Tensor:
        calls.append(rows.tolist())
        return load("digits").y[rows]

    result = dm2_fast.run(config_of(file, oracle="data"), oracle=oracle)
    assert [len(rows) for rows in calls] == [4, 4]
    assert [rows.tolist() for rows in result.chosen[1:]] == calls


def test_a_file_without_labels_asks_for_the_first(file: Path) -> None:
    arrays = dict(np.load(file))
    del arrays["y"]
    np.savez(file, **arrays)
    assert (read(file)[1] == -1).all()
    with pytest.raises(ValueError, match=r"no row of .*mine.npz has a label: give --initial, how many rows are drawn"):
        dm2_fast.run(config_of(file))
    assert dm2_fast.run(config_of(file, initial=5)).chosen[0].shape == (5,)
    del arrays["classes"]
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match="no array y: .*without labels, the array classes must name the classes"):
        dm2_fast.run(config_of(file, initial=5))


def test_without_somebody_who_labels_a_run_says_so(file: Path) -> None:
    with pytest.raises(ValueError, match=r"50 rows have no label: add --oracle file, or pass oracle= to dm2_fast.run"):
        dm2_fast.run(config_of(file, oracle="data"))


def test_wrong_answers_name_the_remedy(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = dm2_fast.run(config_of(file))
    assert waiting.to_label is not None
    rows = [line.split(",")[1] for line in waiting.to_label.read_text().splitlines()[1:]]
    waiting.to_label.write_text("row,label\n" + f"{rows[0]}.0,1\n" + f"{rows[1]},\n" + "scan 3,1\n")
    with pytest.raises(
        ValueError,
        match="line 2: .*'[0-9]+.0' was not asked for: save the column as whole numbers; .*[?] skips .*line 4",
    ):
        dm2_fast.run(config_of(file))
    waiting.to_label.write_text("row;label\n1;2\n")
    with pytest.raises(ValueError, match="separate the columns by commas"):
        dm2_fast.run(config_of(file))


@pytest.mark.parametrize("strategy", ["dm2-at", "random"])
def test_more_rounds_on_a_finished_run_are_those_of_a_longer_run(strategy: str, tmp_path: Path) -> None:
    options = DM2Config(k=3) if strategy == "dm2-at" else None
    config = RunConfig(
        strategy=strategy, initial=12, budget=5, rounds=1, pool=60, test=30, options=options, training=QUICK,
        adversarial=AdversarialConfig(),
    )  # fmt: skip
    dm2_fast.run(replace(config, output=tmp_path / "run"))
    longer = dm2_fast.run(replace(config, rounds=3, output=tmp_path / "run"))
    whole = dm2_fast.run(replace(config, rounds=3, output=tmp_path / "whole"))
    assert [r.evaluation for r in longer.rounds] == [r.evaluation for r in whole.rounds]
    for name in ("selected.csv", "model.pt", "config.yaml"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    with pytest.raises(FileExistsError, match=r"rounds \(3 there, 2 here\)"):
        dm2_fast.run(replace(config, rounds=2, output=tmp_path / "run"))


def test_options_that_came_later_leave_a_run_what_it_was() -> None:
    config = resolve(RunConfig(options=DM2Config(k=3)))
    assert not {"ties", "space"} & {*identity(config), *identity(config)["dm2"]}
    others = [replace(config, ties="random"), replace(config, options=DM2Config(k=3, space="features"))]
    assert len({fingerprint(config), *map(fingerprint, others)}) == 3


def test_the_command_tells_what_to_do(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--dataset", str(file), "--rounds", "1", "--budget", "4", "--training.epochs", "1"]
    with pytest.raises(SystemExit):
        main([*arguments, "--output", str(file.parent / "out")])
    assert capsys.readouterr().err == (
        "dm2-fast: error: 50 rows have no label: add --oracle file, or pass oracle= to dm2_fast.run\n"
    )
    torch.manual_seed(0)
