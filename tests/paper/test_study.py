"""Studies: protocols, the probe track, curves in files, work that is shared, and what is written about them."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dm2_fast import strategies
from dm2_fast.cli import main
from dm2_fast.experiment.data import patches
from dm2_fast.experiment.data.own_features import read_own
from dm2_fast.paper import work
from dm2_fast.paper.comparison import ALL, compare
from dm2_fast.paper.curves import Curve, add_curves, hash_of, read_curves
from dm2_fast.paper.probe import Head, Probe, pool_of, probe_curve
from dm2_fast.paper.protocol import merged, read_protocol, run_config
from dm2_fast.paper.statistics import permutation_test
from dm2_fast.paper.study import StudyConfig, study
from dm2_fast.strategies import cluster_margin
from dm2_fast.strategies.cluster_margin import clusters
from dm2_fast.strategies.dm2 import DM2Config

TOY = """
show: probe
cells:
  one: {dataset: digits, features: pixels, pool: 150, test: 60, initial: 10, budget: 5, rounds: 2}
  two: {dataset: digits, features: pixels, pool: 150, test: 60, initial: 12, budget: 6, rounds: 2, l2: 0.1}
methods:
  random: {strategy: random}
  margin-kmeans: {strategy: margin, margin: {batch: kmeans}}
  dm2-published: {strategy: dm2, dm2: published}
  greedy-oracle: {strategy: greedy-oracle}
  full-data: {strategy: full-data}
seeds: 3
compared: [margin-kmeans, dm2-published]
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.yaml"
    file.write_text(TOY)
    return file


def config_of(toy: Path, **changes) -> StudyConfig:
    return StudyConfig(**{"study": "probe", "protocol": str(toy), "output": toy.parent / "out"} | changes)


# The linear head


def data(n: int, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(classes, size=n)
    return rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)), y


@pytest.mark.parametrize("l2", [0.01, 1.0, 30.0])
def test_the_head_is_regularised_logistic_regression_at_its_minimum(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = data(40)
    head = Head(6, 3, l2)
    head.fit(x, y)
    theirs = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=10_000, fit_intercept=False)
    theirs.fit(np.hstack([x, np.ones((40, 1))]), y)
    np.testing.assert_allclose(head.weight, theirs.coef_, atol=2e-3 * max(1, np.abs(theirs.coef_).max()))


def test_the_start_of_a_fit_does_not_matter() -> None:
    x, y = data(50)
    cold, warm = Head(6, 3, 0.5), Head(6, 3, 0.5)
    warm.fit(x[:20], y[:20])
    for head in (cold, warm):
        head.fit(x, y)
    np.testing.assert_allclose(cold.weight, warm.weight, atol=1e-3)


def test_a_class_without_a_label_is_no_obstacle() -> None:
    x, y = data(30)
    head = Head(6, 5, 1.0)
    head.fit(x, y)
    assert np.isfinite(head.weight).all()
    assert head.accuracy(x, y) > 0.6
    logits = head.module(dropout=False)(torch.from_numpy(x).float()).detach()
    np.testing.assert_allclose(logits, x @ head.weight[:, :-1].T + head.weight[:, -1], atol=1e-5)


# Pools, features


def test_pools_of_the_first_seeds_share_no_row_and_cover_all() -> None:
    pools = [pool_of(seed, 100, 30) for seed in range(7)]
    assert all(len(set(pool.tolist())) == 30 for pool in pools)
    for first in (0, 3):
        assert len(set(torch.cat(pools[first : first + 3]).tolist())) == 90
    assert pools[3].tolist() != pools[0].tolist()
    with pytest.raises(ValueError, match="pool must be at most 20 for this data set, got 30"):
        pool_of(0, 20, 30)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_frozen_features_see_no_labels_and_come_back_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "CENTRES", 5)
    monkeypatch.setattr(patches, "PATCHES", 300)
    x, x_test = images(60), images(20, 1)
    first = patches.frozen_features(x, x_test, 7, tmp_path)
    assert [tuple(part.shape) for part in first] == [(60, 7), (20, 7)]
    assert first[0].mean(0).abs().max() < 1e-3
    stds = first[0].std(0)
    assert stds[0].item() == pytest.approx(1, abs=0.05)
    assert (stds.diff() < 1e-4).all()
    monkeypatch.setattr(patches, "_Coder", None)
    again = patches.frozen_features(x, x_test, 7, tmp_path)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    with pytest.raises(TypeError):
        patches.frozen_features(images(60, 2), x_test, 7, tmp_path)  # other images have another file


