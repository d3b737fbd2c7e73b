import csv
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import oracle
import pytest
import torch
import yaml
from torch import nn

import dm2_fast
from dm2_fast import DM2Config, Strategy
from dm2_fast.cli import main
from dm2_fast.model.passes import ForwardPass
from dm2_fast.selecting import samples as pool_files
from dm2_fast.selecting.command import SelectConfig, select_from_files

ROOT = Path(__file__).parents[2]
M, D, C = 90, 6, 4
LABELLED = [3, 88, 41, 0, 17]
UNLABELLED = np.setdiff1d(np.arange(M), LABELLED)

MODELS = """
import os, signal
import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3 * 4 * 4, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


def build():
    return Net()


class Raising(Net):
    def forward(self, x):
        raise ValueError("a mistake of their own")


class Interrupted(Net):
    def forward(self, x):
        os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class NoHead(Net):
    def forward(self, x):
        return super().forward(x) + 1


def function():
    return np.zeros


def failing():
    raise KeyError("nowhere")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with every file that select takes; the test is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    random = np.random.default_rng(5)
    np.save("features.npy", random.standard_normal((M, D)).astype(np.float32))
    weight, bias = random.standard_normal((C, D)), random.standard_normal(C)
    np.savez("head.npz", weight=weight.astype(np.float32), bias=bias.astype(np.float32))
    np.save("pool.npy", random.integers(0, 256, (M, 3, 4, 4), dtype=np.uint8))
    Path("labelled.txt").write_text("".join(f"{row}\n" for row in LABELLED))
    Path("their_models.py").write_text(MODELS)
    import their_models

    torch.manual_seed(2)
    torch.save({name: 4 * value for name, value in their_models.Net().state_dict().items()}, "weights.pt")


FEATURES = SelectConfig(
    features=Path("features.npy"),
    head="head.npz",
    budget=12,
    options=DM2Config.published(k=3, lam=0.3),
    output=Path("out"),
)
IMAGES = SelectConfig(
    pool=Path("pool.npy"), model="their_models:build", weights=Path("weights.pt"), budget=12,
    normalize="0.4,0.5,0.6/0.2,0.3,0.25", options=DM2Config.published(k=3, lam=0.3), output=Path("out"),
)  # fmt: skip


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "selected.csv").open() as lines:
        return list(csv.DictReader(lines))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def check(folder: Path, rows: np.ndarray, neighbours: np.ndarray, scores: np.ndarray, budget: int = 12) -> None:
    """The files against the scores and neighbours (as places in rows) of a direct computation."""
    everywhere = np.load(folder / "scores.npy")
    np.testing.assert_allclose(everywhere[rows], scores, atol=2e-6)
    assert np.isnan(np.delete(everywhere, rows)).all()
    chosen = rows[np.argsort(-everywhere[rows], kind="stable")[:budget]]
    lines = table(folder)
    assert [int(line["order"]) for line in lines] == list(range(budget))
    assert [int(line["row"]) for line in lines] == chosen.tolist()
    np.testing.assert_allclose([float(line["score"]) for line in lines], everywhere[chosen], rtol=1e-8)
    near = dict(zip(rows.tolist(), rows[neighbours].tolist(), strict=True))
    assert [[int(row) for row in line["neighbours"].split()] for line in lines] == [near[row] for row in chosen]


def direct_features(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(neighbours, scores) of Algorithm 1 in float64, mixing the features themselves."""
    x, head = np.load("features.npy").astype(np.float64)[rows], np.load("head.npz")
    _, neighbours = oracle.knn(x, 3)
    mixed = 0.3 * x + 0.7 * x[neighbours].mean(1)
    return neighbours, 1 - softmax(mixed @ head["weight"].T.astype(np.float64) + head["bias"]).max(1)


