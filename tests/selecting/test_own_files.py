import csv
import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

import dm2_fast
from dm2_fast import DM2Config, Round, select_from
from dm2_fast.cli import main
from dm2_fast.experiment import RunConfig, TrainingConfig
from dm2_fast.selecting.images import read_images
from dm2_fast.selecting.names import RowNames

MODEL = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.first(x).mean((2, 3)))
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with photographs of mixed sizes in folders, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    Path("my_model.py").write_text(MODEL)
    generator = torch.Generator().manual_seed(3)
    for i in range(24):
        folder = Path("photos") / ("cats", "dogs and others")[i % 2] / f"day {i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        height, width = 20 + i, 60 - i
        pixels = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        to_pil_image(pixels).save(folder / f"{i:02d}.{'jpg' if i % 4 else 'png'}")
    Path("photos/notes.txt").write_text("no image")


PHOTOS = ["select", "--pool", "photos", "--model", "my_model:build", "--size", "16", "--budget", "5", "--dm2.k", "3"]


def table(folder: str) -> list[dict[str, str]]:
    with (Path(folder) / "selected.csv").open() as lines:
        return list(csv.DictReader(lines))


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("dm2-fast: error: ")
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("dm2-fast: error: ")


def test_a_folder_of_photographs_gives_the_next_file_names_and_a_second_round_goes_on() -> None:
    main([*PHOTOS, "--output", "first", "--export", "label-studio"])
    names, images, damaged = read_images(Path("photos"), 16)
    assert len(names) == 24
    assert names == sorted(names)
    assert images.shape == (24, 3, 16, 16)
    assert not damaged
    import my_model  # type: ignore[import-not-found]

    picked = dm2_fast.select(my_model.build(), images, 5, options=DM2Config(k=3), ids=names)
    lines = table("first")
    assert [line["id"] for line in lines] == picked.ids
    assert [names[int(line["row"])] for line in lines] == picked.ids
    assert Path("first/selected.png").exists()

    tasks = json.loads(Path("first/label_studio.json").read_text())
    assert [task["data"]["id"] for task in tasks] == picked.ids
    for task, line in zip(tasks, lines, strict=True):
        url = urlsplit(task["data"]["image"])
        assert url.path == "/data/local-files/"
        assert " " not in url.query
        assert parse_qs(url.query) == {"d": [f"photos/{line['id']}"]}  # below the folder around the pool's
        assert set(task) == {"data", "predictions"}
        (prediction,) = task["predictions"]
        assert set(prediction) == {"model_version", "score", "result"}
        assert prediction["result"] == []
        shown = (float(line["score"]) - picked.scores.min().item()) / (picked.scores.max() - picked.scores.min()).item()
        assert prediction["score"] == pytest.approx(shown, abs=1e-6)

    labelled = [[line["id"], ("cat", "dog")[line["id"].startswith("dogs")]] for line in lines]
    with Path("labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "label"], *labelled])
    main([*PHOTOS, "--output", "second", "--round", "1", "--labelled", "labels.csv", "--classes", "cat,dog,bird"])
    assert not {line["id"] for line in table("second")} & {name for name, _ in labelled}


@pytest.mark.parametrize("strategy", ["entropy", "margin", "least-confidence", "coreset"])
def test_label_studio_gets_scores_in_the_range_that_it_takes(strategy: str) -> None:
    arrays()
    Path("labelled.csv").write_text("row,label\n3,1\n")
    files = ["--head", "head.npz", "--ids", "ids.csv", "--labelled", "labelled.csv", "--strategy", strategy]
    main([*FEATURES, *files, "--export", "label-studio"])
    tasks = json.loads(Path("out/label_studio.json").read_text(encoding="utf-8"))
    assert [task["data"]["id"] for task in tasks] == [line["id"] for line in table("out")]
    assert not any("image" in task["data"] for task in tasks)
    if strategy == "coreset":
        assert all(set(task) == {"data"} for task in tasks)
        return
    everywhere = np.load("out/scores.npy")
    raw = np.array([task["data"]["score"] for task in tasks])
    np.testing.assert_allclose(raw, [float(line["score"]) for line in table("out")], rtol=1e-8)
    lowest, highest = (0, 1) if strategy == "least-confidence" else (np.nanmin(everywhere), np.nanmax(everywhere))
    shown = [task["predictions"][0]["score"] for task in tasks]
    np.testing.assert_allclose(shown, (raw - lowest) / (highest - lowest), atol=1e-6)
    assert max(shown) <= 1


def test_images_of_sixteen_bits_and_of_every_kind_are_read() -> None:
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Path("deep").mkdir()
    for kind in ("png", "tif", "pgm"):
        Image.fromarray(values).save(f"deep/{kind}.{kind}")
    for kind in ("bmp", "ppm", "tiff", "GIF"):
        Image.fromarray((values >> 8).astype(np.uint8)).save(f"deep/{kind}.{kind}")
    names, images, damaged = read_images(Path("deep"), 7)  # the 8 pixels are not resized, and 7 of them are kept
    assert not damaged
    assert names == ["GIF.GIF", "bmp.bmp", "pgm.pgm", "png.png", "ppm.ppm", "tif.tif", "tiff.tiff"]
    from torchvision.transforms.v2.functional import center_crop

    expected = center_crop(torch.from_numpy(values.astype(np.int32) >> 8), [7, 7])
    for image in images:
        assert all(np.array_equal(channel, expected) for channel in image)


def test_the_orientation_that_a_camera_noted_is_applied() -> None:
    Path("turned").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    picture.save("turned/a.png", exif=exif)
    picture.rotate(270).save("turned/b.png")
    _, (turned, expected), _ = read_images(Path("turned"), 7)
    np.testing.assert_array_equal(turned, expected)


def test_ids_may_look_like_row_numbers() -> None:
    names = RowNames(3, ["2", "0", "x"])
    assert names.row("", "2", "id") == 0
    assert names.row("", "2", "row") == 2
    assert names.row("", "0", "") == 1  # a column without a name holds ids where there are some


def test_photographs_that_need_converting_are_told_of() -> None:
    Path("photos/a.HEIC").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 file below photos cannot be read, so it is left out: convert .heic to .j"):
        assert len(read_images(Path("photos"), 8)[0]) == 24


def test_images_are_resized_and_cropped_as_imagenet_evaluation_does() -> None:
    from torchvision.transforms import v2

    names, images, _ = read_images(Path("photos"), 14)
    transform = v2.Compose([v2.Resize(16, antialias=True), v2.CenterCrop(14)])
    for name, image in zip(names, images, strict=True):
        assert torch.equal(torch.from_numpy(image), transform(pil_to_tensor(Image.open(Path("photos") / name))))


def test_damaged_images_are_named_and_left_out_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/cats/broken.jpg").write_bytes(b"\xff\xd8 no picture")
    Path("photos/empty.png").write_bytes(b"")
    said = error_of([*PHOTOS, "--output", "out"], capsys)
    assert said == ("damaged below photos: cats/broken.jpg, empty.png (mend or remove them, or add --skip-damaged)")
    main([*PHOTOS, "--output", "out", "--skip-damaged"])
    assert Path("out/damaged.txt").read_text() == "cats/broken.jpg\nempty.png\n"
    assert len(np.load("out/scores.npy")) == 24
    names, images, _ = read_images(Path("photos"), 16, skip_damaged=True)
    Path("photos/cats/broken.jpg").unlink()
    Path("photos/empty.png").unlink()
    whole_names, whole, _ = read_images(Path("photos"), 16)
    assert names == whole_names
    np.testing.assert_array_equal(images, whole)
    Path("nothing").mkdir()
    arguments = ["nothing" if argument == "photos" else argument for argument in PHOTOS]
    assert error_of(arguments, capsys).startswith("no image below nothing: files must end in .jpg, .jpeg, .png")
    Path("nothing/a.heic").write_bytes(b"no picture")
    assert error_of(arguments, capsys).endswith("(convert .heic to .jpg)")
    arguments = ["gone" if argument == "photos" else argument for argument in PHOTOS]
    assert error_of(arguments, capsys) == "pool: there is no file or folder gone"


def test_tokens_are_a_pool_whose_features_are_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("my_model.py").open("a") as file:
        file.write(
            "\n\ndef texts():\n    torch.manual_seed(0)\n    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), "
            "nn.Linear(56, 16), nn.ReLU(), nn.Linear(16, 3))\n"
        )
    tokens = np.random.default_rng(0).integers(0, 50, (40, 7))
    np.save("tokens.npy", tokens)
    arguments = ["select", "--pool", "tokens.npy", "--model", "my_model:texts", "--budget", "5"]
    assert "the pool holds int64: mix their features, with --dm2.space features" in error_of(arguments, capsys)
    main([*arguments, "--dm2.space", "features", "--output", "out"])
    import my_model  # type: ignore[import-not-found]

    picked = dm2_fast.select(my_model.texts(), tokens, 5, options=DM2Config(space="features"))
    lines = csv.DictReader(Path("out/selected.csv").read_text().splitlines())
    assert [int(line["row"]) for line in lines] == picked.indices.tolist()


def arrays() -> LogisticRegression:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((60, 6)).astype(np.float32), np.arange(60) % 3
    classifier = LogisticRegression().fit(x[:30], y[:30])
    np.save("features.npy", x)
    np.save("probabilities.npy", classifier.predict_proba(x))
    np.save("logits.npy", classifier.decision_function(x))
    np.savez("head.npz", coef_=classifier.coef_, intercept_=classifier.intercept_)
    with Path("ids.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["note", "id"], *([f"n{i}", f"sample {i}"] for i in range(60))])
    return classifier


FEATURES = ["select", "--features", "features.npy", "--budget", "5", "--output", "out"]


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_features_with_outputs_are_enough(outputs: str) -> None:
    arrays()
    Path("labelled.csv").write_text("id,label\nsample 3,1\nsample 7,0\n")
    files = ["--labelled", "labelled.csv", "--ids", "ids.csv", f"--{outputs}", f"{outputs}.npy"]
    main([*FEATURES, *files, "--strategy", "badge"])
    rest = np.setdiff1d(np.arange(60), [3, 7])
    given: dict[str, Any] = {outputs: np.load(f"{outputs}.npy")[rest]}
    picked = select_from(Round.from_arrays(np.load("features.npy")[rest], **given), 5, "badge")
    assert [line["id"] for line in table("out")] == [f"sample {rest[row]}" for row in picked.indices.tolist()]


def test_a_head_of_scikit_learn_is_read_from_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    classifier = arrays()
    main([*FEATURES, "--head", "head.npz", "--output", "mixed"])
    assert "runs as it is" not in capsys.readouterr().out  # there is no model that could be prepared
    main([*FEATURES, "--head", "head.npz", "--strategy", "least-confidence"])
    expected = 1 - classifier.predict_proba(np.load("features.npy")).max(1)
    np.testing.assert_allclose(np.load("out/scores.npy"), expected, atol=1e-6)


def test_the_model_of_a_run_chooses_from_a_pool_of_one_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    quick = TrainingConfig(epochs=1)
    dm2_fast.run(RunConfig(initial=12, budget=3, rounds=0, pool=40, test=20, training=quick, output=Path("run")))
    from dm2_fast.experiment.data.sets import load

    data = load("digits")
    np.save("pool.npy", data.x_test.numpy())
    main(["select", "--run", "run", "--pool", "pool.npy", "--budget", "5", "--strategy", "entropy", "--output", "out"])
    from dm2_fast.experiment.models import build

    model = build("cnn", 1, (8, 8), 10)
    model.load_state_dict(torch.load("run/model.pt", weights_only=True))
    picked = dm2_fast.select(model, data.x_test, 5, "entropy", normalize=data.normalize)
    assert [int(line["row"]) for line in table("out")] == picked.indices.tolist()
    np.save("pool.npy", np.zeros((20, 3, 8, 8), np.uint8))
    arguments = ["select", "--run", "run", "--pool", "pool.npy", "--budget", "5"]
    assert error_of(arguments, capsys) == (
        "the run was trained on samples of shape (1, 8, 8), and those of the pool are (3, 8, 8)"
    )
    assert error_of([*arguments, "--run", "runs"], capsys) == "cannot read run runs: no config.yaml"
    assert error_of([*arguments, "--model", "a:b"], capsys) == "leave out --model: the run of --run has its own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "3.0\n",
            "row must be an integer from 0 on, got '3.0': save the column as whole numbers, 3",
        ),
        ("row;label\n3;1\n", "line 1 of list.csv: got 'row;label': separate the columns by commas, not by semicolons"),
        ("3;1\n", "line 1 of list.csv: got '3;1': separate the columns by commas, not by semicolons"),
        ("row,label\n3;1\n", "must be row,label, got '3;1': separate the columns by commas, not by semicolons"),
        ("id\nsample 99\n", "line 2 of list.csv: no row has the id 'sample 99' (ids are such as 'sample 0')"),
        (
            "sample 99\n",
            "line 1 of list.csv: no row has the id 'sample 99', and it is no row number (ids are such as 'sample 0')",
        ),
        ("row,label\n3,\n", "line 2 of list.csv: there is no label: fill it in, or leave the line out"),
        ("3\nsample 3\n", "line 2 of list.csv: row must be named once, got 3, which is in line 1 too"),
    ],
)
def test_a_list_that_is_written_another_way_is_answered_in_one_sentence(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays()
    Path("list.csv").write_text(text)
    arguments = [*FEATURES, "--head", "head.npz", "--ids", "ids.csv", "--labelled", "list.csv"]
    assert error_of(arguments, capsys).endswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--head", "head.npz", "--logits", "logits.npy"],
            "give one of --head, --logits and --probabilities, got",
        ),
        (["--logits", "probabilities.npy"], "logits look like probabilities"),
        (["--logits", "logits.npy", "--labelled", "cats.csv"], "got 'cat' (names of classes need --classes)"),
        (["--head", "features.npy"], "head must be a .npz file of weight and bias, got features.npy"),
        (["--head", "head.npz", "--skip-damaged"], "leave out --skip-damaged: it belongs to a folder of images"),
        (["--head", "head.npz", "--size", "32"], "leave out --size: it belongs to a folder of images"),
        (["--logits", "few.npy"], "logits must be (m, C) with the 60 rows of features, got (4, 3)"),
        (["--logits", "logits.npy"], "this strategy needs the head: pass --head, or use --model and --pool"),
        (["--head", "head.npz", "--ids", "few.csv"], "ids must name each of the 60 rows, got 1 in few.csv"),
        (["--head", "head.npz", "--ids", "head.npz"], "ids must be a .csv or .npy file, got head.npz"),
        (["--head", "head.npz", "--ids", "rows.csv"], "ids must have a column id, got row in rows.csv"),
        (["--head", "head.npz", "--model", "a:b"], "leave out --model: it belongs to --pool, not to --features"),
    ],
)
def test_files_that_do_not_fit_are_answered_in_one_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays()
    np.save("few.npy", np.ones((4, 3)))
    Path("few.csv").write_text("id\nsample 0\n")
    Path("rows.csv").write_text("row\n0\n")
    Path("cats.csv").write_text("row,label\n3,cat\n")
    assert message in error_of([*FEATURES, *arguments], capsys)


