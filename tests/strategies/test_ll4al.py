"""LL4AL against its definition: pairs one at a time, and training by the formulas of the optimizer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dm2_fast
from dm2_fast import Round, RunConfig, select, select_from
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.model.blocks import block_means, find_blocks, position_means
from dm2_fast.model.passes import ForwardPass
from dm2_fast.strategies import ll4al
from dm2_fast.strategies.ll4al import LL4ALConfig, ranking_loss
from dm2_fast.training_part import TrainingStep, no_pool


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(self.pool(self.act(self.norm(self.conv(x)))))))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(16, 2, 4, 4))
    return net


@pytest.fixture
def images() -> Tensor:
    return torch.rand(34, 2, 4, 4, generator=torch.Generator().manual_seed(1))


LABELS = torch.arange(9) % 3


def naive_ranking(expected: list[float], true: list[float], margin: float) -> float:
    n, total, pairs = len(expected), 0.0, 0
    for i in range(n // 2):
        j = n - 1 - i
        sign = (true[i] > true[j]) - (true[i] < true[j])
        total += max(0.0, margin - sign * (expected[i] - expected[j]))
        pairs += 1
    return total / pairs if pairs else 0.0


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_the_ranking_loss_pairs_the_first_with_the_last(n: int, margin: float) -> None:
    generator = torch.Generator().manual_seed(n)
    expected, true = torch.randn(n, generator=generator), torch.rand(n, generator=generator)
    true[-1] = true[0]  # a tie ranks nobody
    found = ranking_loss(expected.requires_grad_(), true, margin)
    assert found.item() == pytest.approx(naive_ranking(expected.tolist(), true.tolist(), margin), abs=1e-6)
    found.backward()
    assert torch.isfinite(expected.grad).all()


def test_blocks_are_the_last_at_each_size_of_the_maps(model: Net, images: Tensor) -> None:
    assert find_blocks(model, images[:2]) == ("act", "body.1")
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    assert find_blocks(vectors, images[:2]) == ("2", "4")
    assert find_blocks(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3)), torch.rand(2, 4)) == ("0",)
    with pytest.raises(ValueError, match="reads layers before the logits, and the model has none"):
        find_blocks(nn.Linear(4, 3), torch.rand(2, 4))
    deep = nn.Sequential(*[nn.Sequential(nn.Conv2d(2, 2, 1), nn.MaxPool2d(2)) for _ in range(6)], nn.Flatten())
    deep.append(nn.Linear(8, 3))
    assert find_blocks(deep, torch.rand(2, 2, 128, 128)) == ("3.0", "4.0", "5.0", "5")
    assert not any(module._forward_hooks for module in model.modules())


def test_what_blocks_return_is_averaged_over_positions_whatever_the_batch(model: Net, images: Tensor) -> None:
    means = block_means(ForwardPass(model, images, batch_size=8), ("act", "drop"))
    for row, image in enumerate(images):
        model.eval()
        with torch.no_grad():
            map_ = model.act(model.norm(model.conv(image[None])))
            vector = model.body(model.pool(map_))
        torch.testing.assert_close(means[0][row], torch.stack([channel.mean() for channel in map_[0]]))
        torch.testing.assert_close(means[1][row], vector[0])
    tokens = torch.rand(3, 4, 5)
    torch.testing.assert_close(position_means(tokens), torch.stack([row.sum(0) / 4 for row in tokens]))
    with pytest.raises(ValueError, match="the model has no module 'layer1': it has conv, norm, act, pool, body"):
        block_means(ForwardPass(model, images), ("layer1",))


def naive_module(module: nn.Module, outputs: list[Tensor]) -> Tensor:
    """One sample at a time."""
    found = []
    for row in range(len(outputs[0])):
        hidden = []
        for layer, output in zip(module.layers, outputs, strict=True):
            mean = output[row].flatten(1).mean(1) if output.ndim > 2 else output[row]
            hidden.append((layer.weight @ mean + layer.bias).clamp(min=0))
        found.append(module.last.weight[0] @ torch.cat(hidden) + module.last.bias[0])
    return torch.stack(found)


def test_its_loss_is_that_of_the_definition_and_reaches_the_network_until_three_fifths(
    model: Net, images: Tensor
) -> None:
    options = LL4ALConfig(margin=0.7, weight=0.3)
    module = ll4al.part(model, images[:2], options)
    assert module.reads == ("act", "body.1")
    assert [layer.in_features for layer in module.layers] == [3, 5]
    for epoch, reaches in ((0, True), (5, True), (6, False), (9, False)):
        outputs = {name: torch.rand(9, c, 2, 2, requires_grad=True) for name, c in (("act", 3), ("body.1", 5))}
        logits = torch.randn(9, 3, requires_grad=True)
        step = TrainingStep(epoch, 10, images[:9], LABELS, logits, no_pool, outputs)
        loss = module.loss(step)
        expected = naive_module(module, list(outputs.values()))
        true = [-logits[i].log_softmax(0)[LABELS[i]].item() for i in range(9)]
        assert loss.item() == pytest.approx(0.3 * naive_ranking(expected.tolist(), true, 0.7), abs=1e-6)
        loss.backward()
        assert logits.grad is None  # what is to be expected does not move
        assert [output.grad is not None for output in outputs.values()] == [reaches, reaches]
        assert module.last.weight.grad is not None
    early = LL4ALConfig(attached=0.0)
    outputs = {name: torch.rand(9, c, 2, 2, requires_grad=True) for name, c in (("act", 3), ("body.1", 5))}
    ll4al.part(model, images[:2], early).loss(replace(step, epoch=0, outputs=outputs)).backward()
    assert outputs["act"].grad is None


def test_select_trains_the_module_beside_the_frozen_network_and_says_so(model: Net, images: Tensor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    asked = Round(ForwardPass(model, images[9:], batch_size=8), 7, 3, labelled=images[:9], labels=LABELS)
    options = LL4ALConfig(epochs=30)
    with pytest.warns(
        UserWarning, match="ll4al trains its loss module in this call, 30 passes over 9 labelled samples"
    ):
        picked = select_from(asked, 6, "ll4al", options)
    assert list(picked.seconds) == ["blocks", "loss-module", "choose"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    module = ll4al.trained(asked, options)  # kept
    expected = naive_module(module, asked.block_means(module.reads))
    torch.testing.assert_close(picked.scores, expected.detach(), atol=1e-5, rtol=0)
    assert picked.indices.tolist() == picked.scores.argsort(descending=True, stable=True)[:6].tolist()
    again = Round(ForwardPass(model, images[9:], batch_size=8), 7, 3, labelled=images[:9], labels=LABELS)
    with pytest.warns(UserWarning, match="ll4al trains"):
        assert torch.equal(select_from(again, 6, "ll4al", options).scores, picked.scores)


def test_training_alone_is_adam_on_the_ranking_loss(
    model: Net, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs by hand: the formulas of Adam, one tensor at a time; in float64, since Adam divides by rounding errors
    where a gradient is zero."""
    module_class = ll4al.LossModule
    model, images = model.double(), images.double()
    monkeypatch.setattr(ll4al, "LossModule", lambda *a: module_class(*a).double())
    asked = Round(ForwardPass(model, images[9:], batch_size=8), 7, 3, labelled=images[:9], labels=LABELS)
    options = LL4ALConfig(epochs=2)
    with pytest.warns(UserWarning, match="ll4al trains"):
        module = ll4al.trained(asked, options)
    seed = int(dm2_fast.draws.generator(7, 3, "part").integers(2**31))
    torch.manual_seed(seed)
    twin = ll4al.part(model, images[:2], options)
    means = asked.block_means(module.reads, labelled=True)
    logits = asked.forward.over(images[:9]).logits()
    true = F.cross_entropy(logits, LABELS, reduction="none").tolist()
    generator = torch.Generator().manual_seed(seed)
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in twin.named_parameters()}
    for t in (1, 2):
        rows = torch.randperm(9, generator=generator)
        expected = naive_module(twin, [mean[rows] for mean in means])
        order = rows.tolist()
        total = torch.zeros((), dtype=torch.float64)
        for i in range(4):
            a, b = true[order[i]], true[order[8 - i]]
            total = total + (1.0 - ((a > b) - (a < b)) * (expected[i] - expected[8 - i])).clamp(min=0) / 4
        gradients = torch.autograd.grad(total, list(twin.parameters()))
        with torch.no_grad():
            for (name, p), g in zip(twin.named_parameters(), gradients, strict=True):
                m, v = moments[name]
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.sub_(1e-3 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8))
    for (name, p), q in zip(module.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-9, rtol=0, msg=name)