def direct_images(pool: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same with the network written out; pool is (m, C, H, W) in [0, 1]."""
    state = {name: value.double().numpy() for name, value in torch.load("weights.pt", weights_only=True).items()}
    mean, std = (np.array(v)[:, None, None] for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]))

    def features(x: np.ndarray) -> np.ndarray:
        flat = ((x - mean) / std).reshape(len(x), -1)
        return np.maximum(flat @ state["body.weight"].T + state["body.bias"], 0)

    x = pool.astype(np.float64)[rows]
    _, neighbours = oracle.knn(features(x), 3)
    mixed = 0.3 * x + 0.7 * x[neighbours].mean(1)
    return neighbours, 1 - softmax(features(mixed) @ state["head.weight"].T + state["head.bias"]).max(1)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2", ">f4"])
@pytest.mark.parametrize("labelled", [None, Path("labelled.txt")])
def test_features_are_mixed_and_scored_by_their_head(labelled: Path | None, dtype: str) -> None:
    np.save("features.npy", np.load("features.npy").astype(dtype))
    folder = select_from_files(replace(FEATURES, labelled=labelled))
    rows = np.arange(M) if labelled is None else UNLABELLED
    check(folder, rows, *direct_features(rows))
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "scores.npy", "selected.csv"]


def test_features_in_columns_give_the_same_as_in_rows() -> None:
    first = select_from_files(FEATURES)
    np.save("features.npy", np.asfortranarray(np.load("features.npy")))
    second = select_from_files(replace(FEATURES, output=Path("second")))
    assert (second / "selected.csv").read_bytes() == (first / "selected.csv").read_bytes()


def test_the_report_says_how_good_the_neighbours_are() -> None:
    lines: list[str] = []
    first = select_from_files(FEATURES)
    options = DM2Config.published(k=3, lam=0.3, recall=0.9)
    second = select_from_files(replace(FEATURES, output=Path("second"), options=options), echo=lines.append)
    assert (second / "selected.csv").read_bytes() == (first / "selected.csv").read_bytes()
    assert "exact neighbours: below 50000 rows the exact search costs no more" in lines


@pytest.mark.parametrize("kind", ["uint8", "float32", "nhwc"])
@pytest.mark.parametrize("labelled", [None, Path("labelled.txt")])
def test_images_are_mixed_and_scored_by_their_model(labelled: Path | None, kind: str) -> None:
    pool = np.load("pool.npy")
    if kind == "float32":
        np.save("pool.npy", (pool / 255).astype(np.float32))
    if kind == "nhwc":
        np.save("pool.npy", pool.transpose(0, 2, 3, 1).copy())
    folder = select_from_files(replace(IMAGES, labelled=labelled, layout="nhwc" if kind == "nhwc" else "nchw"))
    rows = np.arange(M) if labelled is None else UNLABELLED
    check(folder, rows, *direct_images(pool / 255, rows))
    assert (folder / "selected.png").exists()


@pytest.mark.parametrize("config", [FEATURES, IMAGES])
def test_blocks_batches_and_threads_change_nothing(config: SelectConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(config, labelled=Path("labelled.txt"), options=DM2Config.published(k=3, mix="random", lam="beta"))
    first = select_from_files(config)
    monkeypatch.setattr(pool_files, "_BLOCK_BYTES", 7 * D * 4)
    threads = torch.get_num_threads()
    for batch_size, n in ((None, 1), (20, 2)):
        other = select_from_files(replace(config, batch_size=batch_size, threads=n, output=Path(f"{batch_size}-{n}")))
        assert [line["row"] for line in table(other)] == [line["row"] for line in table(first)]
        assert [line["neighbours"] for line in table(other)] == [line["neighbours"] for line in table(first)]
        np.testing.assert_allclose(np.load(other / "scores.npy"), np.load(first / "scores.npy"), atol=1e-6)
    assert torch.get_num_threads() == threads


def test_a_row_s_draws_are_its_own_whatever_else_is_labelled() -> None:
    at_random = replace(FEATURES, strategy="random", options=None, seed=3, round=2)
    everything = select_from_files(replace(at_random, budget=M))
    part = select_from_files(replace(at_random, budget=40, labelled=Path("labelled.txt"), output=Path("b")))
    order = [int(line["row"]) for line in table(everything)]
    assert sorted(order) == list(range(M))
    assert [int(line["row"]) for line in table(part)] == [row for row in order if row not in LABELLED][:40]
    assert [line["neighbours"] for line in table(part)] == [""] * 40
    other = select_from_files(
        replace(FEATURES, strategy="random", options=None, budget=M, seed=3, round=1, output=Path("c"))
    )
    assert [int(line["row"]) for line in table(other)] != order


def test_a_strategy_sees_the_labelled_rows_and_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("labelled.csv").write_text("row,label\n" + "".join(f"{row},{row % C}\n" for row in LABELLED))
    seen: list[Any] = []

    def look(round: Any, budget: int, options: None) -> dm2_fast.Picked:
        seen.append((round.labelled_features.clone(), round.labels, round.features.clone(), round.ids))
        return dm2_fast.Picked(torch.arange(budget), None)

    monkeypatch.setattr("dm2_fast.strategies._STRATEGIES", {"entropy": Strategy("entropy", look)})
    folder = select_from_files(replace(FEATURES, strategy="entropy", options=None, labelled=Path("labelled.csv")))
    features = np.load("features.npy")
    labelled, labels, unlabelled, ids = seen[0]
    assert (labelled.numpy() == features[LABELLED]).all()
    assert labels.tolist() == [row % C for row in LABELLED]
    assert (unlabelled.numpy() == features[UNLABELLED]).all()
    assert (ids == UNLABELLED).all()
    assert [line["score"] for line in table(folder)] == [""] * 12
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "selected.csv"]


@pytest.mark.parametrize(
    "text",
    ["3\n88\n41\n0\n17\n", "row\n3\n88\n41\n0\n17", "order,row,score\n0,3,\n1,88,\n2,41,\n3,0,\n4,17,\n", None],
)
def test_labelled_rows_may_be_listed_in_many_ways(text: str | None) -> None:
    file = Path("list.npy" if text is None else "list.csv")
    if text is None:
        np.save(file, np.array(LABELLED, np.uint16))
    else:
        file.write_text(text)
    rows, labels = pool_files.read_labelled(file, M)
    assert rows.tolist() == LABELLED
    assert labels is None


@pytest.mark.parametrize(
    "text",
    [
        "3,1\r\n88,0\r\n41,2\r\n0,0\r\n17,1\r\n",
        "\ufeffrow, label\n3, 1\n88, 0\n\n41, 2\n0, 0\n17, 1\n",
        "label,seen by,row\n1,a,3\n0,b,88\n2,c,41\n0,d,0\n1,e,17",
    ],
)
def test_their_labels_come_with_them(text: str) -> None:
    Path("list.csv").write_text(text, encoding="utf-8")
    rows, labels = pool_files.read_labelled(Path("list.csv"), M)
    assert rows.tolist() == LABELLED
    assert labels is not None
    assert labels.tolist() == [1, 0, 2, 0, 1]


def test_its_own_config_file_repeats_a_selection() -> None:
    first = select_from_files(
        replace(FEATURES, labelled=Path("labelled.txt"), options=DM2Config.published(k=4, mix="random"))
    )
    assert yaml.safe_load((first / "config.yaml").read_text())["output"] is None
    main(["select", "--config", "out/config.yaml"])
    again = Path("selections/features-dm2-seed0-round0")
    for name in ("selected.csv", "scores.npy", "config.yaml"):
        assert (again / name).read_bytes() == (first / name).read_bytes()


def cell(picture: np.ndarray, i: int, j: int) -> int:
    """Grey value in the middle of image j of line i: 64 pixels an image, drawn twice as large below the heading."""
    value = picture[round(0.35 * 144) + 2 * (i * 82 + 18 + 32), 2 * (j * 70 + 3 + 32), :3]
    assert value.std() < 1e-6
    return round(255 * float(value[0]))


@pytest.mark.filterwarnings("ignore:.* others at distance 0")  # grey images, parallel features
@pytest.mark.parametrize("strategy", ["dm2", "entropy"])
def test_the_contact_sheet_shows_what_was_chosen_beside_mixture_and_neighbours(strategy: str) -> None:
    grey = np.random.default_rng(1).permutation(np.arange(20, 20 + 2 * M, 2)).astype(np.uint8)
    np.save("pool.npy", np.broadcast_to(grey[:, None, None, None], (M, 3, 4, 4)))
    options = IMAGES.options if strategy == "dm2" else None
    folder = select_from_files(replace(IMAGES, labelled=Path("labelled.txt"), strategy=strategy, options=options))
    picture = matplotlib.image.imread(folder / "selected.png")
    for i, line in enumerate(table(folder)):
        row, near = int(line["row"]), [int(n) for n in line["neighbours"].split()]
        if strategy == "entropy":
            assert cell(picture, i // 8, i % 8) == grey[row]
            continue
        mixed = 0.3 * grey[row] + 0.7 * grey[near].mean()
        assert cell(picture, i, 0) == grey[row]
        assert abs(cell(picture, i, 1) - mixed) <= 0.51
        assert [cell(picture, i, 2 + j) for j in range(3)] == grey[near].tolist()


@pytest.mark.filterwarnings("ignore:.* others at distance 0")  # grey images, parallel features
@pytest.mark.parametrize("kind", ["five channels", "beyond 1"])
def test_what_is_no_image_is_not_drawn(kind: str) -> None:
    pool = np.load("pool.npy").astype(np.float32)
    np.save("pool.npy", pool.reshape(M, 48) if kind == "five channels" else pool / 128)
    folder = select_from_files(replace(IMAGES, normalize=None))
    assert sorted(file.name for file in folder.iterdir()) == ["config.yaml", "scores.npy", "selected.csv"]


def damage(name: str, content: bytes) -> None:
    Path(name).write_bytes(content)


def nan_rows(name: str) -> None:
    x = np.load(name).astype(np.float32)
    x[[8, 50]] = np.nan
    x[60].flat[1] = np.inf
    np.save(name, x)


def head(**changes: Any) -> None:
    np.savez("head.npz", **(dict(np.load("head.npz")) | changes))


def state(**changes: Any) -> None:
    torch.save(torch.load("weights.pt", weights_only=True) | changes, "weights.pt")


POOL = ["--pool", "pool.npy", "--model", "their_models:build", "--budget", "5"]
HEAD = ["--features", "features.npy", "--head", "head.npz", "--budget", "5"]
ERRORS: list[tuple[list[str], Any, str]] = [
    ([], None, "give --pool with --model, or --features with --head"),
    ([*POOL, *HEAD], None, "give --pool with --model, or --features with --head"),
    (["--pool", "pool.npy"], None, "give --model for --pool, as package.module:function"),
    (["--pool", "pool.npy", "--model", "cnn"], None, "give --model for --pool, as package.module:function, got cnn"),
    ([*POOL, "--model", "nowhere:build"], None, "no module 'nowhere' for 'nowhere:build'"),
    (["--features", "features.npy"], None, "give --head, the .npz file of the linear head that reads --features"),
    ([*HEAD, "--weights", "weights.pt"], None, "leave out --weights: it belongs to --pool, not to --features"),
    ([*HEAD, "--normalize", "0/1"], None, "leave out --normalize: it belongs to --pool, not to --features"),
    ([*HEAD, "--budget", "0"], None, "budget must be at least 1, got 0"),
    ([*HEAD, "--budget", "91"], None, "budget 91 is more than the 90 rows without a label"),
    ([*HEAD, "--labelled", "labelled.txt", "--budget", "86"], None, "budget 86 is more than the 85 rows without"),
    ([*HEAD, "--dm2.offset", "86"], None, "offset must be at most 85 for budget 5 of 90 rows, got 86"),
    ([*HEAD, "--round", "-1"], None, "round must be at least 0, got -1"),
    ([*HEAD, "--strategy", "dm3"], None, "strategy must be one of random"),
    ([*HEAD, "--device", "abacus"], None, "device must be auto, cpu or a usable GPU, got 'abacus'"),
    ([*HEAD, "--output", "head.npz"], None, "head.npz is there already: name another --output"),
    (["--features", "no.npy", "--head", "head.npz"], None, "features: there is no file no.npy"),
    (["--features", "head.npz", "--head", "head.npz"], None, "must be a .npy file of one array, as numpy.save"),
    (HEAD, lambda: damage("features.npy", b"no array"), "features must be a .npy file of numbers, as numpy.sav"),
    (HEAD, lambda: os.truncate("features.npy", 600), "features must be a .npy file of numbers, as numpy.sav"),
    (HEAD, lambda: np.save("features.npy", np.array([[{}]])), "features must be a .npy file of numbers, as numpy.sav"),
    (HEAD, lambda: np.save("features.npy", np.ones((9, 6), int)), "features must be (m, d) floating point, got (9, 6)"),
    (HEAD, lambda: np.save("features.npy", np.ones(9)), "features must be (m, d) floating point, got (9,) float64"),
    (HEAD, lambda: np.save("features.npy", np.ones((9, 0))), "features must"),
    (HEAD, lambda: nan_rows("features.npy"), "must be finite, got NaN or infinity in rows 8, 50, 60"),
    ([*HEAD, "--labelled", "labelled.txt"], lambda: nan_rows("features.npy"),
     "features must be finite, got NaN or infinity in rows 8, 50, 60"),
    ([*HEAD, "--head", "no.npz"], None, "head: there is no file no.npz"),
    ([*HEAD, "--head", "pool.npy"], None, "head must be a .npz file of weight and bias"),
    (HEAD, lambda: damage("head.npz", b"PK no archive"), "head must be a .npz file of weight and bias, got head.npz"),
    (HEAD, lambda: os.truncate("head.npz", 100), "head must be a .npz file of weight and bias, got head.npz"),
    (HEAD, lambda: np.savez("head.npz", w=1), "head must hold weight and bias, or coef_ and intercept_, got w"),
    (HEAD, lambda: head(weight=np.ones((4, 7))), "weight of the head must be (C, 6) with at least two"),
    (HEAD, lambda: head(weight=np.ones((1, 6))), "must be (C, 6) with at least two classes, got shape (1, 6)"),
    (HEAD, lambda: head(bias=np.ones(3)), "bias of the head must be (4,), got shape (3,)"),
    (HEAD, lambda: head(bias=np.array([1, 2, np.nan, 4])), "bias of the head must be finite floating point"),
    (HEAD, lambda: head(bias=np.array([None] * 4)), "head must be a .npz file of weight and bias"),
    (POOL, lambda: np.save("pool.npy", np.ones((9, 3, 4, 4), np.int32)), "pool must be uint8 or floating"),
    (POOL, lambda: np.save("pool.npy", np.ones(9)), "pool must be (m, ...), got shape (9,)"),
    ([*POOL, "--layout", "nhwc"], lambda: np.save("pool.npy", np.ones((9, 48))), "pool must be (m, H, W, C) for"),
    (POOL, lambda: nan_rows("pool.npy"), "pool must be finite, got NaN or infinity in rows 8, 50, 60"),
    ([*POOL, "--normalize", "0.5"], None, "normalize must be mean/std, as in 0.5/0.25 or 0.49,0.48"),
    ([*POOL, "--normalize", "0.5/zero"], None, "normalize must be mean/std, as in 0.5/0.25 or 0.49,0.48"),
    ([*POOL, "--normalize", "1,2/1,1"], None, "normalize must give 1 or 3 values of mean, got 2"),
    ([*POOL, "--head", "tail"], None, "head must name a module of the model, got 'tail'"),
    ([*POOL, "--model", "their_models:function"], None, "must return a torch.nn.Module, got a builtin"),
    ([*POOL, "--model", "their_models:Pair"], None, "model must return a tensor of"),
    ([*POOL, "--model", "their_models:NoHead"], None, "model must have a linear layer"),
    ([*POOL, "--weights", "no.pt"], None, "weights: there is no file no.pt"),
    ([*POOL, "--weights", "weights.pt"], lambda: damage("weights.pt", b"junk"), "weights must be a state dict as"),
    ([*POOL, "--weights", "weights.pt"], lambda: torch.save(nn.Linear(2, 2), "weights.pt"),
     "weights.pt, which cannot be read without running code from it or is damaged"),
    ([*POOL, "--weights", "weights.pt"], lambda: torch.save({"model": {}, "epoch": 3}, "weights.pt"),
     "weights must be a state dict, tensors by name, got a dictionary of model, epoch in weights.pt"),
    ([*POOL, "--weights", "weights.pt"], lambda: state(tail=torch.ones(1)), "weights.pt unexpected: tail"),
    ([*POOL, "--weights", "weights.pt"], lambda: torch.save({"head.bias": torch.ones(3)}, "weights.pt"),
     "missing: body.weight, body.bias, head.weight; of another shape: head.bias ((3,), not (4,))"),
    ([*HEAD, "--labelled", "no.txt"], None, "labelled: there is no file no.txt"),
    ([*HEAD, "--labelled", "weights.pt"], None, "labelled must be a file of UTF-8 text or .npy, got weights.pt"),
    ([*HEAD, "--labelled", "pool.npy"], None, "labelled must be one row number after the other, got shape"),
]  # fmt: skip
LISTS = [
    ("7\n90\n", "labelled, line 2 of list.txt: row must be in [0, 89], got 90"),
    ("row\n7\n-1\n", "labelled, line 3 of list.txt: row must be an integer from 0 on, got '-1'"),
    ("7\nseven\n", "labelled, line 2 of list.txt: row must be an integer from 0 on, got 'seven'"),
    ("7\n2.0\n", "labelled, line 2 of list.txt: row must be an integer from 0 on, got '2.0'"),
    ("7\n1_0\n", "labelled, line 2 of list.txt: row must be an integer from 0 on, got '1_0'"),
    ("7\n\n8\n7\n", "labelled, line 4 of list.txt: row must be named once, got 7, which is in line 1 too"),
    ("7,1\n8\n", "labelled, line 2 of list.txt: must be row,label, got '8'"),
    ("7,1,2\n", "labelled, line 1 of list.txt: must be row,label, got '7,1,2'"),
    ("7,1\n8,cat\n", "labelled, line 2 of list.txt: label must be an integer from 0 on, got 'cat'"),
    ("7,1\n8,\n", "labelled, line 2 of list.txt: there is no label: fill it in, or leave the line out"),
]


@pytest.mark.parametrize(
    ("arguments", "break_it", "message"),
    ERRORS + [([*HEAD, "--labelled", "list.txt"], lambda t=t: Path("list.txt").write_text(t), m) for t, m in LISTS],
)
def test_a_mistake_gets_one_readable_line_and_leaves_nothing(
    arguments: list[str], break_it: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if break_it:
        break_it()
    before = sorted(Path().rglob("[!_]*.*"))
    with pytest.raises(SystemExit) as stop:
        main(["select", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("dm2-fast: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [file for file in sorted(Path().rglob("[!_]*.*")) if "__pycache__" not in file.parts] == before


def test_entries_of_a_npy_list_are_named_too() -> None:
    np.save("list.npy", np.array([4, 5, 4]))
    with pytest.raises(
        ValueError, match="labelled, entry 2 of list.npy: row must be named once, got 4.*in entry 0 too"
    ):
        pool_files.read_labelled(Path("list.npy"), M)


def test_a_selection_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    folder = select_from_files(FEATURES)
    before = (folder / "selected.csv").read_bytes()
    with pytest.raises(FileExistsError, match="out is there already: name another --output"):
        select_from_files(replace(FEATURES, seed=1, strategy="random", options=None))
    assert (folder / "selected.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("function", "cause", "message"),
    [
        (
            "Raising",
            ValueError,
            r"^the model of their_models:Raising raised ValueError on samples of shape \(3, 4, 4\)$",
        ),
        ("failing", KeyError, "^their_models:failing raised KeyError when called without arguments$"),
    ],
)
def test_an_error_of_the_user_s_model_stays_theirs(function: str, cause: type, message: str) -> None:
    with pytest.raises(RuntimeError, match=message) as caught:
        select_from_files(replace(IMAGES, model=f"their_models:{function}"))
    assert type(caught.value.__cause__) is cause
    assert not Path("out").exists()


def test_ctrl_c_ends_with_130_and_leaves_nothing() -> None:
    before = sorted(Path().iterdir())
    arguments = ["--pool", "pool.npy", "--model", "their_models:Interrupted", "--budget", "5", "--output", "out"]
    stopped = subprocess.run(
        [sys.executable, "-m", "dm2_fast", "select", *arguments], capture_output=True, text=True, check=False
    )
    assert stopped.returncode == 130
    assert stopped.stderr == "dm2-fast: interrupted\n"
    assert [file for file in sorted(Path().iterdir()) if file.name != "__pycache__"] == [
        file for file in before if file.name != "__pycache__"
    ]


def test_a_linear_model_takes_features_where_they_lie() -> None:
    head = nn.Linear(D, C)
    mapped = np.load("features.npy", mmap_mode="r")
    features, logits = ForwardPass(head, mapped).features_and_logits()
    assert features.data_ptr() == mapped.ctypes.data
    copied, same = ForwardPass(nn.Sequential(head), mapped).features_and_logits()
    assert copied.data_ptr() != mapped.ctypes.data
    assert torch.equal(copied, features)
    assert torch.equal(same, logits)
    assert torch.equal(
        dm2_fast.select(head, mapped, 9).indices, dm2_fast.select(nn.Sequential(head), mapped, 9).indices
    )
    for other in (ForwardPass(head, mapped, (0.0, 2.0)), ForwardPass(head, mapped.astype(np.float64))):
        assert other.features_and_logits()[0].dtype == torch.float32
    halved = ForwardPass(head, mapped, (0.0, 2.0)).features_and_logits()[0]
    assert torch.equal(halved, copied / 2)
    nan_rows("features.npy")
    with pytest.raises(ValueError, match="features of the model must be finite, got NaN or infinity in rows 8, 50, 60"):
        dm2_fast.select(head, np.load("features.npy", mmap_mode="r"), 5)


GROWTH = """
import sys, threading, numpy as np
from pathlib import Path
from dm2_fast.selecting.command import SelectConfig, select_from_files

def anonymous():  # memory that is no page of a file, in MB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1e3

def choose(features, output):
    select_from_files(SelectConfig(features=Path(features), head="wide.npz", labelled=Path("labelled.txt"),
                                   threads=2, output=Path(output)))

choose("small.npy", "first")
start, peak, done = anonymous(), [0.0], threading.Event()
def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())
watcher = threading.Thread(target=watch)
watcher.start()
choose("wide.npy", "second")
done.set()
watcher.join()
print(peak[0] - start)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_features() -> None:
    random = np.random.default_rng(0)
    m, d = 40000, 512
    rows = np.lib.format.open_memmap("wide.npy", "w+", np.float32, (m, d))
    basis = random.standard_normal((4, d)).astype(np.float32)
    for i in range(0, m, 1000):
        rows[i : i + 1000] = random.standard_normal((1000, 4)).astype(np.float32) @ basis
    np.save("small.npy", rows[:200])
    np.savez("wide.npz", weight=random.standard_normal((3, d)), bias=np.zeros(3))
    size = Path("wide.npy").stat().st_size / 1e6
    grown = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=False)
    assert grown.stderr == ""
    assert float(grown.stdout) < 0.75 * size  # a copy would be all of it


