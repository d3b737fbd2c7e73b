"""`dm2-fast select --memory`: the plan first, then the files of a selection without a limit."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dm2_fast.cli import main
from dm2_fast.operations import approximate

COMMAND = "select --features x.npy --head head.npz --budget 20 --dm2.k 5 --threads 1 --output"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.normal(size=(6000, 20)).astype(np.float16))
    np.savez(tmp_path / "head.npz", weight=rng.normal(size=(4, 20)).astype(np.float32), bias=np.zeros(4, np.float32))
    monkeypatch.chdir(tmp_path)


def test_a_budget_changes_nothing_but_where_things_are(capsys: pytest.CaptureFixture[str]) -> None:
    main([*COMMAND.split(), "one"])
    capsys.readouterr()
    main([*COMMAND.split(), "two", "--memory", "1MB"])
    said = capsys.readouterr().out
    assert said.count("neighbours within 0.00 GB: 6 parts of at most 1201 rows in files") == 2  # and before the search
    assert said.index("parts of at most") < said.index("features ")
    for name in ("selected.csv", "scores.npy"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["head.npz", "one", "two", "x.npy"]


def test_too_little_is_said_before_work(capsys: pytest.CaptureFixture[str]) -> None:
    for memory, said in (
        ("10kB", "memory must be at least 1MB for the 5 nearest of 6000 rows of 20 features, got 10kB"),
        ("much", "memory must be a number of bytes, or a text such as 4GB or 500MB, got 'much'"),
    ):
        with pytest.raises(SystemExit):
            main([*COMMAND.split(), "one", "--memory", memory])
        assert said in capsys.readouterr().err
    assert not Path("one").exists()


def test_an_approximate_graph_within_a_budget_writes_the_same_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    main([*COMMAND.split(), "one", "--dm2.recall", "0.8"])
    assert "approximate neighbours: recall" in capsys.readouterr().out
    main([*COMMAND.split(), "two", "--dm2.recall", "0.8", "--memory", "4MB"])
    assert "approximate neighbours within 0.00 GB: codes and lists of all rows" in capsys.readouterr().out
    for name in ("selected.csv", "scores.npy"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes()


def test_where_a_budget_has_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("logits.npy", np.zeros((6000, 4), np.float32))
    for more, said in (
        (["--shard", "1/2"], "leave out --memory: a shard has the features of all others in memory"),
        (["--head", "null", "--logits", "logits.npy"], "leave out --memory: with --logits or --probabilities"),
    ):
        with pytest.raises(SystemExit):
            main([*COMMAND.split(), "one", "--memory", "1GB", *more])
        assert said in capsys.readouterr().err


_MORE = """
import sys
from dm2_fast.cli import main
def most():  # MB, with the pages of files that are mapped
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1e3
command = ["select", "--head", "head.npz", "--budget", "100", "--threads", "1"]
main([*command, "--features", "small.npy", "--output", "a"])
before = most()
main([*command, "--features", "x.npy", "--output", "b", "--memory", "80MB"])
print(most() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says how much memory a process took")
def test_the_memory_taken_stays_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100_000, 4)) @ rng.normal(size=(4, 512)) + 0.01 * rng.normal(size=(100_000, 512))
    np.save("x.npy", x.astype(np.float32))  # 205 MB, whose rows are mixed from all over the file
    np.save("small.npy", x[:2000].astype(np.float32))
    np.savez("head.npz", weight=rng.normal(size=(4, 512)).astype(np.float32), bias=np.zeros(4, np.float32))
    found = subprocess.run([sys.executable, "-c", _MORE], capture_output=True, text=True, check=True)
    assert float(found.stdout.split()[-1]) < 80 + 60
