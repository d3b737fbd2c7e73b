"""What a command prints, fitted to a terminal that is too narrow for it."""

import re
import shutil
import sys
import textwrap


class Printer:
    """Called with each line of a command: prints it as it is where it fits, and anywhere but in a terminal.

    In a narrow terminal a row of a table becomes a sentence, each cell behind its heading, and any other line is broken
    between words.
    """

    def __init__(self) -> None:
        self._headings: list[str] = []

    def __call__(self, line: str) -> None:
        width = shutil.get_terminal_size((sys.maxsize, 24)).columns
        for part in line.split("\n"):
            for fitted in self._fitted(part, width):
                print(fitted, flush=True)

    def _fitted(self, line: str, width: int) -> list[str]:
        fits = len(line) <= width
        cells = _cells(line)
        if len(cells) < 3:
            self._headings = []
        elif not self._headings:
            if line.startswith("|") or not re.search(r"\d", line):
                self._headings = cells
                return [line] if fits else []
        elif not fits and re.fullmatch(r"[|: -]+", line):
            return []
        elif not fits:
            named = [f"{heading} {cell}" for heading, cell in zip(self._headings, cells, strict=False) if cell]
            return textwrap.wrap(", ".join(named), width, subsequent_indent="  ")
        return [line] if fits else _wrapped(line, width)


def _cells(line: str) -> list[str]:
    """The cells of a row of a Markdown table, or what stands between two spaces or more."""
    if line.startswith("|"):
        return [cell.strip() for cell in line.strip("| ").split("|")]
    return re.split(r" {2,}", line.strip())


def _wrapped(line: str, width: int) -> list[str]:
    """The line broken between words; what follows a name and a gap stays in its column."""
    name = re.match(r" *\S+ {2,}", line)
    indent = len(name[0]) if name and len(name[0]) <= width // 2 else len(line) - len(line.lstrip()) + 2
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
