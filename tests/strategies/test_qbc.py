"""QBC against its definition: one row and one member at a time."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dm2_fast
from dm2_fast import Round, RunConfig, select, select_from
from dm2_fast.experiment import TrainingConfig, twins
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.experiment.training import train
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.bald import BALDConfig
from dm2_fast.strategies.qbc import QBCConfig, disagreement

MEASURES = ("kl", "vote-entropy", "variation-ratio", "variance")


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 8), nn.Dropout(0.3)
    head = nn.Linear(8, 3)
    with torch.no_grad():
        head.weight *= 4
    return nn.Sequential(*layers, head)


@pytest.fixture
def pool() -> Tensor:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    x[-2:] = x[:2]
    return x


def naive(p: np.ndarray, measure: str) -> list[float]:
    """p (members, m, C)."""
    members, m, classes = p.shape
    scores = []
    for row in range(m):
        mean = p[:, row].sum(0) / members
        votes = [0] * classes
        divergence = variance = 0.0
        for member in range(members):
            votes[int(p[member, row].argmax())] += 1
            for c in range(classes):
                q = p[member, row, c]
                divergence += q * math.log(q / mean[c]) / members if q > 0 else 0
                variance += (q - mean[c]) ** 2 / members
        shares = [v / members for v in votes]
        scores.append({
            "kl": divergence,
            "vote-entropy": -sum(s * math.log(s) for s in shares if s > 0),
            "variation-ratio": 1 - max(shares),
            "variance": variance,
        }[measure])  # fmt: skip
    return scores


def softmax(model: nn.Module, pool: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(pool).double().softmax(1).numpy()


def dropout_members(model: nn.Module, pool: Tensor, passes: int) -> np.ndarray:
    """Each a pass over one row at a time, with the masks of this round."""
    from dm2_fast.model.dropout import sampled_dropout

    with torch.no_grad(), sampled_dropout(model.eval(), 7, 3) as use:
        members = []
        for number in range(passes):
            rows = []
            for row in pool:
                use(number)
                rows.append(model(row[None])[0].double().softmax(0).numpy())
            members.append(rows)
    return np.array(members)


@pytest.mark.filterwarnings("ignore:.* rows have the same score")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("committee", ["dropout", "networks"])
def test_scores_are_those_of_the_definition(committee: str, measure: str, pool: Tensor) -> None:
    model, others = net(0), [net(1), net(2)]
    forward = ForwardPass(model, pool, batch_size=8)
    asked = Round(forward, seed=7, round=3, companions=others)
    picked = select_from(asked, 6, "qbc", QBCConfig(committee, passes=6, measure=measure))
    p = (
        dropout_members(model, pool, 6)
        if committee == "dropout"
        else np.stack([softmax(member, pool) for member in (model, *others)])
    )
    expected = torch.tensor(naive(p, measure), dtype=torch.float64)
    torch.testing.assert_close(picked.scores, expected, atol=1e-6, rtol=0)
    order = sorted(range(30), key=lambda row: (-round(expected[row].item(), 6), row))
    assert picked.indices.tolist() == order[:6]


def test_passes_are_the_same_networks_for_every_row_and_batch(pool: Tensor) -> None:
    whole = Round(ForwardPass(net(0), pool, batch_size=8), 7, 3).sampled(5)
    assert whole.shape == (30, 5, 3)
    assert whole.dtype == torch.float64
    part = Round(ForwardPass(net(0), pool[10:15], batch_size=2), 7, 3).sampled(5)
    torch.testing.assert_close(part, whole[10:15], atol=1e-6, rtol=0)
    np.testing.assert_allclose(whole.transpose(0, 1), dropout_members(net(0), pool, 5), atol=1e-6)
    mean, entropy = Round(ForwardPass(net(0), pool, batch_size=8), 7, 3).dropout(5)
    torch.testing.assert_close(whole.mean(1), mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.special.entr(whole).sum(2).mean(1), entropy, atol=1e-12, rtol=0)


def test_the_divergence_of_dropout_is_the_score_of_bald(pool: Tensor) -> None:
    asked = Round(ForwardPass(net(0), pool), 7, 3)
    mine = select_from(asked, 5, "qbc", QBCConfig(passes=8)).scores
    torch.testing.assert_close(mine, select_from(asked, 5, "bald", BALDConfig(passes=8)).scores, atol=1e-12, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_members_that_agree_score_zero_and_a_class_that_nobody_sees_costs_nothing(measure: str) -> None:
    p = torch.tensor([[[1.0, 0, 0]] * 4, [[0.2, 0.3, 0.5]] * 4, [[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 1, 0]]])
    scores = disagreement(p.double(), measure)
    assert scores[:2].abs().max() < 1e-15
    most = {"kl": math.log(2), "vote-entropy": math.log(2), "variation-ratio": 0.5, "variance": 0.5}[measure]
    assert scores[2].item() == pytest.approx(most)


def test_a_tied_vote_is_that_of_the_lower_class() -> None:
    p = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]]).double()
    assert disagreement(p, "variation-ratio").item() == 0.5
    p = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]]).double()
    assert disagreement(p, "variation-ratio").item() == 0


def test_select_asks_the_companions_that_it_is_given(pool: Tensor) -> None:
    options = QBCConfig("networks", measure="variance")
    picked = select(net(0), pool, 4, "qbc", options, companions=[net(1), lambda x: net(2).eval()(x)])
    p = np.stack([softmax(net(seed), pool) for seed in range(3)])
    np.testing.assert_allclose(picked.scores, naive(p, "variance"), atol=1e-6)
    assert list(picked.seconds) == ["logits", "committee", "choose"]
    with pytest.raises(ValueError, match=r"pass the others with companions=\[...\], let dm2-fast run train them, or"):
        select(net(0), pool, 4, "qbc", options)


QUICK = RunConfig(
    strategy="qbc", options=QBCConfig("networks", networks=3), initial=12, budget=5, rounds=1, pool=60, test=20,
    training=TrainingConfig(epochs=2),
)  # fmt: skip


def test_a_run_trains_a_committee_of_networks_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def spy(model, labelled, config, normalize, seed, **options):
        train(model, labelled, config, normalize, seed, **options)
        trained.append((model, labelled, seed))

    monkeypatch.setattr(twins, "train", spy)
    result = dm2_fast.run(RunConfig(**vars(QUICK) | {"output": tmp_path / "run"}))
    assert [len(labelled) for _, labelled, _ in trained] == [12, 12, 12, 17]  # none for the last, which chooses nothing
    assert len({seed for _, _, seed in trained[:3]}) == 3
    first = [next(model.parameters()) for model, _, _ in trained[:3]]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    assert result.rounds[0].seconds["companions"] > 0
    assert sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "after_001.pt",
        "after_002.pt",
    ]


def test_killed_between_the_members_the_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0)
    dm2_fast.run(RunConfig(**vars(QUICK) | {"output": tmp_path / "whole"}))
    count = 0

    def stop(*arguments, **options):
        nonlocal count
        count += 1
        if count == 3:  # the second companion
            raise KeyboardInterrupt
        return train(*arguments, **options)

    monkeypatch.setattr(twins, "train", stop)
    stopped = RunConfig(**vars(QUICK) | {"output": tmp_path / "stopped"})
    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(stopped)
    kept = tmp_path / "stopped" / "checkpoints"
    assert {file.name for file in kept.glob("training*")} == {
        "training.pt",
        "training_1.pt",
    }  # neither is trained again
    monkeypatch.setattr(twins, "train", train)
    dm2_fast.run(stopped)
    for name in ("selected.csv", "model.pt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"committee": "bagging"}, "committee must be one of dropout, networks, got 'bagging'"),
        ({"passes": 1}, "passes must be at least 2, got 1"),
        ({"networks": 1}, "networks must be at least 2, got 1"),
        ({"measure": "bald"}, "measure must be one of kl, vote-entropy, variation-ratio, variance, got 'bald'"),
    ],
)
def test_wrong_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QBCConfig(**options)


def test_what_cannot_be_asked_is_named(pool: Tensor) -> None:
    with pytest.raises(TypeError, match="qbc needs a torch module, and the model is a function"):
        select(lambda x: x[:, :3], pool, 3, "qbc")
    with pytest.raises(ValueError, match="model must have a dropout layer"):
        select(nn.Linear(5, 3), pool, 3, "qbc")
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(net(0), pool, 3, "qbc", multilabel="mean")
