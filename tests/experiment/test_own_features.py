"""Features that do not come from the model: a run whose strategy looks at them, and files that hold something else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dm2_fast import RunConfig
from dm2_fast.experiment import TrainingConfig, run
from dm2_fast.experiment.data.own_features import read_features
from dm2_fast.strategies.prob_cover import ProbCoverConfig

QUICK = RunConfig(
    strategy="prob-cover", initial=10, budget=6, rounds=1, pool=80, test=30, eval_attacked=20,
    training=TrainingConfig(epochs=1), options=ProbCoverConfig(features="own"),
)  # fmt: skip


def test_a_run_may_choose_by_features_of_ones_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    chosen = []
    for i in range(2):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(1437, 5)))
        config = replace(QUICK, features=tmp_path / f"{i}.npy", output=tmp_path / f"run{i}")
        result = run(config)
        chosen.append(result.chosen[1].tolist())
        assert set(result.rounds[-1].evaluation.others) == {"accuracy_pgd"}
        assert result.rounds[0].evaluation.others == {}
    assert chosen[0] != chosen[1]
    first = (tmp_path / "run0" / "rounds.csv").read_text().splitlines()
    assert first[0].split(",")[6] == "accuracy_pgd"
    assert [bool(line.split(",")[6]) for line in first[1:]] == [False, True]
    with pytest.raises(ValueError, match="needs features that do not come from the model: give --features"):
        run(replace(QUICK, output=tmp_path / "without"))


def test_files_that_hold_something_else_are_named(tmp_path: Path) -> None:
    file = tmp_path / "f.npy"
    with pytest.raises(FileNotFoundError, match="features file not found: .*f.npy"):
        read_features(file, 3)
    for array, message in (
        (np.zeros((4, 2)), "must hold a row of features for each of the 3 training samples, got float64 of shape"),
        (np.zeros(3), "must hold a row of features"),
        (np.full((3, 2), np.nan), "holds NaN or infinite features"),
        (np.array(["a", "b", "c"])[:, None], "must hold a row of features"),
    ):
        np.save(file, array)
        with pytest.raises(ValueError, match=message):
            read_features(file, 3)
    file.write_bytes(b"no array")
    with pytest.raises(ValueError, match="is not an .npy file of numbers"):
        read_features(file, 3)