QUICK = RunConfig(
    strategy="ll4al",
    initial=12,
    budget=5,
    rounds=1,
    pool=60,
    test=20,
    eval_attacked=0,
    training=TrainingConfig(epochs=5),
)


def test_in_a_run_it_is_trained_with_the_network_and_changes_it(tmp_path: Path) -> None:
    first = dm2_fast.run(replace(QUICK, output=tmp_path / "a"))
    plain = dm2_fast.run(replace(QUICK, strategy="margin", output=tmp_path / "b"))
    assert "loss-module" not in first.rounds[0].seconds
    assert first.rounds[0].evaluation != plain.rounds[0].evaluation
    alone = dm2_fast.run(replace(QUICK, options=LL4ALConfig(attached=0.0), rounds=0, output=tmp_path / "c"))
    assert alone.rounds[0].evaluation == plain.rounds[0].evaluation
    other = dm2_fast.run(replace(QUICK, options=LL4ALConfig(weight=0.1), rounds=0, output=tmp_path / "e"))
    assert other.rounds[0].evaluation != first.rounds[0].evaluation
    named = dm2_fast.run(replace(QUICK, options=LL4ALConfig(blocks=["body.1"]), rounds=0, output=tmp_path / "d"))
    assert named.rounds[0].evaluation != first.rounds[0].evaluation


