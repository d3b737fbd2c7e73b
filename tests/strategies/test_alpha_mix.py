import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import k_means
from torch import Tensor, nn

from dm2_fast import Picked, Round, draws, select_from
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies.alpha_mix import AlphaMixConfig, _candidates, anchors, flipping_caps


def choose(asked: Round, budget: int, options: object = None) -> Picked:
    return select_from(asked, budget, "alpha-mix", options)


def linear(classes: int, d: int, seed: int = 0, scale: float = 3.0) -> nn.Linear:
    torch.manual_seed(seed)
    head = nn.Linear(d, classes)
    with torch.no_grad():
        head.weight *= scale
    return head


def normal(m: int, d: int, seed: int) -> Tensor:
    return torch.randn(m, d, generator=torch.Generator().manual_seed(seed))


def round_of(net: nn.Module, x: Tensor, labelled: Tensor, labels: Tensor | None, **options) -> Round:
    forward = ForwardPass(net, x, **{"batch_size": 16} | options)
    return Round(forward, seed=7, round=3, labelled=labelled, labels=labels)


def naive_anchors(labelled: Tensor, labels: Tensor, classes: int) -> Tensor:
    groups = [labelled[labels == c].double() for c in range(classes)]
    return torch.stack([group.mean(0) if len(group) else labelled.double().mean(0) for group in groups])


def naive_flipped(head: nn.Linear, x: Tensor, anchors: Tensor, cap: float) -> Tensor:
    """The closed form as it is written: a mixture for each anchor, and what the head makes of it, in float64."""
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    u = x.double().requires_grad_()
    logits = F.linear(u, weight, bias)
    predicted = logits.argmax(1)
    F.cross_entropy(logits, predicted, reduction="sum").backward()
    flipped = torch.zeros(len(x), dtype=torch.bool)
    for anchor in anchors:
        z = anchor - u.detach()
        ratio = cap / np.sqrt(x.shape[1]) * z.norm(dim=1) / u.grad.norm(dim=1)
        alpha = ratio[:, None] * u.grad / z
        mixed = (1 - alpha) * u.detach() + alpha * anchor
        flipped |= F.linear(mixed, weight, bias).argmax(1) != predicted
    return flipped


def naive_candidates(head: nn.Linear, x: Tensor, anchors: Tensor, budget: int, step: float) -> list[int]:
    cap = 0.0
    while cap < 1:
        cap += step
        flipped = naive_flipped(head, x, anchors, cap)
        if flipped.sum() > budget:
            break
    return torch.nonzero(flipped)[:, 0].tolist()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_a_row_flips_at_the_cap_of_the_closed_form(classes: int) -> None:
    head, x = linear(classes, 6), normal(300, 6, 1)
    centres = normal(classes, 6, 2).double()
    caps = flipping_caps(x, head(x).detach(), head.weight, centres)
    seen = set()
    for cap in (0.03, 0.1, 0.3, 1.0, 3.0):
        flipped = naive_flipped(head, x, centres, cap)
        clear = (caps - cap).abs() > 1e-5 * cap
        assert clear.sum() >= 295
        assert torch.equal((caps < cap)[clear], flipped[clear])
        seen.add(int(flipped.sum()))
    assert len(seen) >= 4


def test_confident_rows_have_a_cap_of_their_own() -> None:
    head = linear(4, 6)
    x = 60 * normal(40, 6, 1)  # 1 - max softmax is zero in float32, and the gradient with it
    logits = head(x).detach()
    assert (logits.softmax(1).amax(1) == 1).sum() > 20
    centres = normal(4, 6, 2).double()
    caps = flipping_caps(x, logits, head.weight, centres)
    assert caps.isfinite().all()
    sure = logits.double().softmax(1).amax(1) < 1 - 1e-9  # where the oracle's gradient still has digits
    for cap in (0.3, 1.0, 3.0):
        clear = sure & ((caps - cap).abs() > 1e-4 * cap)
        assert torch.equal((caps < cap)[clear], naive_flipped(head, x, centres, cap)[clear])


