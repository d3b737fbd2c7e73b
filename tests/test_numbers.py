"""Every measured number of the pages stands in a file of results/, and every such file says what made it.

A paragraph or table with measured numbers has a comment and an empty line above it that name its files:

    <!-- numbers: results/probe/comparison.md -->    each number is one of the file's, rounded
    <!-- numbers: defined -->                        nothing was measured: a default, a level, a share by construction
    <!-- numbers: cited -->                          others measured it, and a link leads to them
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
RESULTS = sorted(path for path in (ROOT / "results").iterdir() if path.is_dir())

_UNIT = r"(?:ms|s|seconds|minutes|hours|MB|GB|KB|bytes|images/s|times|points)"
_NUMBER = r"(?<![\w./-])[+-]?\d[\d,]*(?:\.\d+)?(?![\w.]|\.\d)"
_PAIR = re.compile(rf"({_NUMBER}) ± ({_NUMBER})")
_MEASURED = re.compile(rf"(?<![\w./-])[+-]?(?:\d[\d,]*(?:\.\d+)?(?= {_UNIT}\b| ?%)|\d+\.\d+(?![\w.]|\.\d))")
_VERSION = re.compile(
    r"(?:section|Python|torch|triton|Triton|numpy|arXiv|Algorithm|Eqs?\.) [\d.]+(?:(?:,| and| or) [\d.]+)*"
)


def paragraphs(page: Path) -> Iterator[tuple[str | None, str]]:
    """The paragraphs of a page, with what the comment above says of their numbers; no code, no targets of links."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    said = None
    for part in re.split(r"\n\s*\n", text):
        found = re.search(r"<!-- numbers: (.*?) -->", part)
        part = re.sub(r"<!--.*?-->|`[^`]*`|\]\([^)]*\)", "", part, flags=re.DOTALL).strip()
        said = found[1] if found else said
        if part:
            yield said, _VERSION.sub("", part)
            said = None


def value(number: str) -> float:
    return float(number.replace(",", ""))


def is_rounded(number: str, found: list[float]) -> bool:
    """Whether one of the values, as it is, in per cent or in thousands, is this number when rounded, with its sign."""
    half = 0.5 * 10 ** -len(number.partition(".")[2])
    return any(abs(each * scale - value(number)) <= half * (1 + 1e-9) for each in found for scale in (1, 100, 1e-3))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_numbers_are_those_of_a_file(page: Path) -> None:
    untraced = 0
    for said, text in paragraphs(page):
        measured = _MEASURED.findall(text)
        if said is None:
            untraced += bool(measured)
        elif said == "cited":
            assert "[" in text, f"no link in {text[:80]!r}"
        elif said != "defined":
            files = [ROOT / name for name in said.split()]
            found = [value(n) for file in files for n in re.findall(_NUMBER, file.read_text().replace("|", " | "))]
            numbers = re.findall(_NUMBER, text) if text.lstrip().startswith("|") else measured
            missing = [number for number in numbers if not is_rounded(number, found)]
            pairs = [each for file in files for each in _PAIR.findall(file.read_text())]
            missing += [
                f"{mean} ± {half}"
                for mean, half in _PAIR.findall(text)
                if not any(is_rounded(mean, [value(a)]) and is_rounded(half, [value(b)]) for a, b in pairs)
            ]
            assert not missing, f"{', '.join(missing)} in {text.strip()[:80]!r}"
    assert untraced == 0, f"{untraced} paragraphs without a file"


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_results_say_what_made_them(folder: Path) -> None:
    """Command, commit, machine, versions and date stand in a text of the folder."""
    texts = [file.read_text() for file in folder.rglob("*") if file.suffix in (".md", ".yaml", ".txt")]
    together = "\n".join(texts)
    for what in (
        r"`(?:dm2-fast|python|make|OMP_NUM_THREADS=1 python) ",
        r"commit [0-9a-f]{7}",
        r"\d+ cores?",
        "torch 2",
        r"20\d\d-\d\d-\d\d",
    ):
        assert re.search(what, together), what


def test_results_are_small() -> None:
    sizes = Counter({file: file.stat().st_size for file in (ROOT / "results").rglob("*") if file.is_file()})
    assert max(sizes.values()) < 1_000_000
    assert sum(sizes.values()) < 5_000_000
