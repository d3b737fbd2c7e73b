"""Within a budget of memory, what the model computes lies in files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dm2_fast
from dm2_fast import DM2Config
from dm2_fast.model import passes
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.mapped import is_mapped, mapped


@pytest.mark.parametrize("prepare", ["auto", "off"])
@pytest.mark.parametrize("m", [1, 64, 1000])
def test_they_are_those_without_a_budget(prepare: str, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_SCORED", 100)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), torch.rand(m, 6)
    expected = ForwardPass(model, x, batch_size=64, num_threads=2, prepare=prepare).features_and_logits()
    found = ForwardPass(model, x, batch_size=64, num_threads=2, prepare=prepare, memory="1GB").features_and_logits()
    assert is_mapped(found[0])
    assert is_mapped(found[1])
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    one, other = (ForwardPass(model, x, memory=memory) for memory in (None, "1GB"))
    assert is_mapped(other.logits())
    assert torch.equal(one.uncertainty(expected[1], "margin"), other.uncertainty(found[1], "margin"))


def test_inputs_that_are_features_stay_where_they_are() -> None:
    x = mapped((50, 6), torch.empty(0)).copy_(torch.rand(50, 6))
    for rows, stay in (
        ([*range(10, 30)], True), ([49], True), ([3, 5, 4, 6], False), ([0, 0], False), ([], False),
    ):  # fmt: skip
        some = torch.tensor(rows, dtype=torch.int64)
        features = ForwardPass(nn.Linear(6, 3), x, rows=some, memory="1GB").features_and_logits()[0]
        assert torch.equal(features, x[some])
        assert is_mapped(features) == stay


@pytest.mark.parametrize("options", [
    DM2Config(), DM2Config(mix="weighted", batch="highest"), DM2Config.published(space="features", mix="random"),
    DM2Config(batch="spread", metric="l1"),
])  # fmt: skip
def test_a_choice_within_a_budget(options: DM2Config, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((900, 6), np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    expected, found = (dm2_fast.select(model, x, 9, options=options, memory=memory) for memory in (None, "1MB"))
    assert torch.equal(found.indices, expected.indices)
    assert found.scores is not None
    assert expected.scores is not None
    assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("strategy", ["entropy", "badge", "margin"])
def test_other_strategies_read_outputs_in_files(strategy: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), torch.rand(300, 6)
    expected, found = (dm2_fast.select(model, x, 9, strategy, memory=memory) for memory in (None, "1MB"))
    assert torch.equal(found.indices, expected.indices)


def test_half_precision_in_files() -> None:
    model, x = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3)), torch.rand(300, 6)
    expected, found = (
        ForwardPass(model, x, autocast=torch.bfloat16, memory=memory).features_and_logits() for memory in (None, "1MB")
    )
    assert found[0].dtype == expected[0].dtype
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
