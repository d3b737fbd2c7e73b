"""What a round computes once, and how its clock counts."""

import time

import pytest
import torch
from torch import Tensor, nn

from dm2_fast import DM2Config, Picked, Round, draws, select, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations import backends, cpp, reference
from dm2_fast.picked import highest


class Counted(nn.Sequential):
    """Counts the samples that it was given."""

    samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return super().forward(x)


@pytest.fixture
def pool() -> Tensor:
    return torch.rand(40, 5, generator=torch.Generator().manual_seed(0))


def a_round(pool: Tensor, *layers: nn.Module) -> tuple[Counted, Round]:
    torch.manual_seed(0)
    model = Counted(*(layers or (nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))))
    return model, Round(ForwardPass(model, pool, batch_size=8, prepare="off"))


def test_logits_and_features_share_one_pass_in_whatever_order_they_are_read(pool: Tensor) -> None:
    for first, second in (("logits", "features"), ("features", "logits"), ("features", "only_logits")):
        model, asked = a_round(pool)
        getattr(asked, first)
        passed = model.samples
        getattr(asked, second)
        assert model.samples == passed, (first, second)
        assert list(asked.seconds) == ["features"]
        torch.testing.assert_close(asked.logits, model(pool))
        torch.testing.assert_close(asked.features, model[:2](pool))


def test_only_logits_keeps_no_features(pool: Tensor) -> None:
    _, asked = a_round(pool)
    _ = asked.only_logits
    assert list(asked.seconds) == ["logits"]
    assert list(asked._kept) == [("logits", None)]


def test_a_model_without_a_head_has_logits_all_the_same(pool: Tensor) -> None:
    model, asked = a_round(pool, nn.Linear(5, 3), nn.Softplus())
    torch.testing.assert_close(asked.logits, model(pool))
    with pytest.raises(ValueError, match="model must have a linear layer whose output is the logits"):
        _ = asked.features


def test_a_stage_does_not_count_the_time_of_those_within(pool: Tensor) -> None:
    _, asked = a_round(pool)
    with asked.stage("outer"):
        time.sleep(0.02)
        with asked.stage("inner"):
            time.sleep(0.2)
        with asked.stage("inner"):
            time.sleep(0.2)
    assert asked.seconds["inner"] >= 0.4
    whole = sum(asked.seconds.values())
    assert asked.seconds["outer"] == pytest.approx(whole - asked.seconds["inner"])
    assert list(asked.seconds) == ["inner", "outer"]


def test_a_stage_that_fails_keeps_the_time_of_those_before(pool: Tensor) -> None:
    _, asked = a_round(pool)

    def fail() -> None:
        _ = asked.features
        raise KeyError

    with pytest.raises(KeyError):
        asked.once("outer", None, fail)
    assert list(asked.seconds) == ["features"]


def test_a_choice_says_what_it_ran_itself(pool: Tensor) -> None:
    _, asked = a_round(pool)
    assert list(select_from(asked, 3, "dm2", DM2Config(k=2)).seconds) == ["features", "neighbours", "mixed", "choose"]
    assert list(select_from(asked, 5, "dm2", DM2Config(k=2)).seconds) == ["neighbours", "mixed", "choose"]
    assert list(select_from(asked, 3, "margin").seconds) == ["choose"]


def test_mixtures_are_kept_for_the_same_options_only(pool: Tensor) -> None:
    _, asked = a_round(pool)
    first = select_from(asked, 3, "dm2", DM2Config(k=2)).scores
    assert select_from(asked, 3, "dm2", DM2Config(k=2, offset=4)).scores is first
    other = select_from(asked, 3, "dm2", DM2Config(k=2, lam=0.8)).scores
    assert other is not None
    assert not torch.equal(other, first)
    _, fresh = a_round(pool)
    assert torch.equal(select_from(fresh, 3, "dm2", DM2Config(k=2, lam=0.8)).scores, other)


@pytest.mark.parametrize("strategy", ["margin", "coreset", "bald", "dm2"])
def test_how_the_model_ran_is_told_by_every_strategy(strategy: str, pool: Tensor) -> None:
    layers = nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)
    torch.manual_seed(0)
    model = nn.Sequential(*layers)
    picked = select(model, pool[4:], 3, strategy, labelled=pool[:4])
    assert picked.prepared is not None
    assert not picked.prepared.startswith("off")
    assert select(model, pool[4:], 3, strategy, labelled=pool[:4], prepare="off").prepared == "off"


def test_random_runs_no_model(pool: Tensor) -> None:
    model, asked = a_round(pool)
    select_from(asked, 3, "random")
    assert model.samples == 0


