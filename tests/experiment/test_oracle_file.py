import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from torch import Tensor

import dm2_fast
from dm2_fast import DM2Config, RunConfig
from dm2_fast.cli import main
from dm2_fast.experiment import AdversarialConfig, TrainingConfig, twins
from dm2_fast.experiment.data.sets import Data, load
from dm2_fast.experiment.oracle import ask_function, ask_person
from dm2_fast.experiment.training import Labelled, train

CONFIG = RunConfig(
    strategy="dm2-at", initial=12, budget=5, rounds=1, pool=60, test=30, options=DM2Config(k=3),
    training=TrainingConfig(epochs=2),
)  # fmt: skip
LETTERS = tuple("ABCDEFGHIJ")


def fill_in(file: Path, name: Sequence[str] = tuple("0123456789")) -> None:
    """Label as the data set does."""
    y = load("digits").y.tolist()
    lines = list(csv.reader(file.read_text().splitlines()))
    assert lines[0] == ["order", "row", "label"]
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([lines[0], *([order, row, name[y[int(row)]]] for order, row, _ in lines[1:])])


def test_a_person_labels_between_two_calls_and_the_run_is_that_of_the_data_set(tmp_path: Path) -> None:
    whole = dm2_fast.run(replace(CONFIG, output=tmp_path / "whole"))
    config = replace(CONFIG, oracle="file", output=tmp_path / "asked")
    asked = [dm2_fast.run(config)]
    for trainings in (0, 1):
        file = asked[-1].to_label
        assert file == tmp_path / "asked" / "to_label.csv"
        assert asked[-1].model is None
        assert len(asked[-1].rounds) == trainings
        assert matplotlib.image.imread(file.with_name("to_label_1.png")).std() > 0.05
        assert [int(line["row"]) for line in csv.DictReader(file.read_text().splitlines())] == asked[-1].chosen[
            -1
        ].tolist()
        assert dm2_fast.run(config).to_label == file  # nothing filled in yet
        fill_in(file)
        asked.append(dm2_fast.run(config))
    assert asked[-1].to_label is None
    assert not list((tmp_path / "asked").glob("to_label*"))
    assert asked[-1].rounds[-1].evaluation == whole.rounds[-1].evaluation
    for name in ("selected.csv", "model.pt"):
        assert (tmp_path / "asked" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("label", ["predicted", "true"])
def test_a_function_labels_in_place_of_the_data_set(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load("digits")
    calls: list[list[int]] = []
    learned: list[list[int]] = []

    def seen_train(model: object, labelled: Labelled, *arguments: Any, **options: Any) -> None:
        learned.append(labelled.y.tolist())
        train(model, labelled, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(twins, "train", seen_train)

    def oracle(rows: Tensor, images: Tensor) -> list[int]:
        assert torch.equal(images, data.x[rows])
        calls.append(rows.tolist())
        return [9 - label for label in data.y[rows].tolist()]

    config = replace(CONFIG, adversarial=AdversarialConfig(label=label))
    result = dm2_fast.run(replace(config, output=tmp_path / "run"), oracle=oracle)
    assert calls == [rows.tolist() for rows in result.chosen]
    with (tmp_path / "run" / "selected.csv").open() as file:
        for line in csv.DictReader(file):
            assert int(line["label"]) == 9 - data.y[int(line["row"])].item()
    assert learned[-1] == [9 - label for label in data.y[torch.cat(result.chosen)].tolist()]


def data_of(classes: Sequence[str]) -> Data:
    x = torch.zeros(9, 1, 4, 4, dtype=torch.uint8)
    return Data(
        "letters",
        x,
        torch.zeros(9, dtype=torch.int64),
        x,
        torch.zeros(9, dtype=torch.int64),
        tuple(classes),
        (0.5, 0.5),
    )


@pytest.mark.parametrize(("answer", "expected"), [("C,A,9", [2, 0, 9]), ("2, 0 ,9", [2, 0, 9]), ("J,J,J", [9, 9, 9])])
def test_labels_are_names_or_numbers_of_classes(answer: str, expected: list[int], tmp_path: Path) -> None:
    rows = torch.tensor([7, 2, 4])
    assert ask_person(tmp_path, rows, data_of(LETTERS)) is None
    lines = [f"{i},{row},{label}" for i, (row, label) in enumerate(zip([7, 2, 4], answer.split(","), strict=True))]
    text = "\r\n".join(["order,row,label", *reversed(lines)])  # another order, as a spreadsheet may save it
    (tmp_path / "to_label.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    labels = ask_person(tmp_path, rows, data_of(LETTERS))
    assert labels is not None
    assert labels.tolist() == expected


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        (
            ["0,7,K", "1,2,A", "2,4,B"],
            ["line 2: 'K', the label of row 7, is no name or number of a class", "The classes are A, B, C"],
        ),
        (["0,7,A", "1,2,", "2,4,-1"], ["line 3: row 2 has no label", "line 4: '-1', the label of row 4"]),
        (
            ["0,7,A", "1,3,A", "2,4,B"],
            ["line 3: row '3' was not asked for", "row 2 has no line"],
        ),
        (["0,7,A", "1,7,A", "2,4,B", "1,2,A"], ["line 3: row 7 has a line already"]),
        (["0,7,A", "1,2,A"], ["row 4 has no line"]),
        (["0,7,10", "1,2,A", "2,4,B", "3,x,A"], ["line 2: '10', the label", "line 5: row 'x' was not asked for"]),
    ],
)
def test_wrong_missing_and_extra_labels_are_refused_by_line(
    lines: list[str], messages: list[str], tmp_path: Path
) -> None:
    (tmp_path / "to_label.csv").write_text("\n".join(["order,row,label", *lines]))
    with pytest.raises(ValueError, match=".*".join(messages)):
        ask_person(tmp_path, torch.tensor([7, 2, 4]), data_of(LETTERS))


def test_a_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "to_label.csv").write_text("7;A\n")
    with pytest.raises(ValueError, match="must have the columns row and label, and a line"):
        ask_person(tmp_path, torch.tensor([7]), data_of(LETTERS))


def test_where_classes_are_called_numbers_a_number_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "to_label.csv").write_text("order,row,label\n0,7,20\n")
    labels = ask_person(tmp_path, torch.tensor([7]), data_of(["10", "20"]))
    assert labels is not None
    assert labels.tolist() == [1]
    (tmp_path / "to_label.csv").write_text("order,row,label\n0,7,1\n")
    with pytest.raises(ValueError, match="'1', the label of row"):
        ask_person(tmp_path, torch.tensor([7]), data_of(["10", "20"]))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1, 2], r"must return 3 class numbers, got torch.int64 \(2,\)"),
        ([1.0, 2.0, 3.0], r"must return 3 class numbers, got torch.float32 \(3,\)"),
        ([1, 10, 3], r"must return classes in \[0, 9\], got 10 for row 2"),
        ([-1, 1, 3], r"must return classes in \[0, 9\], got -1 for row 7"),
    ],
)
def test_what_a_function_returns_is_checked(answer: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask_function(lambda rows, images: answer, torch.tensor([7, 2, 4]), data_of(LETTERS))  # type: ignore[arg-type,return-value]


def test_what_a_person_cannot_answer_in_time_is_refused_at_the_door(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nobody knows the true label in time: use adversarial.label='predicted'"):
        dm2_fast.run(replace(CONFIG, oracle="file", adversarial=AdversarialConfig(label="true"), output=tmp_path))
    with pytest.raises(ValueError, match="pass oracle= or set config.oracle='file', not both"):
        dm2_fast.run(replace(CONFIG, oracle="file", output=tmp_path), oracle=lambda rows, images: [0])


def test_the_command_says_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "--oracle", "file", "--initial", "12", "--rounds", "0", "--pool", "20", "--output", "mine"]
    main(command)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "mine/to_label.csv: fill in the label of each of the 12 rows",
        "(the images are in to_label_*.png beside it), then give the same command again.",
    ]
    Path("mine/to_label.csv").write_text("order,row,label\n0,0,one\n")
    with pytest.raises(SystemExit):
        main(command)
    assert "mine/to_label.csv cannot be used yet: line 2: row '0' was not asked for" in capsys.readouterr().err


def test_candidates_limit_what_a_round_chooses_from(tmp_path: Path) -> None:
    lines: list[str] = []
    config = replace(CONFIG, strategy="random", options=None, rounds=3, candidates=8)
    result = dm2_fast.run(replace(config, output=tmp_path / "a"), echo=lines.append)
    assert lines[0].endswith("pool of 60, 8 candidates a round")
    everyone = dm2_fast.run(replace(config, candidates=None, output=tmp_path / "b"))
    assert [len(rows) for rows in result.chosen] == [12, 5, 5, 5]
    assert len(set(torch.cat(result.chosen).tolist())) == 27
    assert not torch.equal(torch.cat(result.chosen), torch.cat(everyone.chosen))
    with pytest.raises(ValueError, match="candidates must be at least the budget, 5, got 4"):
        dm2_fast.run(replace(config, candidates=4, output=tmp_path / "c"))
