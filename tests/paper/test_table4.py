import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dm2_fast import Picked, Round, RunConfig, Strategy, select_from, strategies
from dm2_fast.cli import main
from dm2_fast.experiment.config import resolve
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import fresh_model
from dm2_fast.model.passes import ForwardPass
from dm2_fast.paper import trial
from dm2_fast.paper.table4 import Table4Config, table4
from dm2_fast.paper.timings import read_timings
from dm2_fast.paper.trial import Trial, try_out
from dm2_fast.strategies.dm2 import DM2Config

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


def quick(name: str) -> Strategy:
    """The strategy, with less of what takes long by default."""
    strategy = strategies.get(name)
    less = {"isal": {"steps": 1, "restarts": 1}, "vaal": {"epochs": 1}, "ll4al": {"epochs": 1}}.get(name)
    if less is None:
        return strategy
    return replace(strategy, choose=lambda asked, budget, _: strategy.choose(asked, budget, strategy.options(**less)))


@pytest.mark.filterwarnings("ignore:vaal trains", "ignore:ll4al trains")
@pytest.mark.parametrize("name", strategies.names())
def test_every_method_is_charged_with_the_passes_that_it_runs(name: str) -> None:
    """What a strategy names is what its choice spends outside its own stages; dropout stands before the head."""
    data = load("digits")
    model = fresh_model(resolve(RunConfig()), data, torch.device("cpu"))

    def asked(rows: int, labelled: int) -> Round:
        forward = ForwardPass(model, data.x[40 : 40 + rows], data.normalize)
        return Round(forward, labelled=data.x[: min(labelled, 40)], labels=data.y[: min(labelled, 40)])

    own = {"choose", "neighbours", "radius", "edges", "clusters"}
    needs = [shared.name for shared in try_out(quick(name), asked, [4], 1000, 40).needs]
    assert set(needs) == set(select_from(asked(64, 40), 4, quick(name)).seconds) - own


class Clock:
    now = 0.0


def slow_choice(asked: Round, budget: int, options: None) -> Picked:
    """Takes a second of a clock that stands still otherwise."""
    Clock.now += 1
    return Picked(torch.arange(budget), None)


def test_a_method_over_the_limit_is_named_with_its_estimate_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "perf_counter", lambda: Clock.now)
    slow = f"{__name__}:slow_choice"
    config = replace(QUICK, methods=["random", slow], limit=0.5, output=tmp_path / "table")
    lines: list[str] = []
    folder = table4(config, echo=lines.append)
    assert sum("not run: about 1.00 s" in line and "over the limit" in line for line in lines) == 4
    text = (folder / "table4.md").read_text()
    assert re.search(rf"\| {slow} \| 9 \| \| not run \| about 1.00 \| \| \|", text)
    assert re.search(rf"\| {slow} \| 7 \| 9 \| not run: about 1.00 \| \|", text)
    assert text.count("| random |") == 4
    timings = read_timings(folder / "timings.csv")
    assert {timing.name for timing in timings if timing.part == "selection"} == {"random"}
    estimates = [timing for timing in timings if timing.part == "estimate"]
    assert [(timing.name, timing.budget) for timing in estimates] == [(slow, 5), (slow, 9), (slow, 9), (slow, 9)]
    assert (folder / "table4.png").exists()
    before = Clock.now
    table4(config)  # goes on with what it has
    assert Clock.now == before, "tried again"
    assert (folder / "table4.md").read_text().split("\n", 3)[3] == text.split("\n", 3)[3]
    table4(replace(config, limit=2))  # a higher limit runs what is below it, and times nothing again
    ended = read_timings(folder / "timings.csv")
    assert [timing for timing in ended if timing.name == "random"] == [t for t in timings if t.name == "random"]
    assert {(t.part, t.name) for t in ended} == {("selection", "random"), ("selection", slow)}
    assert "not run" not in (folder / "table4.md").read_text()


def test_an_estimate_grows_with_rows_labelled_samples_and_budget() -> None:
    spent = ({"a": 1.0}, {"a": 4.0}, {"a": 1.0}, {"a": 4.0}, {"a": 1.5})
    sizes = ((64, 64, 4), (256, 64, 4), (64, 64, 16), (256, 64, 16), (64, 128, 4))
    of = Trial((), sizes, spent, (0.1, 0.7, 0.22, 1.3, 0.1))
    assert of.passes(640, 320) == {"a": pytest.approx(1 + 1 * 9 + 0.5 * 4)}
    by_pick = 0.01 + (0.05 - 0.01) / 192 * 576
    assert of.selection(100, 640, 320) == pytest.approx(0.1 + 0.2 * 9 + by_pick * 96)
    assert of.acquisition(100, 640, 320) == pytest.approx(12 + of.selection(100, 640, 320))
    assert of.passes(64, 10) == {"a": 1.0}


