"""Who labels the chosen samples: the data set itself, a function, or a person who fills in a file."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dm2_fast.experiment.data.sets import Data
from dm2_fast.experiment.folder.files import replacing
from dm2_fast.experiment.folder.sheet import draw_images, short
from dm2_fast.operations.arguments import shown

Oracle = Callable[[Tensor, Tensor], Sequence[int] | Tensor]

TO_LABEL = "to_label.csv"
COLUMNS = ("order", "row", "label")
SKIP = "?"
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

    A label is the name or the number of a class, or ? to skip the row, which is -1. The images to label stand in
    to_label_1.png and so on, in the order of the file.

    Raises:
        ValueError: a label is wrong or missing, or a row was not asked for; the first three such lines are named.
    """
    path = folder / TO_LABEL
    if not path.exists():
        ids, what = data.ids, "row" if data.ids is None else "id"
        called = [f"row {row}" if ids is None else short(ids[row], 10) for row in rows.tolist()]
        for page, part in enumerate(torch.split(torch.arange(len(rows)), _PAGE)):
            grid = [data.x[rows[line]] for line in torch.split(part, 10)]
            titles = [[f"{i}: {called[i]}" for i in line.tolist()] for line in torch.split(part, 10)]
            draw_images(
                folder / f"to_label_{page + 1}.png", grid, titles, f"to label, page {page + 1}: order and {what}"
            )
        columns: tuple[str, ...] = COLUMNS
        lines: list[tuple[Any, ...]] = [(i, row, "") for i, row in enumerate(rows.tolist())]
        if data.ids is not None:
            columns, lines = ("order", "row", "id", "label"), [(i, row, data.ids[row], "") for i, row, _ in lines]
        with replacing(path) as partial, partial.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([columns, *lines])
        return None
    return _read_labels(path, rows.tolist(), data.classes, data.ids)


def keep_answers(folder: Path, round: int) -> None:
    """Keep the file that was filled in as labels_NN.csv."""
    with replacing(folder / f"labels_{round:02d}.csv") as partial:
        partial.write_bytes((folder / TO_LABEL).read_bytes())


def remove_questions(folder: Path) -> None:
    """Remove the files of `ask_person`, once the answers are kept elsewhere."""
    for file in (folder / TO_LABEL, *folder.glob("to_label_*.png")):
        file.unlink(missing_ok=True)


def _read_labels(
    path: Path, rows: list[int], classes: Sequence[str], ids: Sequence[str] | None = None
) -> Tensor | None:
    numbers = {name: number for number, name in enumerate(classes)}
    if not any(name.isdigit() for name in classes):
        numbers |= {str(number): number for number in range(len(classes))}
    with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
        try:
            lines = list(csv.DictReader(file))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as UTF-8 text: save it as CSV UTF-8 ({error})") from error
    columns = set(lines[0]) if lines else set()
    if "label" not in columns or not ({"row"} if ids is None else {"row", "id"}) & columns:
        commas = " (separate the columns by commas)" if any(";" in str(name) for name in columns) else ""
        key = "row" if ids is None else "row or id"
        raise ValueError(f"{path} must have the columns {key} and label, and a line for each row asked for{commas}")
    called = {} if ids is None else {ids[row]: str(row) for row in rows}
    if not any((line["label"] or "").strip() for line in lines):
        return None
    wanted, answers, wrong, unknown = {str(row) for row in rows}, dict[str, int](), list[str](), False
    for number, line in enumerate(lines, start=2):
        row, name, label = ((line.get(key) or "").strip() for key in ("row", "id", "label"))
        row = row or called.get(name, name)
        whole = ": save the column as whole numbers" if row.endswith(".0") else ""
        if row not in wanted:
            wrong.append(f"line {number}: row {shown(row)} was not asked for{whole or ' (leave the line out)'}")
        elif row in answers:
            wrong.append(f"line {number}: row {row} has a line already")
        elif not label:
            wrong.append(f"line {number}: row {row} has no label (? skips it)")
        elif label not in numbers and label != SKIP:
            wrong.append(
                f"line {number}: {shown(label)}, the label of row {row}, is no name or number of a class (? skips it)"
            )
            unknown = True
        answers.setdefault(row, numbers.get(label, -1))
    missing = [str(row) for row in rows if str(row) not in answers]
    wrong += [f"row {row} has no line" for row in missing]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        named = f". The classes are {', '.join(classes[:10])}{' ...' if len(classes) > 10 else ''}" if unknown else ""
        raise ValueError(f"{path} cannot be used yet: " + "; ".join(wrong[:3]) + more + named)
    return torch.tensor([answers[str(row)] for row in rows])