def test_a_row_on_the_only_anchor_or_under_a_constant_head_never_flips() -> None:
    head, x = linear(3, 6), normal(5, 6, 1)
    centres = x[2].double().expand(3, 6)
    caps = flipping_caps(x, head(x).detach(), head.weight, centres)
    assert caps.isinf().tolist() == [False, False, True, False, False]
    nn.init.zeros_(head.weight)
    assert flipping_caps(x, head(x).detach(), head.weight, centres).isinf().all()


def test_anchors_are_class_means_and_the_mean_of_all_for_a_class_without_labels() -> None:
    labelled, labels = normal(20, 6, 3), torch.arange(20) % 3
    torch.testing.assert_close(anchors(labelled, labels, 5), naive_anchors(labelled, labels, 5))


@pytest.mark.parametrize(("budget", "step"), [(8, 0.03125), (8, 0.2), (40, 0.3), (150, 0.03125)])
def test_picks_are_those_of_the_definition(budget: int, step: float) -> None:
    head, x, labelled = linear(5, 6), normal(200, 6, 1), normal(15, 6, 2)
    labels = torch.arange(15) % 4
    candidates = naive_candidates(head, x, naive_anchors(labelled, labels, 5), budget, step)
    assert budget < len(candidates) < 200
    unit = F.normalize(x[candidates]).numpy()
    seed = int(draws.generator(7, 3, "clusters").integers(2**32))
    order = draws.uniform(7, 3, np.array(candidates), "clusters").argsort()
    clusters, centres = k_means(unit, np.ones(len(unit)), budget, seed, order[: 3 * budget])
    picked = choose(round_of(head, x, labelled, labels), budget, AlphaMixConfig(step))
    for cluster, row in enumerate(picked.indices.tolist()):
        members = np.flatnonzero(clusters == cluster)
        distances = ((unit[members].astype(float) - centres[cluster]) ** 2).sum(1)
        chosen = [candidates[member] for member in members].index(row)
        assert distances[chosen] <= distances.min() + 1e-7  # the two rows of a pair are equally far from their mean
    assert picked.scores is None
    assert set(picked.seconds) == {"features", "labelled", "choose"}


def test_the_sample_nearest_to_the_centre_of_each_group_is_chosen() -> None:
    groups = F.normalize(normal(6, 20, 1))
    noise = 0.01 * normal(6 * 9, 20, 2).view(6, 9, 20)
    x = groups[:, None] + noise
    unit = F.normalize(x.double(), dim=2)
    nearest = (unit - unit.mean(1, keepdim=True)).square().sum(2).argmin(1)
    head, labelled = linear(3, 20), normal(6, 20, 3)
    # a step of 1 lets nearly all rows flip; those that do not are moved to where they do
    state = round_of(head, x.flatten(0, 1), 100 * labelled, torch.arange(6) % 3)
    picked = choose(state, 6, AlphaMixConfig(cap_step=1.0))
    assert sorted(picked.indices.tolist()) == (torch.arange(6) * 9 + nearest).tolist()


def test_too_few_candidates_are_filled_up_at_random_by_row() -> None:
    head, x, labelled = linear(3, 6), normal(50, 6, 1), normal(6, 6, 2)
    nn.init.zeros_(head.weight)  # nothing flips
    order = draws.uniform(7, 3, np.arange(50), "clusters").argsort().tolist()
    for budget in (1, 20, 50):
        picked = choose(round_of(head, x, labelled, torch.arange(6) % 3), budget, None)
        assert picked.indices.tolist() == order[:budget]


def test_all_candidates_are_taken_where_the_last_cap_finds_no_more_than_the_budget() -> None:
    head, x, labelled = linear(3, 6), normal(60, 6, 1), normal(6, 6, 2)
    labels = torch.arange(6) % 3
    candidates = naive_candidates(head, x, naive_anchors(labelled, labels, 3), 59, 0.5)
    assert 10 < len(candidates) < 58
    picked = choose(round_of(head, x, labelled, labels), 59, AlphaMixConfig(0.5)).indices.tolist()
    assert picked[: len(candidates)] == candidates
    rest = draws.uniform(7, 3, np.arange(60), "clusters").argsort().tolist()
    assert picked[len(candidates) :] == [row for row in rest if row not in candidates][: 59 - len(candidates)]


