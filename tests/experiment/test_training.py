import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from dm2_fast import fgsm
from dm2_fast.experiment import models, training
from dm2_fast.experiment.config import AdversarialConfig, TrainingConfig
from dm2_fast.experiment.training import Labelled, evaluate, train
from dm2_fast.model.passes import ForwardPass

RECIPE = TrainingConfig(epochs=3, batch_size=4, optimizer="sgd", lr=0.1, weight_decay=5e-4, augment="none")
NORMALIZE = (0.5, 0.25)


@pytest.fixture
def labelled() -> Labelled:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (10, 1, 8, 8), dtype=torch.uint8, generator=generator)
    twins = (x[[7, 2]].float() / 255 + 0.03).clamp(0, 1)
    return Labelled(x, torch.arange(10) % 3, twins, torch.tensor([7, 2]))


class Linear(nn.Module):
    """Softmax regression: small enough to be trained by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def by_hand(labelled: Labelled, config: TrainingConfig, clean_weight: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """SGD with momentum 0.9, weight decay and the decay at four fifths, in NumPy float64, twins beside their rows."""
    weight, bias = np.zeros((64, 3)), np.zeros(3)
    velocity = [np.zeros((64, 3)), np.zeros(3)]
    x = (labelled.x.double().flatten(1).numpy() / 255 - 0.5) / 0.25
    twins = {
        int(row): (image.double().flatten().numpy() - 0.5) / 0.25
        for row, image in zip(labelled.twin_of, labelled.twins, strict=True)
    }
    generator = torch.Generator().manual_seed(11)
    for epoch in range(config.epochs):
        lr = config.lr * (0.1 if epoch >= config.epochs * 4 // 5 else 1)
        for rows in torch.randperm(10, generator=generator).split(config.batch_size):
            gradient = [np.zeros((64, 3)), np.zeros(3)]
            for row in rows.tolist():
                parts = [(x[row], 1.0)]
                if row in twins:
                    parts = [(x[row], clean_weight), (twins[row], 1 - clean_weight)]
                for sample, share in parts:
                    z = sample @ weight + bias
                    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
                    p[labelled.y[row]] -= 1
                    gradient[0] += share * np.outer(sample, p) / len(rows)
                    gradient[1] += share * p / len(rows)
            for i, value in enumerate((weight, bias)):
                velocity[i] = 0.9 * velocity[i] + gradient[i] + config.weight_decay * value
                value -= lr * velocity[i]
    return weight, bias


@pytest.mark.parametrize(("epochs", "clean_weight"), [(3, 0.5), (10, 0.2)])
def test_training_is_the_paper_s_sgd_with_the_combined_loss(
    labelled: Labelled, epochs: int, clean_weight: float
) -> None:
    config = TrainingConfig(epochs=epochs, batch_size=4, optimizer="sgd", lr=0.02, weight_decay=5e-3, augment="none")
    model = Linear()
    train(model, labelled, config, NORMALIZE, 11, adversarial=AdversarialConfig(clean_weight=clean_weight))
    weight, bias = by_hand(labelled, config, clean_weight)
    np.testing.assert_allclose(model.head.weight.detach().numpy().T, weight, atol=2e-5)
    np.testing.assert_allclose(model.head.bias.detach().numpy(), bias, atol=2e-5)


@pytest.mark.parametrize("augment", ["none", "flip-crop"])
@pytest.mark.parametrize("name", ["cnn", "mobilenet"])
def test_training_is_reproducible_and_leaves_the_random_state(labelled: Labelled, name: str, augment: str) -> None:
    config = TrainingConfig(epochs=2, batch_size=9, optimizer="adam", lr=1e-3, weight_decay=0.0, augment=augment)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        model = models.build(name, 1, (8, 8), 3)
        state = torch.get_rng_state()
        train(model, labelled, config, NORMALIZE, 5)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(model.state_dict())
        torch.rand(7)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_a_fresh_twin_at_every_step_uses_the_present_model(labelled: Labelled, monkeypatch) -> None:
    calls = []

    def spy(model: nn.Module, x: Tensor, y: Tensor | None, epsilon: float, **options) -> Tensor:
        calls.append((model.head.weight.detach().clone(), len(x), y, epsilon))
        return fgsm(model, x, y, epsilon, **options)

    monkeypatch.setattr(training, "fgsm", spy)
    plain = Labelled(labelled.x, labelled.y, labelled.twins[:0], labelled.twin_of[:0])
    train(Linear(), plain, RECIPE, NORMALIZE, 1, step_epsilon=0.04)
    assert [n for _, n, _, _ in calls] == [4, 4, 2] * 3
    assert not torch.equal(calls[0][0], calls[1][0])
    assert all(y is None and epsilon == 0.04 for _, _, y, epsilon in calls)
    calls.clear()
    train(Linear(), plain, RECIPE, NORMALIZE, 1, step_epsilon=0.04, adversarial=AdversarialConfig(label="true"))
    assert all(y is not None for _, _, y, _ in calls)


def test_a_pair_shares_its_augmentation(labelled: Labelled) -> None:
    generator = torch.Generator().manual_seed(0)
    shift = training._Shift.draw(200, generator)
    assert set(shift.down.tolist()) == set(shift.right.tolist()) == set(range(9))
    assert 60 < int(shift.flip.sum()) < 140
    images = torch.arange(64.0).view(1, 1, 8, 8).expand(200, 1, 8, 8)
    moved = training._augmented(images, shift)
    for i in range(200):
        padded = np.pad(images[i, 0].numpy(), 4)
        crop = padded[shift.down[i] : shift.down[i] + 8, shift.right[i] : shift.right[i] + 8]
        expected = crop[:, ::-1] if shift.flip[i] else crop
        assert np.array_equal(moved[i, 0].numpy(), expected)
    rows = torch.tensor([5, 199, 0])
    assert torch.equal(training._augmented(images[rows], shift.of(rows)), moved[rows])


def test_a_twin_is_augmented_like_its_pair(labelled: Labelled) -> None:
    batches: list[Tensor] = []

    class Recording(Linear):
        def forward(self, x: Tensor) -> Tensor:
            batches.append(x.detach().clone())
            return super().forward(x)

    twins = labelled.x[[7, 2]].float() / 255  # equal to their pairs, so that they stay equal
    config = TrainingConfig(epochs=6, batch_size=4, optimizer="sgd", lr=0.1, weight_decay=0.0, augment="flip-crop")
    train(Recording(), Labelled(labelled.x, labelled.y, twins, labelled.twin_of), config, NORMALIZE, 3)
    met = []
    for inputs, rows in zip(batches, [4, 4, 2] * 6, strict=True):
        for twin in inputs[rows:]:
            assert any(torch.equal(twin, clean) for clean in inputs[:rows])
            met.append(twin)
    assert len(met) == 12
    assert len(torch.stack(met).unique(dim=0)) > 8  # they are augmented


def test_the_labelled_set_stays_on_a_gpu_if_it_fits(labelled: Labelled, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    needed = 10 * 64 + 2 * 64 * 4
    for free, home in ((2 * needed, gpu), (2 * needed - 2, torch.device("cpu"))):
        monkeypatch.setattr(training, "room", lambda device, free=free: free)
        assert training._home(labelled, gpu) == home
    monkeypatch.undo()
    assert training._home(labelled, torch.device("cpu")) == torch.device("cpu")


def test_augmentation_stays_where_the_images_are(labelled: Labelled) -> None:
    shift = training._Shift.draw(10, torch.Generator().manual_seed(0))
    with FakeTensorMode(allow_non_fake_inputs=True):  # tensors without values that know their device
        there = labelled.to(torch.device("cuda"))
        assert {part.device.type for part in (there.x, there.y, there.twins, there.twin_of)} == {"cuda"}
        moved = training._augmented(there.x.float(), shift.to(torch.device("cuda")))
        assert moved.device.type == "cuda"
        assert moved.shape == labelled.x.shape


def test_a_single_sample_left_over_joins_the_batch_before_it() -> None:
    for n, sizes in [(9, [4, 5]), (8, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [5])]:
        batches = training._batches(n, 4, torch.Generator().manual_seed(0))
        assert [len(b) for b in batches] == sizes
        assert sorted(torch.cat(batches).tolist()) == list(range(n))


def test_a_subset_keeps_its_twins(labelled: Labelled) -> None:
    part = labelled.subset(torch.tensor([9, 7, 0]))
    assert torch.equal(part.x, labelled.x[[9, 7, 0]])
    assert part.twin_of.tolist() == [1]
    assert torch.equal(part.twins, labelled.twins[:1])


def test_evaluation_is_accuracy_clean_and_under_fgsm_with_the_true_label() -> None:
    torch.manual_seed(0)
    model = Linear()
    nn.init.normal_(model.head.weight)
    x = torch.randint(0, 256, (23, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        logits = model((x.float() / 255 - 0.5) / 0.25)
        y = (logits.argmax(1) + (torch.arange(23) % 3 == 0)) % 3  # wrong for every third
        result = evaluate(model, x, y, NORMALIZE, 0.1, batch_size=10)
        attacked = model((fgsm(model, x, y, 0.1, normalize=NORMALIZE) - 0.5) / 0.25)
    assert result.accuracy == pytest.approx((logits.argmax(1) == y).float().mean().item())
    assert result.accuracy_fgsm == pytest.approx((attacked.argmax(1) == y).float().mean().item())
    assert result.accuracy_fgsm < result.accuracy
    p = logits.double().softmax(1).numpy()
    assert result.loss == pytest.approx(-np.log(p[np.arange(23), y.numpy()]).mean(), rel=1e-5)


def test_with_epsilon_0_no_attack_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("dm2_fast.experiment.training.fgsm")
    result = evaluate(Linear(), torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5) % 3, NORMALIZE, 0.0)
    assert result.accuracy_fgsm == result.accuracy


@pytest.mark.parametrize(
    ("name", "channels", "size", "features"),
    [
        ("cnn", 1, (8, 8), 128),
        ("cnn", 3, (32, 32), 128),
        ("mobilenet", 1, (28, 28), 1024),
        ("mobilenet", 3, (32, 32), 1024),
        ("resnet18", 3, (32, 32), 512),
        ("resnet34", 1, (8, 8), 512),
        ("vgg16", 3, (32, 32), 512),
        ("vgg16", 2, (28, 28), 512),
    ],
)
def test_models_have_dropout_before_a_linear_head(name: str, channels: int, size: tuple, features: int) -> None:
    model = models.build(name, channels, size, 7)
    x = torch.randint(0, 256, (2, channels, *size), dtype=torch.uint8)
    f, logits = ForwardPass(model, x, batch_size=2).features_and_logits()
    assert f.shape == (2, features)
    assert logits.shape == (2, 7)
    leaves = [module for module in model.modules() if not list(module.children())]
    assert isinstance(leaves[-2], nn.Dropout)
    assert isinstance(leaves[-1], nn.Linear)
    assert len([module for module in leaves if isinstance(module, nn.Dropout)]) == 1


def test_mobilenet_is_version_1() -> None:
    model = models.build("mobilenet", 3, (32, 32), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 27
    assert [c.groups for c in convolutions[1::2]] == [32, 64, 128, 128, 256, 256, *[512] * 6, 1024]
    assert sum(p.numel() for p in model.parameters()) == 3_217_226  # 4.2 M of the paper less its 1000-class head


@pytest.mark.parametrize(
    ("name", "parameters", "sizes"),
    [
        ("resnet18", 11_173_962, [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4),
        ("resnet34", 21_282_122, [32] * 7 + [16] * 8 + [8] * 12 + [4] * 6),
        ("vgg16", 14_728_266, [32] * 2 + [16] * 2 + [8] * 3 + [4] * 3 + [2] * 3),
    ],
)
def test_networks_of_torchvision_keep_the_resolution_of_small_images(
    name: str, parameters: int, sizes: list[int]
) -> None:
    model = models.build(name, 3, (32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == parameters
    seen = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
            assert module.weight.std().item() == pytest.approx((2 / (module.out_channels * 9)) ** 0.5, rel=0.1)
    model.eval()(torch.rand(1, 3, 32, 32))
    assert seen == sizes
    assert not any(isinstance(module, nn.MaxPool2d) for module in model.modules()) or name == "vgg16"


def test_unknown_models_are_named() -> None:
    with pytest.raises(ValueError, match="model must be one of cnn, .* or package.module:function, got 'resnet'"):
        models.build("resnet", 3, (32, 32), 10)
    with pytest.raises(ValueError, match="images must be at least 4x4 for the model cnn, got 3x8"):
        models.build("cnn", 3, (3, 8), 10)
