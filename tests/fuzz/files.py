"""Files damaged at random bytes, in process, for every command: it goes on, or says in one line which file it is."""

import contextlib
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from fuzz.calls import INTERNAL
from PIL import Image
from torch import nn

from dm2_fast import cli
from dm2_fast.experiment.folder import checkpoint

RUN = [
    *("--initial=12", "--budget=5", "--rounds=1", "--pool=40", "--test=20", "--dm2.k=3", "--training.epochs=1"),
    "--threads=1",
]
BENCH = [
    *("bench", "table4", "--dataset=digits", "--methods=random", "--pool=60", "--labelled=20", "--epochs=1"),
    *("--budgets=5", "--classes=3", "--repeats=1", "--threads=1"),
]


def network(*args: object, **more: object) -> nn.Module:
    """The model of a user."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))


@cache
def whole() -> Path:
    """A folder of undamaged files, made once."""
    folder = Path(tempfile.mkdtemp(prefix="dm2-fast-files-"))
    rng = np.random.default_rng(0)
    np.save(folder / "pool.npy", rng.integers(0, 256, (30, 3, 4, 4), np.uint8))
    np.save(folder / "features.npy", rng.standard_normal((30, 7), np.float32))
    np.savez(folder / "head.npz", weight=rng.standard_normal((3, 7)), bias=np.zeros(3))
    torch.save(network().state_dict(), folder / "weights.pt")
    (folder / "labelled.csv").write_text("row,label\n" + "".join(f"{i},{i % 3}\n" for i in range(8)))
    (folder / "options.yaml").write_text("budget: 3\nseed: 1\ndm2:\n  k: 2\n  lam: 0.25\n")
    images, classes = rng.integers(0, 256, (60, 5, 5), np.uint8), np.arange(60) % 3
    np.savez(folder / "data.npz", x=images, y=classes, x_test=images[:30], y_test=classes[:30])
    (folder / "images").mkdir()
    for i in range(12):
        Image.fromarray(images[i]).save(folder / "images" / f"{i}.{('png', 'jpg', 'gif')[i % 3]}")
    quietly([*BENCH, "--output", str(folder / "table")])
    for seed in (0, 1):
        quietly(["run", *RUN, "--seed", str(seed), "--output", str(folder / f"run{seed}")])
    quietly(["run", *RUN, "--oracle", "file", "--output", str(folder / "asked")])
    return folder


def quietly(arguments: list[str]) -> tuple[int, str]:
    """The exit status of a command, and what it wrote to standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        try:
            cli.main(arguments)
        except SystemExit as end:
            return int(end.code or 0), errors.getvalue()
    return 0, errors.getvalue()


# The file that is damaged, and the command that reads it in a copy of the folder.
MODEL = ("--model", "fuzz.files:network")
COMMANDS: list[tuple[str, Callable[[Path], list[str]]]] = [
    ("pool.npy", lambda f: select(f, "--pool", f / "pool.npy", *MODEL)),
    ("weights.pt", lambda f: select(f, "--pool", f / "pool.npy", *MODEL, "--weights", f / "weights.pt")),
    ("features.npy", lambda f: select(f, "--features", f / "features.npy", "--head", f / "head.npz")),
    ("head.npz", lambda f: select(f, "--features", f / "features.npy", "--head", f / "head.npz")),
    ("labelled.csv", lambda f: select(f, "--features", f / "features.npy", "--head", f / "head.npz")),
    (
        "options.yaml",
        lambda f: [
            *("select", "--config", str(f / "options.yaml"), "--features", str(f / "features.npy")),
            *("--head", str(f / "head.npz"), "--output", str(f / "selected")),
        ],
    ),
    ("run0/config.yaml", lambda f: ["report", str(f / "run0"), str(f / "run1"), "--output", str(f / "report")]),
    ("run0/rounds.csv", lambda f: ["report", str(f / "run0"), str(f / "run1"), "--output", str(f / "report")]),
    ("run0/config.yaml", lambda f: ["run", *RUN, "--output", str(f / "run0")]),
    ("run0/model.pt", lambda f: ["run", *RUN, "--output", str(f / "run0")]),
    ("run0/checkpoints/*", lambda f: ["run", *RUN, "--output", str(f / "run0")]),
    ("asked/to_label.csv", lambda f: ["run", *RUN, "--oracle", "file", "--output", str(f / "asked")]),
    ("asked/config.yaml", lambda f: ["run", *RUN, "--oracle", "file", "--output", str(f / "asked")]),
    ("images/*", lambda f: select(f, "--pool", f / "images", "--size", 4, *MODEL, labelled="row\n0\n3\n")),
    ("table/settings.yaml", lambda f: [*BENCH, "--output", str(f / "table")]),
    ("table/timings.csv", lambda f: [*BENCH, "--output", str(f / "table")]),
    ("data.npz", lambda f: ["run", *RUN, "--dataset", str(f / "data.npz"), "--output", str(f / "new")]),
]  # fmt: skip


def select(folder: Path, *options: object, labelled: str | None = None) -> list[str]:
    if labelled is not None:
        (folder / "labelled.csv").write_text(labelled)
    given = ("--budget", 3, "--labelled", folder / "labelled.csv", "--output", folder / "selected", "--threads", 1)
    return ["select", *map(str, (*options, *given))]


def damage(file: Path, rng: np.random.Generator) -> str:
    """Change a file in one of several ways, and say which."""
    content = bytearray(file.read_bytes())
    how = rng.integers(6)
    if how == 0:
        for at in rng.integers(0, len(content), rng.integers(1, 5)) if content else ():
            content[at] = rng.integers(256)
    elif how == 1:
        del content[rng.integers(0, len(content) + 1) :]
    elif how == 2:
        at = rng.integers(0, len(content) + 1)
        content[at:at] = rng.bytes(rng.integers(1, 20))
    elif how == 3:
        start = rng.integers(0, len(content) + 1)
        del content[start : start + rng.integers(1, 30)]
    elif how == 4:
        content = bytearray(rng.bytes(rng.integers(0, 200)))
    else:
        file.unlink()
        if rng.random() < 0.5:
            file.symlink_to(file.parent / "gone")
        return "removed or dangling"
    file.write_bytes(content)
    return f"way {how}"


def case(seed: int) -> None:
    checkpoint.SECONDS_BETWEEN_WRITES = 0.0
    rng = np.random.default_rng([seed, 3])
    pattern, command = COMMANDS[rng.integers(len(COMMANDS))]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        shutil.copytree(whole(), folder)
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        file = files[rng.integers(len(files))]
        how = damage(file, rng)
        status, errors = quietly(command(folder))
        what = f"{' '.join(command(folder)[:1])} with {file.relative_to(folder)} damaged ({how})"
        assert status in (0, 2), f"{what} exits with {status}"
        lines = [line for line in errors.splitlines() if not line.startswith("dm2-fast: warning: ") and line.strip()]
        if status == 2:
            assert len(lines) == 1, f"{what} says {lines}"
            assert lines[0].startswith("dm2-fast: error: "), f"{what} says {lines[0]}"
            assert not INTERNAL.search(lines[0]), f"{what} says {lines[0]}"
            assert len(lines[0]) < 300 + 2 * len(str(folder)), f"{what} says {lines[0]}"
        left = [path for path in folder.rglob(".*") if path.name.startswith(".") and path.name != ".gitignore"]
        assert not left, f"{what} leaves {left}"