@pytest.mark.parametrize("strategy", ["coreset", "core-gcn", "badge", "noise-stability", "prob-cover"])
def test_the_search_for_the_nearest_runs_where_it_is_asked_to(
    strategy: str, pool: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    for module in (cpp, reference):
        whole = module.lower_to_nearest
        monkeypatch.setattr(module, "lower_to_nearest", lambda *a, m=module, w=whole, **k: used.append(m) or w(*a, **k))
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    known = {"labelled": pool[:6], "labels": torch.arange(6) % 3}
    chosen = {}
    for backend, module in (("cpp", cpp), ("torch", reference)):
        used.clear()
        chosen[backend] = select(model, pool[6:], 5, strategy, backend=backend, **known).indices.tolist()
        assert set(used) == {module}, backend
    assert chosen["cpp"] == chosen["torch"]


def test_there_is_no_kernel_for_the_nearest_and_nothing_hides_it() -> None:
    x = torch.rand(4, 3)
    assert backends.resolve("auto", x, "lower_to_nearest") is cpp
    assert backends.resolve("auto", x.to("meta"), "lower_to_nearest") is reference
    with pytest.raises(RuntimeError, match="backend='triton' has no kernel for lower_to_nearest"):
        backends.resolve("triton", x, "lower_to_nearest")


def test_options_are_checked_before_anything_runs(pool: Tensor) -> None:
    model, asked = a_round(pool)
    with pytest.raises(TypeError, match="strategy coreset has no options: leave options out"):
        select_from(asked, 3, "coreset", DM2Config())
    with pytest.raises(ValueError, match=r"budget must be in \[1, 40\] for a pool of 40 rows, got 41"):
        select_from(asked, 41, "coreset")
    with pytest.raises(TypeError, match=r"a name or a function, got a DM2Config \(options go to options=\)"):
        select(model, pool, 3, DM2Config())  # type: ignore[arg-type]
    assert model.samples == 0


def test_a_choice_prints_as_one_line() -> None:
    scores = torch.linspace(0, 1, 100)
    picked = Picked(torch.tensor([99, 98, 97, 96, 95, 94]), scores, seconds={"features": 1.0, "choose": 0.25})
    assert str(picked) == "Picked(6 rows: 99, 98, 97, 96, 95, ...; scores 1 to 0.949 of 100; 1.2 s)"
    assert repr(Picked(torch.tensor([7]), None)) == "Picked(1 row: 7)"
    assert repr(Picked(torch.tensor([99]), scores)) == "Picked(1 row: 99; score 1 of 100)"


@pytest.mark.parametrize("kind", ["distinct", "tied", "equal", "infinite", "nan"])
@pytest.mark.parametrize(("budget", "offset"), [(1, 0), (7, 0), (7, 5), (30, 10), (40, 0), (90, 0)])
def test_highest_are_the_first_of_a_stable_sort(kind: str, budget: int, offset: int) -> None:
    generator = torch.Generator().manual_seed(budget + offset)
    scores = {
        "distinct": torch.randn(40, generator=generator),
        "tied": torch.randint(4, (40,), generator=generator).float(),
        "equal": torch.zeros(40),
        "infinite": torch.tensor([1.0, -torch.inf, torch.inf, 0.0, -0.0]).repeat(8),
        "nan": torch.tensor([1.0, torch.nan, 2.0, -torch.inf]).repeat(10),
    }[kind]
    keys = [(not row.isnan(), -row.item()) for row in scores]  # NaN is the highest
    expected = sorted(range(40), key=lambda row: keys[row][:1] if scores[row].isnan() else keys[row])
    assert highest(scores, budget, offset).tolist() == expected[offset : offset + budget]
    assert highest(scores.double(), budget, offset).tolist() == expected[offset : offset + budget]


def test_with_random_ties_a_draw_of_the_row_decides_between_equal_scores(pool: Tensor) -> None:
    scores, ids = torch.arange(40).remainder(4).float(), torch.arange(40) * 3 + 1
    asked = Round(ForwardPass(nn.Linear(5, 3), pool), seed=4, round=2, row_ids=ids, ties="random")
    draw = draws.uniform(4, 2, ids.numpy(), "ties").tolist()
    expected = sorted(range(40), key=lambda row: (-scores[row], draw[row]))
    for budget, offset in ((1, 0), (6, 0), (13, 0), (5, 8), (40, 0)):
        assert asked.highest(scores, budget, offset).tolist() == expected[offset : offset + budget]