def test_the_page_s_commands_choose_from_the_example_s_files(capsys: pytest.CaptureFixture[str]) -> None:
    section = (ROOT / "docs/data.md").read_text().split("## The next samples from files")[1].split("\n## ")[0]
    example, *commands = [
        line.split()
        for line in section.splitlines()
        if re.match(r"(python examples/select_images|dm2-fast select)", line)
    ]
    assert len(commands) == 3
    Path("examples").mkdir()
    Path(example[1]).write_text((ROOT / example[1]).read_text())
    runpy.run_path(example[1], run_name="__main__")
    for command in commands:
        main(command[1:])
    out = capsys.readouterr().out
    assert "selections/images-dm2-seed0-round0: config.yaml, scores.npy, selected.csv, selected.png\n" in out
    assert "selections/features-dm2-seed0-round0: config.yaml, scores.npy, selected.csv\n" in out
    labelled = np.loadtxt("labelled.csv", int, delimiter=",", skiprows=1)[:, 0]
    for name in ("images", "features"):
        folder = Path(f"selections/{name}-dm2-seed0-round0")
        rows = [int(line["row"]) for line in table(folder)]
        assert len(rows) == 20
        assert not set(rows) & set(labelled.tolist())
        assert np.isnan(np.load(folder / "scores.npy")[labelled]).all()
