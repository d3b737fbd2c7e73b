import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dm2_fast import Round, RunConfig, select_from, strategies
from dm2_fast.cli import main
from dm2_fast.experiment.config import resolve
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import fresh_model
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper.table4 import Table4Config, table4
from dm2_fast.paper.timings import read_timings
from dm2_fast.paper.trial import try_out

QUICK = Table4Config(
    dataset="digits", pool=80, labelled=30, epochs=1, budgets=[5, 9], classes=[4, 7], repeats=2,
    methods=["random", "entropy", "bald", "coreset", "noise-stability", "dm2-at"],
)  # fmt: skip
PASSES = {
    "random": "", "entropy": "logits", "bald": "features+dropout", "coreset": "features+labelled",
    "noise-stability": "noise", "dm2-at": "features+mixed+perturb",
}  # fmt: skip


def keys(folder: Path) -> list[tuple]:
    return sorted(timing.key for timing in read_timings(folder / "timings.csv"))


def wanted() -> list[tuple]:
    """Every timing that the table needs, from the question and not from the program."""
    passes = [
        ("budget", 10, "pass", name, 0, 0) for name in ("logits", "features", "labelled", "dropout", "noise", "mixed")
    ]
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
    for words in ("thread", "commit", "pool of 80", "cnn trained on 30 for 1 epochs", "synthetic linear head"):
        assert words in text
    assert re.search(r"commit \w+, \d{4}-\d\d-\d\d\n", text)
    assert text in "\n".join(lines)


def test_interrupted_at_any_moment_the_table_ends_with_the_same_rows(tmp_path: Path) -> None:
    draw = random.Random(0)
    folder = tmp_path / "table"
    config = replace(QUICK, methods=["random", "bald", "dm2-at"], output=folder)
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


def test_every_method_is_charged_with_the_passes_that_it_runs() -> None:
    """What a strategy names is what its choice spends outside its own stages; dropout stands before the head."""
    data = load("digits")
    model = fresh_model(resolve(RunConfig()), data, torch.device("cpu"))

    def asked(rows: int) -> Round:
        forward = ForwardPass(model, data.x[40 : 40 + rows], data.normalize)
        return Round(forward, labelled=data.x[:40], labels=data.y[:40])

    own = {"choose", "neighbours", "radius", "edges"}
    for name in strategies.names():
        needs = [shared.name for shared in try_out(strategies.get(name), asked).needs]
        spent = select_from(asked(64), 4, name).seconds
        assert set(needs) == set(spent) - own, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table5"], "table must be"),
        (["table4", "--budgets", "5,many"], "--budgets must be whole numbers, as in 0,1,2 or 0-4, got 5,many"),
        (["table4", "--budgets", "500", "--pool", "80"], "budgets must be at most the pool, 80, got 500"),
        (["table4", "--classes", "1"], "classes must be whole numbers of at least 2, got [1]"),
        (["table4", "--methods", "dm3"], "strategy must be one of random"),
        (["table4", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (
            ["table4", "--dataset", "digits", "--pool", "5000", "--output", "new"],
            "digits has 1437 training samples: too few for --labelled 1000 and --pool 5000",
        ),
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
    config = replace(QUICK, methods=["random"], output=tmp_path / "table")
    table4(config)
    with pytest.raises(
        FileExistsError, match=r"holds a table of other settings: budgets \(\[5, 9\] there, \[5\] here\)"
    ):
        table4(replace(config, budgets=[5]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else: name a new folder as --output"):
        table4(replace(config, output=tmp_path / "other"))
