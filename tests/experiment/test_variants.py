"""Data sets made of others: what they keep and change, and that the key of an image alone decides its corruption."""

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from dm2_fast.experiment.data import variants
from dm2_fast.experiment.data.corruptions import NAMES, SEVERITIES, corrupt
from dm2_fast.experiment.data.sets import Data, load
from dm2_fast.experiment.training import further_tests

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def smooth(n: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    """Coloured blobs, (n, 3, side, side) uint8 in channels_last."""
    noise = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    images = F.interpolate(noise, (side, side), mode="bicubic", align_corners=True).clamp(0, 1)
    return (images * 255).to(torch.uint8).contiguous(memory_format=torch.channels_last)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Data:
    normalize = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    data = Data(
        "cifar10", smooth(400), torch.arange(400) % 10, smooth(30, 1), torch.arange(30) % 10, CLASSES, normalize
    )
    monkeypatch.setattr(variants, "load", lambda name, *_: replace(data, name=name))
    return data


def test_cifar10s_is_skewed_in_colour_by_class(base: Data) -> None:
    data = load("cifar10s")
    assert torch.equal(data.y, base.y)
    as_grey = variants.grey(base.x)
    for label, name in enumerate(CLASSES):
        rows = torch.nonzero(base.y == label)[:, 0].tolist()
        colour = sum(torch.equal(data.x[row], base.x[row]) for row in rows)
        made_grey = sum(torch.equal(data.x[row], as_grey[row]) for row in rows)
        expected = 38 if name in ("automobile", "cat", "dog", "horse", "truck") else 2
        assert (colour, made_grey) == (expected, 40 - expected)
    assert torch.equal(data.x_test, base.x_test)
    assert torch.equal(data.tests["grey"].images(torch.tensor([4, 2])), variants.grey(base.x_test[[4, 2]]))


def test_grey_is_that_of_pillow() -> None:
    from PIL import Image

    x = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for image, found in zip(x, variants.grey(x), strict=True):
        theirs = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert all(np.array_equal(channel.numpy(), theirs) for channel in found)


def test_a_fifth_of_the_labels_is_another_class(base: Data) -> None:
    data = load("cifar10-sym")
    wrong = data.y != base.y
    assert int(wrong.sum()) == 80
    assert set(data.y.tolist()) == set(range(10))
    assert len(set(((data.y - base.y) % 10)[wrong].tolist())) >= 8
    assert torch.equal(data.y_test, base.y_test)
    assert torch.equal(load("cifar10-sym").y, data.y)


def test_later_classes_keep_more_of_their_images(base: Data) -> None:
    data = load("cifar10-imb")
    counts = torch.bincount(data.y, minlength=10)
    assert counts[9] == 40
    for label in range(10):
        assert abs(int(counts[label]) - 4 * (label + 1)) < 10
    kept = {bytes(image.numpy().tobytes()) for image in data.x}
    assert kept <= {bytes(image.numpy().tobytes()) for image in base.x}


def hashes(images: np.ndarray, numbers: np.ndarray) -> str:
    parts = [corrupt(images, numbers, name, severity) for name in NAMES for severity in SEVERITIES]
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def test_a_corruption_depends_on_the_key_of_the_image_alone() -> None:
    images = smooth(6).permute(0, 2, 3, 1).contiguous().numpy()
    numbers = np.array([5, 0, 17, 3, 9999, 4])
    order = np.array([3, 0, 5, 1, 4, 2])
    for name in NAMES:
        whole = corrupt(images, numbers, name, 3)
        assert np.array_equal(corrupt(images[order], numbers[order], name, 3), whole[order])
        assert np.array_equal(corrupt(images[4:5], numbers[4:5], name, 3), whole[4:5])
        assert whole.dtype == np.uint8
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(hashes(images[:2], numbers[:2]))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_the_bytes_of_every_corruption_are_those_of_then() -> None:
    """Integer images by arithmetic alone, so that the hash is that of the corruptions and not of an interpolation."""
    images = (np.indices((2, 32, 32, 3)) * np.array([31, 7, 5, 60])[:, None, None, None, None]).sum(0).astype(np.uint8)
    found = {
        name: hashlib.sha256(corrupt(images, np.array([3, 8]), name, 4).tobytes()).hexdigest()[:8] for name in NAMES
    }
    assert found == HASHES


HASHES = {
    "gaussian_noise": "fbf661dd",
    "shot_noise": "465ea056",
    "impulse_noise": "a409eb96",
    "speckle_noise": "22b8a01f",
    "gaussian_blur": "5c92ae17",
    "defocus_blur": "c62b57e0",
    "zoom_blur": "2e098165",
    "fog": "cac9b9c7",
    "brightness": "2dbf9fda",
    "saturate": "4fb340a4",
    "contrast": "358e66a2",
    "pixelate": "9cfed281",
}


def test_parameters_do_what_they_say() -> None:
    grey = np.full((1, 32, 32, 3), 128, np.uint8)
    at = np.array([0])
    for name, scale in (("gaussian_noise", 0.10), ("speckle_noise", 0.2 * 128 / 255)):
        assert corrupt(grey, at, name, 5).std() / 255 == pytest.approx(scale, rel=0.06)
    shot = corrupt(grey, at, "shot_noise", 5)
    assert shot.std() / 255 == pytest.approx(np.sqrt(128 / 255 / 50), rel=0.06)
    salt = corrupt(grey, at, "impulse_noise", 5)
    assert ((salt == 0) | (salt == 255)).mean() == pytest.approx(0.07, abs=0.015)
    assert (corrupt(grey, at, "brightness", 2) == int((128 / 255 + 0.1) * 255)).all()
    for name in ("gaussian_blur", "defocus_blur", "zoom_blur", "contrast", "pixelate"):
        assert np.abs(corrupt(grey, at, name, 5).astype(int) - 128).max() <= 1
    edge = grey.copy()
    edge[:, :, 16:] = 228
    assert np.ptp(corrupt(edge, at, "contrast", 1)) == pytest.approx(75, abs=1)
    red = np.full((1, 32, 32, 3), (200, 100, 100), np.uint8)
    assert corrupt(red, at, "saturate", 1)[0, 0, 0].tolist() == pytest.approx([200, 170, 170], abs=1)
    assert corrupt(red, at, "saturate", 4)[0, 0, 0].tolist() == pytest.approx([200, 0, 0], abs=1)


def test_the_archive_is_read_where_it_is(base: Data, tmp_path: Path) -> None:
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 256, (150, 32, 32, 3), dtype=np.uint8) for name in ("fog", "snow")}
    for name, images in arrays.items():
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", np.tile(base.y_test.numpy(), 5))
    data = load("cifar10c", tmp_path)
    assert set(data.tests) == {f"{name}-{severity}" for name in arrays for severity in SEVERITIES}
    found = data.tests["snow-3"].images(torch.tensor([7, 1]))
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), arrays["snow"][[67, 61]])
    np.save(folder / "labels.npy", np.zeros(150))
    with pytest.raises(ValueError, match="must hold the corrupted test set of cifar10: its labels are others"):
        load("cifar10c", tmp_path)