def product_choice(asked: Round, budget: int, options: None) -> Picked:
    """Takes a second of that clock for every row and every pick but two."""
    Clock.now += len(asked.forward) * (budget - 2)
    return Picked(torch.arange(budget), None)


def test_the_estimate_of_a_method_whose_time_is_rows_times_picks_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "perf_counter", lambda: Clock.now)

    def asked(rows: int, labelled: int) -> Round:
        return Round(ForwardPass(torch.nn.Linear(3, 2), torch.rand(rows, 3)))

    found = try_out(strategies.get(product_choice), asked, [1000], 10_000, 1000)
    assert found.acquisition(1000, 10_000, 1000) == pytest.approx(10_000 * 998)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The rows and labelled samples of the trials to come, by that clock."""
    monkeypatch.setattr(trial, "perf_counter", lambda: Clock.now)
    return []


def try_with(tried: list[tuple[int, int]], choice: Callable[[Round, int, None], Picked], limit: float) -> Trial:
    def asked(rows: int, labelled: int) -> Round:
        tried.append((rows, labelled))
        return Round(ForwardPass(torch.nn.Linear(3, 2), torch.rand(rows, 3)))

    return try_out(strategies.get(choice), asked, [100, 2500], 10_000, 1000, limit)


SET = [(64, 64), (256, 64), (64, 64), (256, 64), (64, 128)]


def test_trials_end_where_they_are_enough(tried: list[tuple[int, int]]) -> None:
    assert try_with(tried, slow_choice, 0.5).acquisition(100, 10_000, 1000) == 1
    assert tried == [(64, 64)]
    assert try_with(tried, slow_choice, 2).acquisition(100, 10_000, 1000) == 1
    assert tried[1:] == [(64, 64), *SET]
    tried.clear()
    assert try_with(tried, product_choice, 5000).acquisition(100, 10_000, 1000) > 5000
    assert tried == [(64, 64), (64, 64), (256, 64)]


def test_a_few_milliseconds_that_a_short_trial_took_longer_do_not_rule_a_method_out(
    tried: list[tuple[int, int]],
) -> None:
    def choice(asked: Round, budget: int, options: None) -> Picked:
        Clock.now += 0.001 + 0.05 * (len(tried) == 5)  # the first trial of many rows and many picks
        return Picked(torch.arange(budget), None)

    found = try_with(tried, choice, 30)
    assert tried == [(64, 64), *SET, *((4 * rows, 4 * samples) for rows, samples in SET)]
    assert found.acquisition(2500, 10_000, 1000) == pytest.approx(0.001)


def test_trials_grow_until_they_tell_and_no_larger_than_the_pool(tried: list[tuple[int, int]]) -> None:
    def choice(asked: Round, budget: int, options: None) -> Picked:
        Clock.now += 1e-6 * len(asked.forward) * budget
        return Picked(torch.arange(budget), None)

    assert try_with(tried, choice, 20).acquisition(2500, 10_000, 1000) == pytest.approx(25)
    assert max(tried) == (4096, 500)  # of 10,000 rows and 1,000 samples, which are 1,000 in the trial of more of them
    assert (1024, 1000) in tried


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table9"], "study must be one of probe, table1"),
        (["table4", "--budgets", "5,many"], "--budgets must be whole numbers, as in 0,1,2 or 0-4, got 5,many"),
        (["table4", "--budgets", "500", "--pool", "80"], "budgets must be at most the pool, 80, got 500"),
        (["table4", "--classes", "1"], "classes must be whole numbers of at least 2, got [1]"),
        (["table4", "--methods", "dm3"], "strategy must be one of random"),
        (["table4", "--repeats", "0"], "repeats must be at least 1, got 0"),
        (["table4", "--limit", "0"], "limit must be positive, got 0"),
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


def test_dm2_of_the_benches_is_the_published_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    options = strategies.get("benches.published:dm2").checked(None)
    assert isinstance(options, DM2Config)
    assert vars(options) == vars(DM2Config.published())


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
