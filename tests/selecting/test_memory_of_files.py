"""`dm2-fast select --memory`: the plan first, then the files of a selection without a limit."""

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
    assert "neighbours within 0.00 GB: 6 parts of at most 1201 rows in files" in said
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
