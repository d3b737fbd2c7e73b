"""Reads the pages of the documentation and runs their examples, as written but for sizes.

An example is a fenced block: `python`, `sh` (one command a line), or `text`, which is shown and not run. What differs
here stands on the page itself, in comments that its rendered form does not show:

    <!-- toy: 60_000 -> 600 -->                         from here to the end of the page, in every block
    <!-- toy: dm2-fast run + --pool 60 --test 40 -->    from here on, behind every command that begins so
    <!-- slow -->                                       the next block runs with the slow tests only
    <!-- not run: needs a GPU -->                       the next block does not run; test_documents.py counts these
    <!-- numbers: ... -->                               says where numbers come from; test_numbers.py looks

The blocks of a page run from top to bottom in one folder, the Python ones with the same variables.
"""

import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import Any

from dm2_fast.cli import main

ROOT = Path(__file__).parent.parent
LANGUAGES = ("python", "sh", "text")
_TOKEN = re.compile(r"^<!--(?P<comment>.*?)-->|^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """An example, as it stands on its page but for the sizes.

    Attributes:
        where: Page and line.
        language: One of `LANGUAGES`.
        text: What is in it.
        slow: Whether it runs with the slow tests only.
        not_run: Why it does not run at all; None if it does.
    """

    where: str
    language: str
    text: str
    slow: bool = False
    not_run: str | None = None


def blocks(page: Path) -> list[Block]:
    """The examples of a page.

    Raises:
        ValueError: a comment or a language is unknown, or a toy changes nothing.
    """
    source, found = page.read_text(), list[Block]()
    toys: dict[str, bool] = {}  # and whether it changed anything
    slow, not_run = False, None
    for token in _TOKEN.finditer(source):
        where = f"{page.name}:{source.count(chr(10), 0, token.start()) + 1}"
        if token["comment"] is not None:
            kind, _, value = (part.strip() for part in token["comment"].partition(":"))
            if kind == "toy" and (" -> " in value or " + " in value):
                toys[value] = False
            elif kind == "slow" and not value:
                slow = True
            elif kind == "not run" and value:
                not_run = value
            elif kind == "numbers" and value:
                pass
            else:
                raise ValueError(f"{where}: no such comment: {token[0]}")
            continue
        if token["language"] not in LANGUAGES:
            raise ValueError(f"{where}: a block is one of {', '.join(LANGUAGES)}, not {token['language']!r}")
        block = Block(where, token["language"], token["text"].replace("\\\n", " "), slow, not_run)
        for toy in toys:
            smaller = _smaller(block, toy)
            toys[toy] |= smaller != block
            block = smaller
        found.append(block)
        slow, not_run = False, None
    unused = [toy for toy, used in toys.items() if not used]
    if unused:
        raise ValueError(f"{page.name}: this toy changes nothing: {unused[0]}")
    return found


def _smaller(block: Block, toy: str) -> Block:
    """The block with one toy applied."""
    old, arrow, new = toy.partition(" -> ")
    if arrow:
        text = re.sub(rf"(?<![\w.]){re.escape(old)}(?![\w.])", lambda _: new, block.text)
        return replace(block, text=text)
    beginning, _, options = toy.partition(" + ")
    lines = [
        f"{line.partition(' #')[0].rstrip()} {options}" if f"{line} ".startswith(f"{beginning} ") else line
        for line in block.text.splitlines()
    ]
    return replace(block, text="\n".join(lines) + "\n")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block of sh, wildcards expanded."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield [name for word in words for name in (sorted(glob(word)) or [word])]


def run(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the working directory: a slow one in a shell, any other in this process.

    Raises:
        ValueError: it holds a command that is none of ours.
        Exception: what the example raises.
    """
    if block.language == "text" or block.not_run:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a toy model may well score many rows the same
        if block.language == "python":
            exec(compile(block.text, block.where, "exec"), names)
        elif block.slow:
            subprocess.run(["bash", "-euo", "pipefail", "-c", block.text], check=True)
        else:
            for words in commands(block.text):
                _run_here(block.where, words)


def _run_here(where: str, words: list[str]) -> None:
    if words[0] == "dm2-fast":
        try:
            main(words[1:])
        except SystemExit as end:
            if end.code:
                raise ValueError(f"{where}: {shlex.join(words)} ended with {end.code}") from end
    elif words[0] == "python" and words[1].endswith(".py"):
        before, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_path(words[1], run_name="__main__")
        finally:
            sys.argv = before
    else:
        raise ValueError(f"{where}: only dm2-fast and python FILE run here: mark {shlex.join(words)} slow or not run")
