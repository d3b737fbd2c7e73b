import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision

from dm2_fast.experiment.data.sets import load


def test_digits_come_with_the_installation() -> None:
    data = load("digits")
    assert data.x.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    assert (int(data.x.min()), int(data.x.max())) == (0, 255)
    assert len(data.y) == 1437
    assert data.y.dtype == torch.int64
    shares = torch.bincount(data.y) / torch.bincount(torch.cat([data.y, data.y_test]))
    assert ((shares - 0.8).abs() < 0.01).all()
    mean, std = data.normalize
    pixels = data.x.double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((mean, std))
    again = load("digits")
    assert torch.equal(again.x, data.x)
    assert torch.equal(again.y_test, data.y_test)


def write_idx(file: Path, array: np.ndarray) -> None:
    """A file in the IDX format of MNIST."""
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    file.write_bytes(header + array.tobytes())


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_mnist_is_read_from_a_fixture_in_its_file_format(name: str, folder: str, tmp_path: Path) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for split, n in (("train", 7), ("t10k", 3))}
    for split, x in images.items():
        write_idx(raw / f"{split}-images-idx3-ubyte", x)
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.arange(len(x), dtype=np.uint8))
    data = load(name, tmp_path)
    assert np.array_equal(data.x[:, 0].numpy(), images["train"])
    assert np.array_equal(data.x_test[:, 0].numpy(), images["t10k"])
    assert data.y.tolist() == list(range(7))
    assert data.y.dtype == data.y_test.dtype == torch.int64
    assert len(data.classes) == 10


def test_cifar10_is_read_from_a_fixture_in_its_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    batches = {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batches[name] = rng.integers(0, 256, (4, 3072), dtype=np.uint8)
        content = {"data": batches[name], "labels": [1, 2, 3, 9]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    data = load("cifar10", tmp_path)
    planes = np.concatenate([batches[f"data_batch_{i}"] for i in range(1, 6)]).reshape(20, 3, 32, 32)
    assert np.array_equal(data.x.numpy(), planes)
    assert data.x.is_contiguous(memory_format=torch.channels_last)
    assert data.y.tolist() == [1, 2, 3, 9] * 5
    assert data.classes[9] == "truck"
    assert len(data.x_test) == 4


def test_svhn_is_read_from_a_fixture_in_its_file_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)}
    images["test"] = rng.integers(0, 256, (32, 32, 3, 2), dtype=np.uint8)
    labels = {"train": [10, 1, 9, 10, 4], "test": [3, 10]}  # the file's 10 is the digit 0
    for split, x in images.items():
        content = {"X": x, "y": np.array(labels[split], np.uint8)[:, None]}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content, do_compression=True)
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    data = load("svhn", tmp_path)
    for i in range(5):
        for channel in range(3):
            assert np.array_equal(data.x[i, channel].numpy(), images["train"][:, :, channel, i])
    assert np.array_equal(data.x_test[1].permute(1, 2, 0).numpy(), images["test"][..., 1])
    assert data.x.is_contiguous(memory_format=torch.channels_last)
    assert data.y.tolist() == [0, 1, 9, 0, 4]
    assert data.y_test.tolist() == [3, 0]
    assert data.y.dtype == data.y_test.dtype == torch.int64
    assert data.classes == tuple("0123456789")
    assert data.normalize == ((0.4310, 0.4302, 0.4463), (0.1965, 0.1984, 0.1992))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
        ("cifar10", "cifar-10-batches-py"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_a_missing_data_set_says_where_it_looked_and_what_to_do(name: str, folder: str, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=rf"data set {name} not found in {tmp_path}/{folder} .*--data-dir.*--download"
    ):
        load(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_download_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(ConnectionError, match=r"data set cifar10 could not be downloaded to .*: no route"):
        load("cifar10", tmp_path, download=True)


def test_unknown_data_sets_are_named() -> None:
    with pytest.raises(ValueError, match="dataset must be one of digits, .*, svhnc or a file.npz, got 'imagenet'"):
        load("imagenet")
