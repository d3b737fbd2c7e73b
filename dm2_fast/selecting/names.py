"""What the user calls the rows: file names, or a list beside an array."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dm2_fast.picked import check_names


def read_ids(file: Path, m: int) -> list[str]:
    """Read the ids of m rows: the column `id` of a .csv file, or an array of texts or integers in a .npy file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such column, or not one id for each row, all different.
    """
    if not file.is_file():
        raise FileNotFoundError(f"ids: there is no file {file}")
    if file.suffix == ".npy":
        try:
            found = [str(value) for value in np.load(file, allow_pickle=False).tolist()]
        except (ValueError, EOFError, OSError, TypeError) as error:
            raise ValueError(f"ids must be an array of texts or integers, got {file} ({error})") from error
    else:
        try:
            with file.open(newline="", encoding="utf-8-sig") as text:
                lines = csv.DictReader(text)
                if "id" not in (lines.fieldnames or []):
                    got = ", ".join(lines.fieldnames or []) or "nothing"
                    raise ValueError(f"ids must have a column id, got {got} in {file}")
                found = [(line["id"] or "").strip() for line in lines]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"ids must be a .csv or .npy file, got {file} ({error})") from error
    try:
        return list(check_names(found, m) or [])
    except ValueError as error:
        raise ValueError(f"{error} in {file}") from error


class RowNames:
    """The rows of a pool by what a file calls them: their ids, where there are some, else their numbers.

    Args:
        m: How many rows there are.
        ids: What they are called, (m,); None for their numbers only.
    """

    def __init__(self, m: int, ids: Sequence[str] | None) -> None:
        self.m, self.ids = m, ids
        self.rows = {} if ids is None else {str(name): row for row, name in enumerate(ids)}

    def row(self, where: str, text: str, column: str) -> int:
        """The row that a file names in a column: `id`, `row`, or "" for a column without a name.

        Raises:
            ValueError: there is none; the message says where.
        """
        if column != "row" and text in self.rows:
            return self.rows[text]
        if column == "id":
            raise ValueError(f"{where} no row has the id {text!r}{self._example()}")
        if not (text.isascii() and text.isdigit()):
            if column == "" and self.ids is not None and not remedy(text):
                raise ValueError(f"{where} no row has the id {text!r}, and it is no row number{self._example()}")
            raise ValueError(f"{where} row must be an integer from 0 on, got {text!r}{remedy(text)}")
        if int(text) >= self.m:
            raise ValueError(f"{where} row must be in [0, {self.m - 1}], got {int(text)}")
        return int(text)

    def _example(self) -> str:
        return f" (ids are such as {next(iter(self.rows))!r})" if self.rows else ""


def remedy(text: str) -> str:
    """What to do about a number that is written like this."""
    try:
        whole = float(text).is_integer()
    except ValueError:
        return ""
    return f": save the column as whole numbers, {int(float(text))}" if whole and float(text) >= 0 else ""