def test_killed_in_its_training_a_run_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0)
    dm2_fast.run(replace(QUICK, output=tmp_path / "whole"))
    loss, count = ll4al.LossModule.loss, 0

    def stop(self, step):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return loss(self, step)

    monkeypatch.setattr(ll4al.LossModule, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(replace(QUICK, output=tmp_path / "stopped"))
    monkeypatch.setattr(ll4al.LossModule, "loss", loss)
    dm2_fast.run(replace(QUICK, output=tmp_path / "stopped"))
    for name in ("selected.csv", "model.pt"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_what_is_wrong_is_named(model: Net, images: Tensor) -> None:
    with pytest.raises(TypeError, match="ll4al needs a torch module, and the model is a function"):
        select(lambda x: x.flatten(1)[:, :3], images, 3, "ll4al")
    with pytest.raises(ValueError, match="learns the loss of labelled samples: pass labels= with their classes"):
        select(model, images, 3, "ll4al", labelled=images)
    with pytest.raises(ValueError, match="compares with labelled samples: pass labelled= with at least one"):
        select(model, images, 3, "ll4al", labels=LABELS)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 2\], the classes of the model, got 3"):
        select(model, images, 3, "ll4al", labelled=images[: len(LABELS)], labels=LABELS.clamp(min=3))
    with pytest.raises(ValueError, match="this strategy takes one class per sample"):
        select(model, images, 3, "ll4al", multilabel="mean")
    for options, message in (
        ({"margin": 0}, "margin must be positive and finite, got 0"),
        ({"weight": -1.0}, "weight must be positive and finite, got -1.0"),
        ({"attached": 1.5}, r"attached must be in \[0, 1\], got 1.5"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            LL4ALConfig(**options)
