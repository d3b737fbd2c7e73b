"""Who labels the chosen samples: the data set itself, a function, or a person who fills in a file."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.experiment.folder.sheet import draw_images

Oracle = Callable[[Tensor, Tensor], Sequence[int] | Tensor]

TO_LABEL = "to_label.csv"
COLUMNS = ("order", "row", "label")
_PAGE = 100  # images on a contact sheet


def ask_function(oracle: Oracle, rows: Tensor, data: Data) -> Tensor:
    """The labels that a function gives: called with the rows' numbers (B,) and their images.

    Raises:
        ValueError: it does not return a class number for each row.
    """
    answer = torch.as_tensor(oracle(rows, data.x[rows]))
    if answer.shape != rows.shape or answer.is_floating_point() or answer.dtype == torch.bool:
        raise ValueError(f"oracle must return {len(rows)} class numbers, got {answer.dtype} {tuple(answer.shape)}")
    wrong = torch.nonzero((answer < 0) | (answer >= len(data.classes)))[:, 0].tolist()
    if wrong:
        label, row = answer[wrong[0]].item(), rows[wrong[0]].item()
        raise ValueError(f"oracle must return classes in [0, {len(data.classes) - 1}], got {label} for row {row}")
    return answer.to(torch.int64)


def ask_person(folder: Path, rows: Tensor, data: Data) -> Tensor | None:
    """The labels from to_label.csv; None, and the file is made, while nothing is filled in.

    A label is the name or the number of a class. The images to label stand in to_label_1.png and so on, in the order of
    the file.

    Raises:
        ValueError: a label is wrong or missing, or a row was not asked for; every such line is named.
    """
    path = folder / TO_LABEL
    if not path.exists():
        for page, part in enumerate(torch.split(torch.arange(len(rows)), _PAGE)):
            grid = [data.x[rows[line]] for line in torch.split(part, 10)]
            titles = [[f"{i}: row {rows[i].item()}" for i in line.tolist()] for line in torch.split(part, 10)]
            draw_images(folder / f"to_label_{page + 1}.png", grid, titles, f"to label, page {page + 1}: order and row")
        lines = [(i, row, "") for i, row in enumerate(rows.tolist())]
        with replacing(path) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
        return None
    return _read_labels(path, rows.tolist(), data.classes)


def remove_questions(folder: Path) -> None:
    """Remove the files of `ask_person`, once the answers are kept elsewhere."""
    for file in (folder / TO_LABEL, *folder.glob("to_label_*.png")):
        file.unlink(missing_ok=True)


def _read_labels(path: Path, rows: list[int], classes: Sequence[str]) -> Tensor | None:
    numbers = {name: number for number, name in enumerate(classes)}
    if not any(name.isdigit() for name in classes):
        numbers |= {str(number): number for number in range(len(classes))}
    with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
        try:
            lines = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is damaged: it cannot be read as text ({error})") from error
    if not lines or not set(COLUMNS[1:]) <= set(lines[0]):
        raise ValueError(f"{path} must have the columns {', '.join(COLUMNS)} and a line for each row asked for")
    if not any((line["label"] or "").strip() for line in lines):
        return None
    wanted, answers, wrong = {str(row) for row in rows}, dict[str, int](), list[str]()
    for number, line in enumerate(lines, start=2):
        row, label = (line["row"] or "").strip(), (line["label"] or "").strip()
        if row not in wanted:
            wrong.append(f"line {number}: row {row!r} was not asked for")
        elif row in answers:
            wrong.append(f"line {number}: row {row} has a line already")
        elif not label:
            wrong.append(f"line {number}: row {row} has no label")
        elif label not in numbers:
            wrong.append(f"line {number}: {label!r}, the label of row {row}, is no name or number of a class")
        answers.setdefault(row, numbers.get(label, -1))
    missing = [str(row) for row in rows if str(row) not in answers]
    wrong += [f"row {row} has no line" for row in missing]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ValueError(f"{path} cannot be used yet: " + "; ".join(wrong[:10]) + more)
    return torch.tensor([answers[str(row)] for row in rows])
