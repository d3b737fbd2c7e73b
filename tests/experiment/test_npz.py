import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import dm2_fast
from dm2_fast import DM2Config, RunConfig
from dm2_fast.experiment import TrainingConfig
from dm2_fast.experiment.config import fingerprint, resolve
from dm2_fast.experiment.data import npz
from dm2_fast.experiment.data.sets import load


def arrays(n: int = 40, dtype: type = np.uint8, channels: int = 3) -> dict[str, np.ndarray]:
    """Images (n, 6, 5, C) whose classes differ in brightness, channels last."""
    rng = np.random.default_rng(0)
    parts: dict[str, np.ndarray] = {}
    for name, m in (("", n), ("_test", n // 2)):
        y = np.arange(m) % 3
        x = rng.integers(0, 86, (m, 6, 5, channels)) + 85 * y[:, None, None, None]
        parts |= {f"x{name}": (x if dtype is np.uint8 else x / 255).astype(dtype), f"y{name}": y}
    return parts | {"layout": np.array("nhwc")}


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "grey"])
def test_images_are_read_in_every_layout(
    dtype: type, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(npz, "_ROWS", 7)
    parts = arrays(dtype=dtype, channels=1 if layout == "grey" else 3)
    want = {name: parts[name].transpose(0, 3, 1, 2) for name in ("x", "x_test")}
    if layout == "nchw":
        parts |= {name: np.ascontiguousarray(x) for name, x in want.items()} | {"layout": np.array("nchw")}
    if layout == "grey":
        parts |= {name: x[:, 0] for name, x in want.items()}
        del parts["layout"]
    np.savez(tmp_path / "own.npz", **parts)
    data = load(str(tmp_path / "own.npz"))
    for name, x in want.items():
        got = getattr(data, name)
        assert got.dtype == (torch.uint8 if dtype is np.uint8 else torch.float32)
        assert np.array_equal(got.numpy(), x.astype(got.numpy().dtype))
        assert got.is_contiguous(memory_format=torch.channels_last)
    assert data.y.tolist() == parts["y"].tolist()
    assert data.y_test.tolist() == parts["y_test"].tolist()
    assert data.y.dtype == torch.int64
    assert data.classes == ("0", "1", "2")
    pixels = want["x"].astype(np.float64) / (255 if dtype is np.uint8 else 1)
    mean, std = data.normalize
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-7)
    assert std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-7)


def test_classes_may_be_named_and_then_need_not_all_occur(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "emu"]
    np.savez(tmp_path / "own.npz", **arrays(), classes=names)
    assert load(str(tmp_path / "own.npz")).classes == tuple(names)