def test_the_encoding_is_that_of_coates_and_ng(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patch by patch, in float64."""
    monkeypatch.setattr(patches, "CENTRES", 4)
    monkeypatch.setattr(patches, "PATCHES", 200)
    coder = patches._Coder(images(40))
    found = coder.encode(images(3, 5))
    for image, features in zip(images(3, 5)[:, 0].double().numpy(), found, strict=True):
        sums = np.zeros((2, 2, 4))
        for i in range(6):
            for j in range(6):
                patch = image[i : i + 3, j : j + 3].ravel()
                patch = (patch - patch.mean()) / np.sqrt(patch.var() + 10)
                white = (patch - coder.mean.double().numpy()) @ coder.whiten.double().numpy()
                z = np.linalg.norm(white - coder.centres.double().numpy(), axis=1)
                sums[i // 3, j // 3] += np.maximum(0, z.mean() - z)
        np.testing.assert_allclose(features, sums.ravel(), rtol=1e-3, atol=1e-3)


# A curve


def test_a_curve_of_the_probe_is_reproducible_and_pairs_start_alike() -> None:
    cell = Probe("digits", 150, 10, 5, 2, 60, features="pixels")
    made = [probe_curve("c", "m", cell, {"strategy": name}, 1, Path()) for name in ("margin", "margin", "random")]
    assert made[0].measures == made[1].measures
    assert made[0].picks == made[1].picks != made[2].picks
    assert made[0].accuracy[0] == made[2].accuracy[0]
    assert made[0].labelled == (10, 15, 20)


@pytest.mark.parametrize("name", [name for name in strategies.names() if strategies.get(name).part is None])
def test_strategies_have_a_curve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    monkeypatch.setattr(cluster_margin, "clusters", lambda *args, **more: found.append(1) or clusters(*args, **more))
    cell = Probe("digits", 120, 10, 5, 2, 60, features="pixels")
    made = probe_curve("c", "m", cell, {"strategy": name}, 1, Path())
    assert made.labelled == (10, 15, 20)
    assert len(found) == (name == "cluster-margin")  # the clusters of the first round are those of the others


@pytest.mark.parametrize(
    "options", [{"strategy": "vaal"}, {"strategy": "ll4al"}, {"strategy": "qbc", "qbc": {"committee": "networks"}}]
)
def test_what_trains_beside_the_head_has_none(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="trains something beside the network: it has no place on the probe track"):
        probe_curve("c", "m", Probe("digits", 120, 10, 5, 2, 60, features="pixels"), options, 1, Path())


def test_the_references_look_at_the_labels() -> None:
    cell = Probe("digits", 300, 10, 10, 3, 200, features="pixels")
    area = {}
    for name in ("random", "greedy-oracle", "full-data"):
        curves = [probe_curve("c", name, cell, {"strategy": name}, seed, Path()) for seed in range(3)]
        area[name] = np.mean([curve.accuracy[-1] for curve in curves])
    assert area["random"] < area["greedy-oracle"] < area["full-data"]


def test_features_of_ones_own(tmp_path: Path) -> None:
    x, y = data(200, seed=4)
    file = tmp_path / "own.npz"
    np.savez(file, x=x[:150], y=y[:150], x_test=x[150:], y_test=y[150:])
    made = probe_curve("c", "m", Probe(str(file), 100, 5, 5, 2), {"strategy": "margin"}, 0, tmp_path)
    assert len(made.accuracy) == 3
    np.savez(file, x=x[:150], y=y[:140], x_test=x[150:], y_test=y[150:])
    with pytest.raises(ValueError, match="the classes of x must be 150 integers from 0 on"):
        read_own(file)


# Curves in files


def a_curve(cell: str = "c", method: str = "m", seed: int = 0, accuracy: tuple[float, ...] = (0.5, 0.75)) -> Curve:
    return Curve(cell, method, seed, (10, 20), {"accuracy": accuracy, "last": (0.25,)}, "abc", seconds=1.5)


def test_curves_come_back_and_the_first_of_a_key_stays(tmp_path: Path) -> None:
    curves = [a_curve(), a_curve(seed=1), a_curve("d", "m, n")]
    add_curves(tmp_path, curves)
    assert sorted(read_curves(tmp_path), key=lambda c: c.key) == curves
    before = (tmp_path / "d.csv.gz").read_bytes()
    add_curves(tmp_path, [a_curve(accuracy=(0.1, 0.2)), replace(a_curve(seed=2), measures={"accuracy": (1.0, 1.0)})])
    assert len(read_curves(tmp_path)) == 4
    assert a_curve() in read_curves(tmp_path)
    assert (tmp_path / "d.csv.gz").read_bytes() == before
    (tmp_path / "c.csv.gz").write_bytes(before[:50])
    with pytest.raises(ValueError, match="c.csv.gz is damaged"):
        read_curves(tmp_path)


def test_the_hash_of_picks_tells_order_and_rounds_apart() -> None:
    picks = [torch.tensor([1, 2]), torch.tensor([3])]
    others = [
        [torch.tensor([2, 1]), torch.tensor([3])],
        [torch.tensor([1, 2, 3])],
        [torch.tensor([1]), torch.tensor([2, 3])],
    ]
    assert len({hash_of(each) for each in (picks, *others)}) == 4
    assert hash_of(picks) == hash_of([part.clone() for part in picks])


# Work that is shared


def _add(folder: Path, start: int) -> None:
    for seed in range(start, start + 15):
        add_curves(folder, [a_curve(seed=seed)])


def test_processes_add_curves_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(tmp_path, 15 * i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [curve.seed for curve in read_curves(tmp_path)] == list(range(45))


CLAIM = """
import sys, time
from pathlib import Path
from dm2_fast.paper.work import Claims
with Claims.open(Path(sys.argv[1])) as claims:
    print(claims.take(7), claims.take(2**59), flush=True)
    sys.stdin.read()
"""


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path / "claims")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "True True\n"
    with work.Claims.open(tmp_path / "claims") as claims:
        assert not claims.take(7)
        assert not claims.take(2**59)
        assert claims.take(8)
        other.kill()
        other.communicate()
        assert claims.take(7)


def test_a_study_runs_once_and_says_what_is_left(toy: Path) -> None:
    lines: list[str] = []
    toy.write_text(TOY.replace("  greedy-oracle: {strategy: greedy-oracle}\n", ""))
    folder = study(config_of(toy, seeds=[0, 1]), echo=lines.append)
    assert lines[0] == "toy: 0 curves made, 16 left"
    assert any(line.split()[:3] == ["margin-kmeans", "4", "curves"] for line in lines)
    curves = read_curves(folder / "curves")
    assert {curve.key for curve in curves} == set(replace(read_protocol(str(toy)), seeds=(0, 1)).keys)
    assert all(curve.commit and curve.versions and curve.machine and curve.date for curve in curves)
    stamps = [file.stat().st_mtime_ns for file in (folder / "curves").iterdir()]
    lines.clear()
    study(config_of(toy, seeds=[0, 1]), echo=lines.append)
    assert lines[0] == "toy: 16 curves made, 0 left"
    assert stamps == [file.stat().st_mtime_ns for file in (folder / "curves").iterdir()]
    lines.clear()
    study(config_of(toy, plan=True), echo=lines.append)
    assert lines[0] == "toy: 16 curves made, 8 left"
    assert len(read_curves(folder / "curves")) == 16


def test_a_slow_method_may_have_fewer_seeds(toy: Path) -> None:
    toy.write_text(TOY.replace("seeds: 3", "seeds: 4-6\nfewer: {greedy-oracle: [5]}").replace("compared", "# "))
    protocol = read_protocol(str(toy))
    assert protocol.tested == ("margin-kmeans", "dm2-published", "full-data")
    keys = [key for key in protocol.keys if key[1] == "greedy-oracle"]
    assert keys == [("one", "greedy-oracle", 5), ("two", "greedy-oracle", 5)]
    assert len(protocol.keys) == 2 * (4 * 3 + 1)
    assert not any(key[1] == "greedy-oracle" for key in protocol.restricted(None, None, [4, 6]).keys)


def test_other_options_are_refused(toy: Path) -> None:
    study(config_of(toy, seeds=[0], methods=["random"]))
    toy.write_text(TOY.replace("random: {strategy: random}", "random: {strategy: random, ties: random}"))
    with pytest.raises(FileExistsError, match="holds curves of random on one that were made with other options"):
        study(config_of(toy, seeds=[0], methods=["random"]))


@pytest.mark.slow
def test_two_commands_share_the_work_and_one_that_is_killed_goes_on(toy: Path) -> None:
    def command(*more: str) -> subprocess.Popen:
        options = ["bench", "probe", "--protocol", str(toy), "--output", str(toy.parent / "out"), "--seeds", "0-19"]
        return subprocess.Popen([sys.executable, "-m", "dm2_fast", *options, *more], stdout=subprocess.DEVNULL)

    killed = command("--jobs", "2")
    deadline = time.monotonic() + 120
    while not list((toy.parent / "out").glob("curves/*.gz")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(killed.pid, signal.SIGINT)
    killed.wait()
    both = [command(), command()]
    assert [process.wait() for process in both] == [0, 0]
    together = {curve.key: (curve.picks, curve.measures) for curve in read_curves(toy.parent / "out" / "curves")}
    alone = study(config_of(toy, seeds=list(range(20)), output=toy.parent / "alone"))
    assert together == {curve.key: (curve.picks, curve.measures) for curve in read_curves(alone / "curves")}
    assert len(together) == 200


# Protocols


def test_options_of_a_cell_and_a_method_come_together() -> None:
    values = merged(
        {"training": {"epochs": 3, "lr": 0.1}, "budget": 5}, {"training": {"lr": 0.2}, "strategy": "margin"}
    )
    config = run_config(values, seed=4)
    assert (config.training.epochs, config.training.lr, config.budget, config.seed) == (3, 0.2, 5, 4)
    published = DM2Config.published()
    assert run_config({"strategy": "dm2", "dm2": "published"}).options == published
    assert run_config({"strategy": "dm2", "dm2": {"lam": 0.3}}).options == replace(published, lam=0.3)
    assert run_config({"strategy": "dm2-at", "dm2": {"k": 2}}).options == replace(published, k=2)
    assert run_config({"strategy": "dm2"}).options is None
    with pytest.raises(ValueError, match="options of a run are wrong: .*kk"):
        run_config({"strategy": "dm2", "dm2": {"kk": 3}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("show: probe", "show: table9"), "show must be one of probe, table1"),
        (("seeds: 3", ""), "is no protocol: seeds missing"),
        (("seeds: 3", "seeds: 3\nmore: 1"), "is no protocol: unknown more"),
        (("compared: [margin-kmeans", "compared: [badge"), "badge is compared but not among the methods"),
        (("methods:", "methods: 3\nothers:"), "is no protocol: unknown others"),
        (("seeds: 3", "seeds: 5-3"), "seeds must be how many, or whole numbers as in 25-74, got '5-3'"),
        (("seeds: 3", "seeds: [1, two]"), "seeds must be how many, or whole numbers"),
        (("seeds: 3", "seeds: 3\nfewer: {badge: 2}"), "badge has fewer seeds but is not among the methods"),
        (("seeds: 3", "seeds: 3\nfewer: {dm2-published: 2}"), "dm2-published is compared, so it must have all seeds"),
    ],
)
def test_a_protocol_that_is_wrong_is_named(toy: Path, change: tuple[str, str], message: str) -> None:
    toy.write_text(TOY.replace(*change))
    with pytest.raises(ValueError, match=message):
        read_protocol(str(toy))


def test_wrong_commands_end_in_one_line(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["table9"], "study must be one of probe, table1"),
        (["probe", "--protocol", "nothing"], "protocol must be a file.yaml or one of"),
        (["probe", "--protocol", str(toy), "--methods", "badge"], "methods must be among those of toy, random"),
        (["table1", "--protocol", str(toy)], "protocol toy is one of probe: dm2-fast bench probe"),
    ):
        with pytest.raises(SystemExit):
            main(["bench", *arguments])
        assert message in capsys.readouterr().err


# What is written


def planted(seeds: int, effects: dict[str, float], cells: tuple[str, ...] = ("one", "two", "three")) -> list[Curve]:
    """Curves whose area differs from that of random by the effect and noise; the noise of a seed is shared."""
    rng, curves = np.random.default_rng(0), []
    for cell in cells:
        for seed in range(seeds):
            shared = rng.normal(0, 0.05)
            for method, effect in {"random": 0.0, **effects}.items():
                accuracy = tuple(0.6 + shared + effect + rng.normal(0, 0.01) + 0.05 * r for r in range(4))
                curves.append(Curve(cell, method, seed, (10, 20, 30, 40), {"accuracy": accuracy}))
    return curves


def test_planted_effects_come_out_with_their_size_and_sign() -> None:
    lines = compare(planted(12, {"better": 0.02, "same": 0.0, "worse": -0.03}), "random")
    whole = {line.method: line for line in lines if line.cell == ALL}
    assert whole["better"].area.low < 0.02 < whole["better"].area.high
    assert whole["worse"].area.low < -0.03 < whole["worse"].area.high
    assert whole["better"].p_holm < 0.01
    assert whole["worse"].p_holm < 0.01
    assert whole["same"].p_holm > 0.05
    assert {line.cell for line in lines} == {"one", "two", "three", ALL}
    saved = next(line.saved for line in lines if (line.cell, line.method) == ("one", "better"))
    assert 0 < saved < 10


def test_a_line_is_what_its_definition_says() -> None:
    curves = planted(7, {"better": 0.01}, ("one",))
    (line,) = compare(curves, "random")
    area = {c.key: sum((a + b) / 2 for a, b in zip(c.accuracy, c.accuracy[1:], strict=False)) / 3 for c in curves}
    d = [area["one", "better", s] - area["one", "random", s] for s in range(7)]
    assert line.area.mean == pytest.approx(np.mean(d))
    assert line.p == line.p_holm == permutation_test(d)
    unpaired = [curve for curve in curves if curve.key != ("one", "random", 3)]
    assert compare(unpaired, "random")[0].seeds == 6


def test_other_numbers_of_labels_are_compared_where_both_have_some() -> None:
    mine = Curve("one", "m", 0, (20, 30, 50), {"accuracy": (0.5, 0.7, 0.9)})
    other = Curve("one", "random", 0, (10, 40), {"accuracy": (0.3, 0.6)})
    (line,) = compare([mine, other], "random")
    assert line.area.mean == pytest.approx((0.6 * 10 + 0.75 * 10) / 20 - 0.5)
    assert line.last.mean == pytest.approx(0.8 - 0.6)


def test_the_report_reads_studies_and_runs(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study(config_of(toy, seeds=[0, 1, 2]))
    files = {file.name for file in folder.iterdir()}
    pictures = {f"{name}.png" for name in ("curves", "differences", "mean", "penalty", "ranks")}
    assert {"comparison.md", "comparison.csv", *pictures} <= files
    out = toy.parent / "report"
    main(["report", str(folder), "--against", "margin-kmeans", "--output", str(out)])
    told = capsys.readouterr().out
    assert "accuracy against margin-kmeans" in told
    assert "full-data: " in told
    with (out / "comparison.csv").open() as lines:
        found = {(line["cell"], line["method"]): line for line in csv.DictReader(lines)}
    assert ("all", "dm2-published") in found
    assert found["one", "random"]["seeds"] == "3"
    with pytest.raises(SystemExit):
        main(["report", str(folder), "--against", "nobody", "--output", str(out)])
    assert "no curves of nobody with accuracy to compare with" in capsys.readouterr().err