@pytest.mark.filterwarnings("always:60 rows have the same score")
def test_messages_name_options_as_a_command_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    arrays()
    np.save("even.npy", np.full((60, 3), 1 / 3))
    outputs = [*FEATURES, "--logits", "even.npy", "--strategy", "entropy"]
    assert error_of(outputs, capsys) == (
        "logits look like probabilities, since every row is non-negative with sum 1: pass the values before the "
        "softmax, or use --probabilities; if they are logits nevertheless, pass --these-are-logits"
    )
    main([*outputs, "--these-are-logits"])
    assert capsys.readouterr().err.endswith("or let a draw decide with --ties random\n")
    out = [*FEATURES[:-1], "again"]
    main([*out, "--logits", "even.npy", "--strategy", "entropy", "--these-are-logits", "--ties", "random"])
    assert not capsys.readouterr().err
    assert [line["row"] for line in table("again")] != [line["row"] for line in table("out")]
    said = error_of([*out[:-1], "third", "--head", "head.npz", "--strategy", "coreset"], capsys)
    assert said == "this strategy compares with labelled samples: pass --labelled with at least one"
    assert error_of([*PHOTOS, "--layout", "nhwc"], capsys).startswith("leave out --layout: it belongs to a .npy file")


def test_a_forgotten_layout_and_the_model_s_own_words_are_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("pool.npy", np.zeros((20, 16, 18, 3), np.uint8))
    said = error_of(["select", "--pool", "pool.npy", "--model", "my_model:Narrow", "--budget", "5"], capsys)
    assert (
        "the model of my_model:Narrow raised RuntimeError on samples of shape (16, 18, 3) (if these are height, width "
        in said
    )
    assert "add --layout nhwc): Given groups=1" in said
    assert re.search(r"my_model.py, line \d+\)$", said)


def test_a_duplicate_file_name_and_an_id_s_end_stand_above_the_pictures() -> None:
    from dm2_fast.experiment.folder.sheet import short

    assert short("cats/1.jpg") == "cats/1.jpg"
    assert short("a/very/long/folder/name/1.jpg") == "…er/name/1.jpg"
    assert len(short("a" * 99)) == 14