def test_fewer_distinct_candidates_than_clusters_are_filled_up_with_candidates() -> None:
    head, rows, labelled = linear(3, 6), normal(200, 6, 1), normal(6, 6, 2)
    labels = torch.arange(6) % 3
    caps = flipping_caps(rows, head(rows).detach(), head.weight, anchors(labelled, labels, 3))
    never, flipping = rows[caps > 1.01][:10], rows[caps < 0.99][:5]
    assert len(never) == 10
    x = torch.cat([flipping.repeat(4, 1), never, flipping.repeat(4, 1)])
    picked = choose(round_of(head, x, labelled, labels), 12, AlphaMixConfig(1.0)).indices.tolist()
    assert sorted(picked[:5]) == [0, 1, 2, 3, 4]  # of equal rows the lowest
    assert len(set(picked)) == 12
    assert all(row < 20 or row >= 30 for row in picked)


def test_the_cap_grows_until_more_than_budget_rows_flip() -> None:
    caps = torch.tensor([0.25, 0.05, torch.inf, 0.15, 0.05, 0.95], dtype=torch.float64)
    assert _candidates(caps, 1, 0.1).tolist() == [1, 4]
    assert _candidates(caps, 2, 0.1).tolist() == [1, 3, 4]  # two flip at 0.1, which is not more than two
    assert _candidates(caps, 4, 0.1).tolist() == [0, 1, 3, 4, 5]
    assert _candidates(caps, 5, 0.1).tolist() == [0, 1, 3, 4, 5]
    assert _candidates(caps, 6, 0.1).tolist() == [0, 1, 3, 4, 5]


def test_budget_m_chooses_every_row_once() -> None:
    head, x, labelled = linear(3, 6), normal(30, 6, 1), normal(6, 6, 2)
    picked = choose(round_of(head, x, labelled, torch.arange(6) % 3), 30, None)
    assert sorted(picked.indices.tolist()) == list(range(30))


def test_threads_and_batches_change_nothing() -> None:
    head, x, labelled = linear(5, 6), normal(400, 6, 1), normal(15, 6, 2)
    first = choose(round_of(head, x, labelled, torch.arange(15) % 5), 30, None).indices
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            again = choose(round_of(head, x, labelled, torch.arange(15) % 5, batch_size=7), 30, None).indices
            assert torch.equal(again, first)
    finally:
        torch.set_num_threads(before)
    state = np.random.get_state()[1].copy()
    other = Round(ForwardPass(head, x, batch_size=16), 8, 3, None, labelled, torch.arange(15) % 5)
    assert not torch.equal(choose(other, 30, None).indices, first)
    assert np.array_equal(np.random.get_state()[1], state)


def test_what_is_missing_is_named() -> None:
    x, labels = normal(30, 6, 1), torch.arange(6) % 3
    labelled = normal(6, 6, 2)
    with pytest.raises(ValueError, match="head must be a linear layer for alpha-mix, got Sequential"):
        choose(round_of(nn.Sequential(linear(3, 6)), x, labelled, labels, head=""), 3, None)
    with pytest.raises(ValueError, match="compares with labelled samples: pass labelled="):
        choose(round_of(linear(3, 6), x, labelled[:0], labels[:0]), 3, None)
    with pytest.raises(ValueError, match="pass labels= with those of the labelled samples"):
        choose(round_of(linear(3, 6), x, labelled, None), 3, None)
    with pytest.raises(ValueError, match=r"budget must be in \[1, 30\] for a pool of 30 rows, got 31"):
        choose(round_of(linear(3, 6), x, labelled, labels), 31, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap_step": 0.0}, r"cap_step must be in \(0, 1\], got 0.0"),
        ({"cap_step": 1.5}, r"cap_step must be in \(0, 1\], got 1.5"),
        ({"cap_step": float("nan")}, r"cap_step must be in \(0, 1\], got nan"),
        ({"iterations": 0}, "iterations must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlphaMixConfig(**options)