def test_a_run_is_tested_on_every_test_set_and_their_mean(base: Data) -> None:
    data = load("svhnc")
    assert set(data.tests) == {f"{name}-{severity}" for name in NAMES for severity in SEVERITIES}
    few = replace(data, tests={name: data.tests[name] for name in ("contrast-5", "fog-1")})
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), torch.arange(20)
    found = further_tests(model, few, rows)
    for name in few.tests:
        x = (few.tests[name].images(rows).float() / 255 - 0.5) / 0.25
        expected = (model(x).argmax(1) == data.y_test[rows]).double().mean().item()
        assert found[name] == pytest.approx(expected)
    assert found["corruption_error"] == pytest.approx(1 - (found["contrast-5"] + found["fog-1"]) / 2)


def test_cifar100_is_read_from_a_fixture_in_its_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    rng, images = np.random.default_rng(0), {}
    for split, n in (("train", 6), ("test", 3)):
        images[split] = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        content = {"data": images[split], "fine_labels": list(range(94, 94 + n)), "coarse_labels": [0] * n}
        (folder / split).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(100)]}))
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load("cifar100", tmp_path)
    assert np.array_equal(data.x.numpy(), images["train"].reshape(6, 3, 32, 32))
    assert np.array_equal(data.x_test.numpy(), images["test"].reshape(3, 3, 32, 32))
    assert data.y.tolist() == [94, 95, 96, 97, 98, 99]
    assert len(data.classes) == 100


@pytest.mark.slow
def test_severity_raises_the_error_of_a_trained_model() -> None:
    """Classes are the place and the hue of a soft blob on a textured ground: details, colours and contrast matter."""

    def blobs(n: int, seed: int) -> tuple[np.ndarray, torch.Tensor]:
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 8, n)
        axis = np.arange(32)
        images = 0.35 + 0.12 * rng.normal(size=(n, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
        for i, label in enumerate(y):
            top, left = (10, 22)[label & 1] + rng.normal(0, 1.5), (10, 22)[label >> 1 & 1] + rng.normal(0, 1.5)
            bell = np.exp(-((axis[:, None] - top) ** 2 + (axis - left) ** 2) / 12)[..., None]
            stripes = 0.6 + 0.4 * np.sin(axis * 2.6)[:, None, None]
            images[i] += 0.3 * bell * stripes * np.array([(1.0, 0.2, 0.2), (0.2, 0.2, 1.0)][label >> 2])
        return (images.clip(0, 1) * 255).astype(np.uint8), torch.from_numpy(y)

    torch.manual_seed(0)
    x, y = blobs(2500, 0)
    body = [nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 5, stride=2), nn.ReLU()]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(400, 8))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    inputs = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 - 0.4
    for _ in range(6):
        for rows in torch.split(torch.randperm(len(y)), 64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), y[rows]).backward()
            optimizer.step()
    x, y = blobs(600, 1)

    def error(images: np.ndarray) -> float:
        with torch.no_grad():
            return float(
                (model(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.4).argmax(1) != y).float().mean()
            )

    clean = error(x)
    assert clean < 0.1
    errors = {name: [error(corrupt(x, np.arange(600), name, severity)) for severity in SEVERITIES] for name in NAMES}
    less, more = errors["saturate"][:2], errors.pop("saturate")[2:]  # two ways, each with severities of its own
    assert clean <= less[0] < less[1]
    assert more[0] <= more[1] <= more[2]
    for name, found in errors.items():
        assert np.polyfit(SEVERITIES, found, 1)[0] >= 0, f"{name}: {found}"
        assert np.mean(found) >= clean - 0.01, name
    assert np.polyfit(SEVERITIES, np.mean(list(errors.values()), 0), 1)[0] > 0.01
