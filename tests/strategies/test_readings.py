"""Other readings of the baselines: learned Alpha-Mix, joined nodes of CoreGCN, ProbCover on features of one's own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import Round, select_from
from dm2_fast.experiment import models
from dm2_fast.model.passes import ForwardPass
from dm2_fast.operations.nearest import nearest_squared
from dm2_fast.strategies import alpha_learned, graph_network
from dm2_fast.strategies.alpha_mix import AlphaMixConfig, anchors
from dm2_fast.strategies.core_gcn import CoreGCNConfig
from dm2_fast.strategies.k_center import k_center_greedy
from dm2_fast.strategies.prob_cover import ProbCoverConfig


def make_round(m: int = 120, n: int = 12, d: int = 6, classes: int = 4, **changes) -> Round:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(m + n, d, generator=generator)
    torch.manual_seed(3)
    model = nn.Linear(d, classes)
    with torch.no_grad():
        model.weight *= 3
    forward = ForwardPass(model, x[:m], batch_size=16)
    return Round(forward, 5, 2, labelled=x[m:], labels=torch.arange(n) % classes, **changes)


def naive_learned(head: nn.Linear, x: Tensor, centres: Tensor, cap: float, noise: Tensor) -> Tensor:
    """The procedure as it is written, with autograd and a new torch.optim.Adam for every step, in float64."""
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    predicted = F.linear(x.double(), weight, bias).argmax(1)
    flipped = torch.zeros(len(x), dtype=torch.bool)
    for anchor in centres.double():
        alpha = (cap / 2 + cap / 2 * noise.double()).clamp(1e-8, cap)
        for rate in (0.1, 0.1, 0.1, 0.1, 0.01):
            alpha = alpha.detach().requires_grad_()
            optimizer = torch.optim.Adam([alpha], lr=rate)
            logits = F.linear((1 - alpha) * x.double() + alpha * anchor, weight, bias)
            flipped |= logits.argmax(1) != predicted
            loss = -F.cross_entropy(logits, predicted, reduction="none") + 0.01 * alpha.norm(dim=1)
            loss.sum().backward()
            optimizer.step()
            alpha = alpha.clamp(1e-8, cap)
    return flipped


@pytest.mark.parametrize("cap", [0.03125, 0.2, 0.6])
def test_learned_alphas_flip_what_adam_flips(cap: float) -> None:
    asked = make_round()
    centres = anchors(asked.labelled_features, asked.labels, 4)
    noise = alpha_learned.start(asked, asked.features)
    assert abs(noise.mean().item()) < 0.15
    assert abs(noise.std().item() - 1) < 0.1
    found = alpha_learned.learned_flips(asked.features, asked.head, centres, cap, noise)
    expected = naive_learned(asked.head, asked.features, centres, cap, noise)
    assert 0 < int(expected.sum()) < 120
    assert int((found != expected).sum()) <= 1  # float32 against float64


def test_the_learned_cap_grows_until_more_than_the_budget_flip() -> None:
    asked = make_round()
    centres = anchors(asked.labelled_features, asked.labels, 4)
    noise = alpha_learned.start(asked, asked.features)
    picked = select_from(make_round(), 9, "alpha-mix", AlphaMixConfig(alpha="learned")).indices
    for times in range(1, 33):
        flipped = alpha_learned.learned_flips(asked.features, asked.head, centres, times * 0.03125, noise)
        if flipped.sum() > 9:
            break
    assert flipped[picked].all()
    assert picked.tolist() != select_from(make_round(), 9, "alpha-mix").indices.tolist()


def test_the_draws_of_a_row_do_not_depend_on_the_others() -> None:
    x = torch.randn(6, 3)
    whole = alpha_learned.start(Round(ForwardPass(nn.Linear(3, 2), x), 1, 1), x)
    part = alpha_learned.start(Round(ForwardPass(nn.Linear(3, 2), x[2:5]), 1, 1, np.array([2, 3, 4])), x[2:5])
    assert torch.equal(whole[2:5], part)


def test_core_gcn_may_join_the_logit_to_the_hidden_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_network, "STEPS", 200)
    asked = make_round()
    logits, hidden = graph_network.label_logits(asked.features, asked.labelled_features, 1.2, 5, 2)
    nodes = torch.cat([hidden, logits[:, None]], 1)
    expected = k_center_greedy(nodes[:120], 40, nearest_squared(nodes[:120], nodes[120:]))
    joined = select_from(make_round(), 40, "core-gcn", CoreGCNConfig(nodes="joined")).indices
    assert torch.equal(joined, expected)
    assert not torch.equal(joined, select_from(make_round(), 40, "core-gcn").indices)


def test_prob_cover_takes_features_of_ones_own() -> None:
    asked, options = make_round(), ProbCoverConfig(features="own")
    with pytest.raises(
        ValueError, match="features=own needs features that do not come from the model: give --features"
    ):
        select_from(asked, 5, "prob-cover", options)
    generator = torch.Generator().manual_seed(9)
    own = torch.randn(132, 8, generator=generator)
    by_own = select_from(make_round(own_features=(own[:120], own[120:])), 5, "prob-cover", options).indices
    other = Round(ForwardPass(nn.Linear(8, 4), own[:120]), 5, 2, labelled=own[120:], labels=asked.labels)
    assert torch.equal(by_own, select_from(other, 5, "prob-cover").indices)
    assert not torch.equal(by_own, select_from(make_round(), 5, "prob-cover").indices)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cnn", 3),
        ("mobilenet", 14),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("resnet18", 9), ("vgg16", 6))),
    ],
)
def test_dropout_in_every_block_changes_no_weight_and_nothing_without_dropout(name: str, layers: int) -> None:
    def built(dropout: models.Dropout) -> nn.Module:
        torch.manual_seed(0)
        return models.build(name, 3, (8, 8), 5, dropout)

    head, blocks = built("head"), built("blocks")
    assert sum(isinstance(layer, nn.Dropout) for layer in head.modules()) == 1
    assert sum(isinstance(layer, nn.Dropout) for layer in blocks.modules()) == layers
    assert all(torch.equal(one, other) for one, other in zip(head.parameters(), blocks.parameters(), strict=True))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(head.eval()(x), blocks.eval()(x))
        assert not torch.equal(blocks.train()(x), blocks.train()(x))
    forward = ForwardPass(blocks.eval(), torch.rand(9, 3, 8, 8))
    assert len(set(select_from(Round(forward), 3, "bald").indices.tolist())) == 3


def test_a_model_of_ones_own_decides_about_its_dropout() -> None:
    with pytest.raises(ValueError, match="dropout='blocks' is for cnn, .*: model my:net decides about its own"):
        models.build("my:net", 3, (8, 8), 5, "blocks")
