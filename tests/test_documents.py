"""README, CONTRIBUTING and docs: every example runs, and what they name is there. `documents.py` says how."""

import ast
import builtins
import os
import pickle
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import documents
import numpy as np
import pytest
from documents import ROOT, Block, blocks

import dm2_fast
from dm2_fast import strategies

# What random samples and an untrained model are warned about.
TOY = ("ignore:.*rows have the same score", "ignore:.*others at distance 0")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FRONTENDS = sorted((ROOT / "docs" / "frontends").glob("*.md"))  # tests/adapters runs their examples
README = PAGES[0].read_text()

# Why examples do not run here, and how many: one more is a decision that this line shows.
NOT_RUN = {"installs packages": 10, "needs a GPU": 1, "takes hours": 6}

WITHOUT_CHECKSUMS = """
import torchvision
torchvision.datasets.CIFAR10._check_integrity = lambda self: True
torchvision.datasets.cifar.check_integrity = lambda *_: True
"""


def write_toy_data(folder: Path) -> None:
    """MNIST and CIFAR-10 in their file formats, with 300 random training images and 60 test images each."""
    rng = np.random.default_rng(0)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, n in (("train", 300), ("t10k", 60)):
        x, y = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *x.shape) + x.tobytes())
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, n) + y.tobytes())
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        x = rng.integers(0, 256, (60, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({"data": x, "labels": [i % 10 for i in range(60)]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with toy data sets and links to what the commands of a checkout need."""
    for name in ("examples", "benches", "csrc", "tests", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    write_toy_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(WITHOUT_CHECKSUMS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # triton has been told; a shell starts without
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and name.split(".")[0] == "examples":
            del sys.modules[name]


@pytest.mark.filterwarnings(*TOY)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path, folder: Path) -> None:
    names: dict = {}
    for block in blocks(page):
        if not block.slow:
            documents.run(block, names)


@pytest.mark.filterwarnings(*TOY)
@pytest.mark.slow
@pytest.mark.release
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.slow for b in blocks(p))], ids=lambda page: page.name)
def test_the_examples_of_a_page_run_with_the_slow_ones(page: Path, folder: Path) -> None:
    names: dict = {}
    for block in blocks(page):
        documents.run(block, names)


def test_examples_that_do_not_run_are_counted() -> None:
    found = Counter(block.not_run for page in [*PAGES, *FRONTENDS] for block in blocks(page) if block.not_run)
    assert found == NOT_RUN


@pytest.mark.parametrize("page", [*PAGES, *FRONTENDS], ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_run(page: Path) -> None:
    text = page.read_text()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.findall(r"^ {4}(?:dm2-fast|python|make|pip|git) .*", prose, re.MULTILINE), "indented, so not run"
    spans = re.findall(r"`([^`]*)`", prose)
    assert not [span for span in spans if re.match(r"python \S|pip install \S|dm2-fast \S+ (?!--help$)", span)], (
        "so not run"
    )
    shown = [block.text for block in blocks(page) if block.language == "text"]
    assert not re.findall(r"^(?:dm2-fast|python|make|pip) .*", "\n".join(shown), re.MULTILINE), "as text, so not run"


@pytest.mark.parametrize("page", [*PAGES, *FRONTENDS], ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for target, _, heading in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)):
        linked = (page.parent / target) if target else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, heading
    places = "dm2_fast|csrc|kernels|docs|benches|examples|tests|results"
    for name in re.findall(rf"`((?:{places})/[\w./-]*)`", text):
        assert "NAME" in name or (ROOT / name).exists(), name
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)", text, re.MULTILINE):
        assert {*target} - {""} <= targets


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert README.count("\n") <= 150
    for page in [*PAGES[1:], *FRONTENDS]:
        assert f"({page.relative_to(ROOT)})" in README


def test_the_site_has_every_page_and_every_public_name() -> None:
    """`make docs` needs more than the tests install; what breaks it most easily is seen here."""
    nav = re.findall(r"^  - .*: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert set(nav) == {page.name for page in PAGES[2:]} | {"index.md", "contributing.md", "reference.md"}
    body = ast.parse((ROOT / ".ci" / "site.py").read_text()).body
    (groups,) = (
        node.value for node in body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GROUPS"
    )
    named = {name.partition(".")[0] for names in ast.literal_eval(groups).values() for name in names}
    assert named == {*dm2_fast.__all__} - {"strategies"}


def test_the_readme_lists_the_strategies() -> None:
    (sentence,) = re.findall(r"^Strategies: (.*?)\.$", README, re.DOTALL | re.MULTILINE)
    assert re.findall(r"`(.*?)`", sentence) == list(strategies.names())


def test_the_page_of_the_strategies_has_every_one_with_its_options() -> None:
    overview, _, costs = (ROOT / "docs" / "strategies.md").read_text().partition("\n## What each costs\n")
    rows = re.findall(r"^\| `([\w-]+)` \|[^|]*\| (.*?) ?\|", overview, re.MULTILINE)
    told = {name: re.findall(r"`(\w+)`", options) for name, options in rows}
    kinds = {name: strategies.get(name).options for name in strategies.names()}
    want = {name: [field.name for field in fields(kind)] if kind else [] for name, kind in kinds.items()}
    assert told == want | {"dm2-at": ["dm2"]}  # "those of `dm2`"
    first = re.findall(r"^\| (`.*?) \|", costs, re.MULTILINE)
    assert re.findall(r"`(.*?)`", " ".join(first)) == list(strategies.names())


def sources() -> Iterator[tuple[str, str]]:
    """Where public Python stands, and what it is."""
    for page in PAGES:
        yield from ((block.where, block.text) for block in blocks(page) if block.language == "python")
    yield from ((file.name, file.read_text()) for file in sorted((ROOT / "examples").glob("*.py")))


@pytest.mark.parametrize(("where", "source"), [pytest.param(*each, id=each[0]) for each in sources()])
def test_public_python_uses_the_front_door(where: str, source: str) -> None:
    assert "ForwardPass" not in source
    for node in ast.walk(ast.parse(source)):
        line = getattr(node, "lineno", 0)
        bound = {ast.Name: "id", ast.arg: "arg", ast.FunctionDef: "name", ast.alias: "asname"}.get(type(node))
        if bound and not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)):
            assert getattr(node, bound) not in vars(builtins), f"line {line} hides a built-in"
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        deep = [name for name in imported if name.startswith("dm2_fast.") and name.count(".") > 1]
        assert not deep, f"line {line} imports from two levels down"


PLANTED = {
    "```python\nx = 100\nassert x == 100\n```": None,
    "<!-- toy: 100 -> 10 -->\n```python\nx = 100\nassert x == 10\n```": None,
    "<!-- toy: 100 -> 10 -->\n```python\nx = 1000\n```": "this toy changes nothing: 100 -> 10",
    "<!-- toy: 100 -->\n": "no such comment",
    "<!-- skip -->\n": "no such comment",
    "```bash\nls\n```": "a block is one of python, sh, text, not 'bash'",
    "```\nls\n```": "a block is one of python, sh, text, not ''",
    "```python\nraise ValueError('its own words')\n```": "its own words",
    "<!-- not run: needs a GPU -->\n```python\nraise ValueError\n```": None,
    "```sh\nls\n```": "only dm2-fast and python FILE run here: mark ls slow or not run",
    "<!-- slow -->\n```sh\nfalse\n```": "returned non-zero exit status 1",
    "```sh\ndm2-fast info --data-dir data  # and why\n```": None,
    "```sh\ndm2-fast info --nothing\n```": "dm2-fast info --nothing ended with 2",
    "<!-- toy: dm2-fast info + --nothing -->\n```sh\ndm2-fast info  # why\n```": "dm2-fast info --nothing ended with 2",
    "<!-- toy: dm2-fast in + --nothing -->\n```sh\ndm2-fast info\n```": "this toy changes nothing",
}


@pytest.mark.parametrize(("text", "message"), PLANTED.items(), ids=range(len(PLANTED)))
def test_a_planted_mistake_is_found(text: str, message: str | None, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n{text}\n")

    def run_all() -> list[Block]:
        found = blocks(page)
        for block in found:
            documents.run(block, {})
        return found

    if message is None:
        assert run_all()
    else:
        with pytest.raises(Exception, match=re.escape(message)):
            run_all()
