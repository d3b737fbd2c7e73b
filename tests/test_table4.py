import random
from dataclasses import replace
from pathlib import Path

import pytest

from dm2_fast import strategies
from dm2_fast.cli import main
from dm2_fast.experiment import table4 as module
from dm2_fast.experiment.table4 import Table4Config, table4
from dm2_fast.experiment.timings import read_timings

QUICK = Table4Config(
    dataset="digits", pool=80, labelled=30, epochs=1, budgets="5,9", classes="4,7", repeats=2,
    methods="random,entropy,bald,coreset,noise-stability,dm2-at",
)  # fmt: skip
PASSES = {
    "random": "", "entropy": "features", "bald": "features+dropout", "coreset": "features+labelled",
    "noise-stability": "noise", "dm2-at": "features+mixed+perturb",
}  # fmt: skip


def keys(folder: Path) -> list[tuple]:
    return sorted(timing.key for timing in read_timings(folder / "timings.csv"))


def wanted() -> list[tuple]:
    """Every timing that the table needs, from the question and not from the program."""
    passes = [("budget", 10, "pass", name, 0, 0) for name in ("features", "labelled", "dropout", "noise", "mixed")]
    passes += [("budget", 10, "pass", "perturb", budget, 0) for budget in (5, 9)]
    places = [("budget", 10, 5), ("budget", 10, 9), ("classes", 4, 9), ("classes", 7, 9)]
    return sorted(
        passes
        + [(a, c, "selection", method, b, repeat) for a, c, b in places for method in PASSES for repeat in range(2)]
    )


def test_every_method_is_timed_at_every_place_and_its_passes_once(tmp_path: Path) -> None:
    lines: list[str] = []
    folder = table4(replace(QUICK, output=tmp_path / "table"), echo=lines.append)
    assert lines[0] == "24 acquisitions to time, about 1 minutes"
    assert sorted(file.name for file in folder.iterdir()) == [
        "model.pt", "settings.yaml", "table4.csv", "table4.md", "table4.png", "timings.csv",
    ]  # fmt: skip
    assert keys(folder) == wanted()
    timings = read_timings(folder / "timings.csv")
    assert all(timing.seconds > 0 for timing in timings)
    for timing in timings:
        if timing.part == "selection":
            assert timing.passes == (PASSES[timing.name] if timing.axis == "budget" else "")
    text = (folder / "table4.md").read_text()
    for words in ("threads", "commit", "pool of 80", "cnn trained on 30 for 1 epochs", "synthetic linear head"):
        assert words in text
    assert text in "\n".join(lines)


def test_interrupted_at_any_moment_the_table_ends_with_the_same_rows(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = tmp_path / "table"
    config = replace(QUICK, methods="random,bald,dm2-at", output=folder)
    for _ in range(4):
        left = draw.randrange(1, 5)

        def stop(line: str) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            table4(config, echo=stop)
        if (folder / "timings.csv").exists():
            text = (folder / "timings.csv").read_text()
            (folder / "timings.csv").write_text(text[: draw.randrange(len(text))])
    kept = {timing.key: timing for timing in read_timings(folder / "timings.csv")}
    table4(config)
    names = ("random", "bald", "dm2-at", "features", "dropout", "mixed", "perturb")
    assert keys(folder) == [key for key in wanted() if key[3] in names]
    ended = {timing.key: timing for timing in read_timings(folder / "timings.csv")}
    assert all(ended[key] == timing for key, timing in kept.items())
    before = (folder / "table4.csv").read_text()
    lines: list[str] = []
    table4(config, echo=lines.append)  # nothing is left to be timed
    assert (folder / "table4.csv").read_text() == before
    assert lines[0].startswith("\n# Time of one acquisition")


def test_a_pass_of_a_new_kind_is_not_forgotten() -> None:
    """Each method needs passes that the table knows by name."""
    config = replace(QUICK, methods="all")
    assert config.method_names == list(strategies.names())
    assert set(module._PASSES) == {"features", "labelled", "dropout", "noise", "mixed"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table5"], "table must be"),
        (["table4", "--budgets", "5,many"], "budgets must be positive whole numbers with commas between, got '5,many'"),
        (["table4", "--budgets", "500", "--pool", "80"], "budgets must be at most the pool, 80, got 500"),
        (["table4", "--classes", "1"], "classes must be at least 2, got 1"),
        (["table4", "--methods", "dm3"], "strategy must be one of random"),
        (["table4", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (["table4", "--dataset", "digits", "--pool", "5000", "--output", "new"], "pool must be at most 437 beside"),
    ],
)
def test_a_mistake_gets_one_readable_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_of_other_settings_or_of_something_else_is_refused(tmp_path: Path) -> None:
    config = replace(QUICK, methods="random", output=tmp_path / "table")
    table4(config)
    with pytest.raises(FileExistsError, match=r"differs in budgets \(5,9 there, 5 here\)"):
        table4(replace(config, budgets="5"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="output must be new, empty or the folder of a table"):
        table4(replace(config, output=tmp_path / "other"))