def with_pixel(value: float) -> dict[str, np.ndarray]:
    x = arrays(dtype=np.float32)["x"]
    x[33, 1, 2, 0] = value
    return {"x": x}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": None}, "no array y: a data set needs x, y, x_test, y_test"),
        ({"x": None, "y_test": None}, "no array x and no array y_test"),
        ({"X": np.zeros(3)}, "unknown array 'X': a data set has x, y, x_test, y_test, layout, classes and ids only"),
        ({"x": np.zeros((40, 30), np.uint8)}, r"x must be \(n, H, W\), .* and not empty, got shape \(40, 30\)"),
        ({"x_test": np.zeros((0, 6, 5, 3), np.uint8)}, r"x_test must be .* not empty, got shape \(0, 6, 5, 3\)"),
        ({"x": np.zeros((40, 6, 5, 3), np.int64)}, r"x must be uint8, or floating point in \[0, 1\], got int64"),
        ({"x_test": np.zeros((20, 6, 6, 3), np.uint8)}, r"x_test must hold images like .*, uint8 of shape \(6, 5, 3\)"),
        ({"x_test": np.zeros((20, 6, 5, 3), np.float32)}, "x_test must hold images like those of x, .*, got float32"),
        (with_pixel(np.nan), r"x must be in \[0, 1\] for floating point, got nan in row 33"),
        (with_pixel(255.0), r"x must be in \[0, 1\] for floating point, got 255.0 in row 33"),
        (with_pixel(-0.5), r"x must be in \[0, 1\] for floating point, got -0.5 in row 33"),
        ({"layout": None}, r"layout must be .* for x of shape \(40, 6, 5, 3\), got nothing: save it beside x"),
        ({"layout": np.array("chwn")}, "layout must be 'nchw' or 'nhwc' for x of shape .*, got chwn"),
        ({"layout": np.array([1, 2])}, r"layout must be 'nchw' or 'nhwc' for x of shape .*, got \[1, 2\]"),
        ({"y": np.arange(40) / 40}, "y must be integers, got float64"),
        ({"y": np.zeros((40, 1), np.int64)}, r"y must have shape \(40,\), one class for each image, got \(40, 1\)"),
        ({"y_test": np.zeros(19, np.uint8)}, r"y_test must have shape \(20,\), .*, got \(19,\)"),
        ({"y": np.arange(40) % 3 + 1}, "y must be the classes 0, 1, 2 and so on without a gap, .*, got 1 for 0"),
        ({"y": np.arange(40) % 3 * 2}, "y must be the classes 0, 1, 2 .*, got 2 for 1"),
        ({"y": np.arange(40) % 3 - 2}, "got -2 for 0"),
        ({"y": np.zeros(40, np.int64)}, "y must be the classes 0, 1, 2 .*, got 1 class"),
        ({"y_test": np.arange(20) % 4}, r"y_test must be in \[0, 2\], got 3 in row 3"),
        ({"classes": np.array(["a", "b"])}, r"y must be in \[0, 1\], got 2 in row 2"),
        ({"classes": np.array([1, 2, 3])}, r"classes must be at least two names, got int64 of shape \(3,\)"),
        ({"x": np.full((40, 6, 5, 3), 9, np.uint8)}, "channel 0 of x has the same value everywhere"),
        ({"y": np.array([0, "a"], object)}, "cannot be read .*: write it with np.savez, without Python objects"),
    ],
)  # fmt: skip
def test_a_malformed_file_gets_one_readable_line(changes: dict, message: str, tmp_path: Path) -> None:
    parts = {name: value for name, value in (arrays() | changes).items() if value is not None}
    file = tmp_path / "own.npz"
    np.savez(file, **parts)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_at_any_length(tmp_path: Path) -> None:
    file = tmp_path / "own.npz"
    np.savez_compressed(file, **arrays())
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:n] for n in (0, 1, 50, len(whole) // 2, len(whole) - 1)]
    for position in rng.integers(0, len(whole) // 2, 20):  # in the arrays, not in the list of them at the end
        damaged.append(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
    refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            data = load(str(file))
        except ValueError:
            refused += 1
        else:  # a byte that means nothing, a date say
            assert np.array_equal(data.x.numpy().transpose(0, 2, 3, 1), arrays()["x"])
    assert refused >= 20
    file.write_text("no archive")
    with pytest.raises(ValueError, match=r"cannot be read \(it is no .npz file\): write it with np.savez"):
        load(str(file))
    np.save(tmp_path / "one.npy", arrays()["x"])
    (tmp_path / "one.npy").rename(file)
    with pytest.raises(
        ValueError, match=r"cannot be read \(it holds one array without a name\): write it with np.savez"
    ):
        load(str(file))


QUICK = RunConfig(
    initial=9, budget=4, rounds=1, options=DM2Config(k=3), training=TrainingConfig(epochs=2), strategy="dm2-at"
)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_run_on_a_file_of_one_s_own(dtype: type, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", **arrays(dtype=dtype))
    result = dm2_fast.run(replace(QUICK, dataset=str(tmp_path / "own.npz"), output=tmp_path / "run"))
    assert [entry.labelled for entry in result.rounds] == [9, 13]
    assert (tmp_path / "run" / "round_01.png").exists()


def test_uint8_and_the_same_pixels_as_floats_are_the_same_run(tmp_path: Path) -> None:
    results = []
    for dtype in (np.uint8, np.float32):
        parts = arrays()
        parts |= {name: parts[name] / np.float32(255) for name in ("x", "x_test")} if dtype is np.float32 else {}
        np.savez(tmp_path / "own.npz", **parts)
        config = replace(QUICK, dataset=str(tmp_path / "own.npz"), output=tmp_path / dtype.__name__)
        results.append(dm2_fast.run(config))
    assert torch.equal(torch.cat(results[0].chosen), torch.cat(results[1].chosen))
    assert [r.labelled for r in results[0].rounds] == [r.labelled for r in results[1].rounds]
    for a, b in zip(results[0].rounds, results[1].rounds, strict=True):
        assert a.evaluation.accuracy == b.evaluation.accuracy
        assert a.evaluation.loss == pytest.approx(b.evaluation.loss, rel=1e-5)


def test_a_run_is_of_the_file_s_content_and_not_of_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved").mkdir()
    np.savez("a pool.npz", **arrays())
    (tmp_path / "moved" / "a pool.npz").write_bytes(Path("a pool.npz").read_bytes())
    config = replace(QUICK, dataset="a pool.npz", rounds=0)
    first = resolve(config)
    assert re.fullmatch(r"runs/a-pool-cnn-dm2-at-seed0-[0-9a-f]{8}", str(first.output))
    assert fingerprint(resolve(replace(config, dataset="moved/a pool.npz"))) == fingerprint(first)
    dm2_fast.run(replace(config, output=tmp_path / "run"))
    recorded = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["dataset_sha256"]
    assert recorded == first.dataset_sha256

    np.savez("a pool.npz", **arrays(50))
    assert fingerprint(resolve(config)) != fingerprint(first)
    with pytest.raises(FileExistsError, match=r"dataset \(a pool.npz \(\w{12}\) there, a pool.npz \(\w{12}\) here\)"):
        dm2_fast.run(replace(config, output=tmp_path / "run"))
    with pytest.raises(ValueError, match=rf"dataset_sha256 is {recorded}, but the SHA-256 of .*pool.npz is"):
        dm2_fast.run(replace(config, dataset_sha256=recorded))
    with pytest.raises(ValueError, match=rf"dataset_sha256 is {recorded}, but digits is no .npz file"):
        dm2_fast.run(replace(config, dataset="digits", dataset_sha256=recorded))
