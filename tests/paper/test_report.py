import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml

from dm2_fast import RunConfig
from dm2_fast.cli import main
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.config import resolve, to_dict
from dm2_fast.paper.report import write_report
from dm2_fast.paper.sweep import SweepConfig, sweep


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def write_run(folder: Path, accuracies: list[float], *, rounds: int = 2, **options) -> Path:
    """A folder as a run leaves it: config.yaml and rounds.csv."""
    folder.mkdir(parents=True)
    values = to_dict(RunConfig(model="cnn", rounds=rounds)) | options
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    lines = [
        "round,labelled,accuracy,accuracy_fgsm,loss,epsilon,seconds_train,seconds_logits,seconds_choose,seconds_perturb"
    ]
    for r, accuracy in enumerate(accuracies):
        seconds = f"{10 + r},{r + 1},0.5,7" if r < rounds else f"{10 + r},,,"
        lines.append(f"{r},{20 * (r + 1)},{accuracy},{accuracy / 2},1.5,,{seconds}")
    (folder / "rounds.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_report_is_the_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    accuracies = np.random.default_rng(0).random((2, 3, 3)).round(6)
    folders = [
        write_run(tmp_path / f"{name}{seed}", accuracies[i, seed].tolist(), strategy=name, seed=seed)
        for i, name in enumerate(("dm2", "random"))
        for seed in range(3)
    ]
    lines: list[str] = []
    assert write_report(folders, tmp_path / "out" / "report", echo=lines.append) == tmp_path / "out" / "report"
    rows = table(tmp_path / "out" / "report" / "report.csv")
    assert list(rows[0]) == [
        "strategy", "labelled", "runs", "accuracy_mean", "accuracy_std", "accuracy_fgsm_mean", "accuracy_fgsm_std",
        "selection_seconds_mean",
    ]  # fmt: skip
    assert [(row["strategy"], row["labelled"], row["runs"]) for row in rows] == [
        (name, labelled, "3") for name in ("dm2", "random") for labelled in ("20", "40", "60")
    ]
    mean, std = accuracies.mean(1).ravel(), accuracies.std(1, ddof=1).ravel()
    for row, m, s, seconds in zip(rows, mean, std, ["1.500000", "2.500000", ""] * 2, strict=True):
        got = [float(row[name]) for name in list(row)[3:7]]
        assert got == pytest.approx([m, s, m / 2, s / 2], abs=1e-6)
        assert row["selection_seconds_mean"] == seconds  # logits and choose; not train, nor perturb
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "strategy", "labelled", "runs", "accuracy (%)", "under FGSM (%)", "selection (s)",
    ]  # fmt: skip
    final = f"{100 * mean[5]:.2f} ± {100 * std[5]:.2f}"
    assert [cell.strip() for cell in lines[3].split("|")][1:5] == ["random", "60", "3", final]
    assert lines[3].rstrip(" |").endswith("2.0")
    picture = matplotlib.image.imread(tmp_path / "out" / "report" / "report.png")
    assert picture.shape[1] > picture.shape[0]
    assert picture.std() > 0.05


def test_runs_that_differ_in_more_are_curves_of_their_own_named_by_it(tmp_path: Path) -> None:
    options = to_dict(resolve(RunConfig()))["dm2"]
    folders = [
        write_run(tmp_path / f"{k}{seed}", [0.1, 0.2, 0.3], strategy="dm2", seed=seed, dm2=options | {"k": k})
        for k in (5, 10)
        for seed in (0, 1)
    ]
    folders.append(
        write_run(tmp_path / "random", [0.1, 0.2, 0.3], strategy="random", seed=4, device="cuda:3", threads=9)
    )
    write_report(folders, tmp_path)
    rows = table(tmp_path / "report.csv")
    assert {(row["strategy"], row["runs"]) for row in rows} == {
        ("dm2 dm2.k=5", "2"), ("dm2 dm2.k=10", "2"), ("random", "1"),
    }  # fmt: skip
    assert {row["accuracy_std"] for row in rows if row["runs"] == "1"} == {""}


