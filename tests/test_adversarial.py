import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dm2_fast import fgsm, pair_loss

NORMALIZE = ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.conv(x))).flatten(1)))


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def x() -> Tensor:
    x = torch.rand(11, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return x.where(x > 0.1, 0.0).where(x < 0.9, 1.0)  # so that clipping matters


@pytest.fixture
def y() -> Tensor:
    return torch.arange(11) % 5


def loss(model: Net, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per row in float64, from pixels."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in NORMALIZE)
    double = Net().double().eval()
    double.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return F.cross_entropy(double((x.double() - mean) / std), y, reduction="none")


def test_each_pixel_moves_by_epsilon_the_way_the_loss_rises(model: Net, x: Tensor, y: Tensor) -> None:
    epsilon = 8 / 255
    x_adv = fgsm(model, x, y, epsilon, normalize=NORMALIZE, batch_size=4)
    for row, channel, i, j in [(0, 0, 0, 0), (3, 1, 2, 4), (7, 2, 4, 1), (10, 0, 3, 3), (10, 2, 0, 4)]:
        up, down = x.double().clone(), x.double().clone()
        up[row, channel, i, j] += 1e-5
        down[row, channel, i, j] -= 1e-5
        slope = (loss(model, up, y) - loss(model, down, y))[row]
        expected = (x[row, channel, i, j] + epsilon * slope.sign()).clamp(0, 1).item()
        assert x_adv[row, channel, i, j].item() == pytest.approx(expected, abs=1e-6)
    assert (loss(model, x_adv, y) > loss(model, x, y)).all()
    change = (x_adv - x).abs()
    assert change.max() <= epsilon + 1e-6
    inside = (x > epsilon) & (x < 1 - epsilon)
    covered = torch.zeros_like(inside)
    covered[..., :5, :5] = True  # a stride of 2 leaves the last line and column of 6 unseen
    torch.testing.assert_close(change[inside & covered], torch.full_like(change[inside & covered], epsilon))
    assert (change[~covered] == 0).all()
    assert x_adv.min() == 0
    assert x_adv.max() == 1


def test_clipping_is_to_pixels_and_not_to_the_range_of_the_samples(model: Net, x: Tensor, y: Tensor) -> None:
    middle = 0.4 + 0.2 * x
    change = fgsm(model, middle, y, 0.1, normalize=NORMALIZE) - middle
    change = change[change != 0]  # the model does not look at every pixel
    assert len(change) > x.numel() / 2
    torch.testing.assert_close(change.abs(), torch.full_like(change, 0.1), atol=1e-6, rtol=0)
    edges = x.round()
    assert set(fgsm(model, edges, y, 0.25, normalize=NORMALIZE).unique().tolist()) <= {0.0, 0.25, 0.75, 1.0}


def test_no_label_means_the_predicted_one(model: Net, x: Tensor) -> None:
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    predicted = model.eval()((x - mean) / std).argmax(1)
    without = fgsm(model, x, None, 0.03, normalize=NORMALIZE)
    assert torch.equal(without, fgsm(model, x, predicted, 0.03, normalize=NORMALIZE))
    assert not torch.equal(without, fgsm(model, x, (predicted + 1) % 5, 0.03, normalize=NORMALIZE))


def test_uint8_is_pixels_over_255(model: Net, y: Tensor) -> None:
    x = torch.randint(0, 256, (11, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(fgsm(model, x, y, 0.02), fgsm(model, x.float() / 255, y, 0.02))
    assert torch.equal(fgsm(model, x, y, 0.0), x.float() / 255)


def test_normalising_outside_or_inside_the_model_is_the_same(model: Net, x: Tensor, y: Tensor) -> None:
    class Inside(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
            return model((pixels - mean) / std)

    model.eval()
    torch.testing.assert_close(
        fgsm(Inside(), x, y, 0.03), fgsm(model, x, y, 0.03, normalize=NORMALIZE), atol=1e-6, rtol=0
    )


def test_a_certain_row_is_perturbed_like_any_other(model: Net, x: Tensor) -> None:
    with torch.no_grad():
        model.head.weight *= 1e4
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALIZE)
    pixels = x.clone().requires_grad_()
    logits = model.eval()((pixels - mean) / std)
    label = logits.argmax(1)
    assert torch.autograd.grad(F.cross_entropy(logits, label), pixels)[0].abs().max() == 0
    change = fgsm(model, x, label, 0.03, normalize=NORMALIZE) - x
    assert (change.abs().amax((1, 2, 3)) > 0.029).all()


def test_fgsm_leaves_model_and_random_state_untouched(model: Net, x: Tensor, y: Tensor) -> None:
    model.train()
    model.head.bias.requires_grad_(False)
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    given = x.clone()
    x_adv = fgsm(model, x, y, 0.03)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert torch.equal(model.conv.weight.grad, torch.ones_like(model.conv.weight))
    assert model.head.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert not x_adv.requires_grad
    assert torch.equal(x_adv, fgsm(model, x, y, 0.03))


def test_fgsm_works_within_no_grad(model: Net, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(fgsm(model, x, y, 0.03), fgsm(model, x, y, 0.03, batch_size=11))


@pytest.mark.parametrize("clean_weight", [0.0, 0.3, 0.5, 1.0])
def test_pair_loss_weighs_pairs_and_counts_the_rest_clean_only(clean_weight: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 3, generator=generator, requires_grad=True)
    adversarial = torch.randn(2, 3, generator=generator, requires_grad=True)
    y, twins = torch.tensor([0, 2, 1, 1]), torch.tensor([3, 1])

    def nll(logits: Tensor, label: int) -> Tensor:
        return torch.logsumexp(logits.double(), 0) - logits.double()[label]

    w = clean_weight
    expected = (
        nll(clean[0], 0)
        + w * nll(clean[1], 2) + (1 - w) * nll(adversarial[1], 2)
        + nll(clean[2], 1)
        + w * nll(clean[3], 1) + (1 - w) * nll(adversarial[0], 1)
    ) / 4  # fmt: skip
    value = pair_loss(clean, adversarial, y, twins, clean_weight)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(value, (clean, adversarial)),
        torch.autograd.grad(expected, (clean, adversarial)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)


def test_pair_loss_without_twins_is_cross_entropy() -> None:
    clean, y = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.equal(pair_loss(clean, clean[:0], y, y[:0]), F.cross_entropy(clean, y, reduction="none").mean())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epsilon": -0.1}, ValueError, "epsilon must be at least 0 and finite, got -0.1"),
        ({"epsilon": float("nan")}, ValueError, "epsilon must be at least 0 and finite, got nan"),
        ({"x": torch.zeros(0, 3, 6, 6)}, ValueError, r"x must be a non-empty \(n, ...\) batch, got shape \(0,"),
        ({"x": torch.full((11, 3, 6, 6), 1.5)}, ValueError, r"x must be in \[0, 1\].*got \[1.5, 1.5\]"),
        ({"x": torch.full((11, 3, 6, 6), torch.nan)}, ValueError, r"x must be in \[0, 1\]"),
        ({"x": torch.zeros(11, 3, 6, 6, dtype=torch.int64)}, TypeError, "x must be uint8 or floating point, got"),
        ({"y": torch.zeros(10, dtype=torch.int64)}, ValueError, r"y must have shape \(11,\), got \(10,\)"),
        ({"y": torch.zeros(11)}, TypeError, "y must be int64, got torch.float32"),
        ({"y": torch.full((11,), 5)}, ValueError, r"y must be in \[0, 4\], got 5 to 5"),
        ({"y": torch.full((11,), -1)}, ValueError, r"y must be in \[0, 4\], got -1 to -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"normalize": ((0.5, 0.5), 1.0)}, ValueError, "normalize must give 1 or 3 values of mean, got 2"),
        ({"model": nn.Flatten(0)}, ValueError, r"model must return \(n, C\) logits"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_fgsm_are_named(
    model: Net, x: Tensor, y: Tensor, change: dict, error: type, message: str
) -> None:
    arguments = {"model": model, "x": x, "y": y, "epsilon": 0.1} | change
    with pytest.raises(error, match=message):
        fgsm(**arguments)


def test_wrong_arguments_of_pair_loss_are_named() -> None:
    z, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"clean_weight must be in \[0, 1\], got 1.2"):
        pair_loss(z, z, y, y, 1.2)
    with pytest.raises(ValueError, match="y and twins must match the logits, got 2 labels for 3 rows"):
        pair_loss(z, z, y[:2], y)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), MemoryError("no room")])
def test_a_batch_that_does_not_fit_is_halved_with_one_warning(error: Exception) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(12, 3)

    class Small(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > limit:
                raise error
            return linear(x.flatten(1))

    x, limit = torch.rand(11, 3, 2, 2), 11
    expected = fgsm(Small(), x, None, 0.1)
    limit = 3
    with pytest.warns(UserWarning, match="for 8 rows at a time, now 2: no room") as warned:
        assert torch.equal(fgsm(Small(), x, None, 0.1, batch_size=8), expected)
    assert len(warned) == 1
    limit = 0
    with pytest.raises(type(error), match="no room"):
        fgsm(Small(), x, None, 0.1, batch_size=8)