def test_what_is_no_run_is_left_out_and_what_is_not_finished_is_named(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole", [0.1, 0.2, 0.3], seed=0)
    part = write_run(tmp_path / "part", [0.2, 0.4], seed=1)
    begun = write_run(tmp_path / "begun", [], seed=2)
    (tmp_path / "notes").mkdir()
    lines: list[str] = []
    write_report([whole, tmp_path / "notes", part, begun, tmp_path / "no"], tmp_path, echo=lines.append)
    assert lines[:4] == [
        f"left out: {tmp_path}/notes (no folder of a run)",
        f"not finished: {part} (2 of 3 trainings)",
        f"not finished: {begun} (0 of 3 trainings)",
        f"left out: {tmp_path}/no (no folder of a run)",
    ]
    assert [row["runs"] for row in table(tmp_path / "report.csv")] == ["2", "2", "1"]


def test_a_report_without_a_run_or_with_one_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"none of these folders holds a run with a training: {tmp_path}"):
        write_report([tmp_path], tmp_path / "out")
    (tmp_path / "study" / "curves").mkdir(parents=True)
    with pytest.raises(ValueError, match="study \\(a study: say with --against METHOD what to compare with\\)"):
        write_report([tmp_path / "study"], tmp_path / "out")
    first, again = (write_run(tmp_path / name, [0.1, 0.2, 0.3], seed=3, data_dir=name) for name in ("a", "b"))
    with pytest.raises(ValueError, match=f"{first} and {again} hold the same run"):
        write_report([first, again], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", "a: [1"),
        ("config.yaml", "just words"),
        ("config.yaml", "strategy: dm2\n"),
        ("config.yaml", "dataset: d\nmodel: n\nseed: 0\nrounds: 2\n"),
        ("rounds.csv", "round,labelled\n0,20\n"),
        ("rounds.csv", "round,labelled,accuracy,accuracy_fgsm\n0,20,0.5\n"),
        ("rounds.csv", None),
    ],
)
def test_damaged_files_are_named(file: str, content: str | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [0.1, 0.2, 0.3])
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(ValueError, match=f"cannot read run {folder}: ") as caught:
        write_report([folder], tmp_path)
    assert "\n" not in str(caught.value)


QUICK = RunConfig(initial=10, budget=4, rounds=1, pool=50, test=30, training=TrainingConfig(epochs=1))


@pytest.mark.slow
def test_a_sweep_leaves_the_runs_it_would_alone_and_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    configs = [replace(QUICK, strategy=strategy, seed=seed) for strategy in ("entropy", "random") for seed in (0, 3)]
    folder = sweep(configs, echo=lines.append)
    started = [line for line in lines if line.startswith("run ")]
    assert [line.partition(": ")[0] for line in started] == [f"run {i} of 4" for i in (1, 2, 3, 4)]
    runs = [Path(line.partition(": ")[2]) for line in started]
    for run, (strategy, seed) in zip(runs, [("entropy", 0), ("entropy", 3), ("random", 0), ("random", 3)], strict=True):
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert (config["strategy"], config["seed"]) == (strategy, seed)
        assert run.parent == Path("runs")
    assert folder.name.startswith("digits-cnn-2strategies-2seeds-")
    for i, row in enumerate(table(folder / "report.csv")):
        pair = [float(table(run / "rounds.csv")[i % 2]["accuracy"]) for run in runs[i // 2 * 2 : i // 2 * 2 + 2]]
        assert float(row["accuracy_mean"]) == pytest.approx(np.mean(pair), abs=1e-6)
    before = (folder / "report.csv").read_bytes()
    main(["report", *map(str, Path("runs").iterdir()), "--output", "again"])
    rebuilt = sorted((tmp_path / "again" / "report.csv").read_text().splitlines())
    assert rebuilt == sorted(before.decode().splitlines())


def test_a_sweep_is_checked_before_its_first_run_and_keeps_below_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="strategy must be one of"):
        sweep([QUICK, replace(QUICK, strategy="dm3")])
    with pytest.raises(ValueError, match="give at least one configuration, and none twice"):
        sweep([QUICK, QUICK])
    with pytest.raises(ValueError, match="strategies must be distinct and at least one, got random, random"):
        SweepConfig(strategies=["random", "random"])
    with pytest.raises(ValueError, match="seeds must be distinct and at least one, got none"):
        SweepConfig(seeds=[])
    assert list(tmp_path.iterdir()) == []
    options = "--seeds 5 --output mine --strategy random --rounds 0 --pool 50 --test 9 --training.epochs 1"
    main(["run", *options.split()])
    assert sorted(file.name.rpartition("-")[0] or file.name for file in (tmp_path / "mine").iterdir()) == [
        "digits-cnn-random-seed5", "report.csv", "report.png",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
