import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import interrupted
import pytest
import torch

import dm2_fast
from dm2_fast.experiment import loop, state, training, twins
from dm2_fast.experiment.config import resolve
from dm2_fast.experiment.folder import checkpoint
from dm2_fast.experiment.folder.run_folder import RunFolder

CONFIG, contents = interrupted.CONFIG, interrupted.contents


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("reference") / "run"
    dm2_fast.run(replace(CONFIG, output=folder))
    return contents(folder)


def run_until(line: str, output: Path) -> None:
    """Run until a line of the report begins with this word, and stop there as Ctrl-C does."""

    def echo(text: str) -> None:
        if text.split()[0] == line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dm2_fast.run(replace(CONFIG, output=output), echo=echo)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_or_out_of_space_a_run_ends_with_the_same_files(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    script = Path(interrupted.__file__)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("refused: [Errno 27] File too large") == len(interrupted.SIZES)
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    assert len(folders) == 1 + interrupted.MOMENTS + len(interrupted.SIZES)
    for folder in folders:
        assert contents(folder) == reference, folder.name


def test_a_finished_run_is_returned_at_once(
    tmp_path: Path, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, output=tmp_path / "run")
    lines: list[list[str]] = [[], []]
    first = dm2_fast.run(config, echo=lines[0].append)
    monkeypatch.setattr(training, "fgsm", None)
    monkeypatch.setattr(loop, "train_round", None)
    again = dm2_fast.run(replace(config, threads=2, data_dir=Path("elsewhere")), echo=lines[1].append)
    assert lines[0] == lines[1]
    assert again.rounds == first.rounds
    assert [rows.tolist() for rows in again.chosen] == [rows.tolist() for rows in first.chosen]
    assert again.model is not None
    assert first.model is not None
    for name, weight in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight)
    assert contents(config.output or tmp_path) == reference


def test_two_states_are_kept(tmp_path: Path) -> None:
    run_until("2", tmp_path)
    assert [file.name for file in sorted((tmp_path / "checkpoints").glob("after_*"))] == [
        "after_002.pt",
        "after_003.pt",
    ]


@pytest.mark.parametrize("removed", [0, 1])
def test_a_run_that_was_killed_while_it_cleared_up_leaves_nothing_more(
    removed: int, tmp_path: Path, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, output=tmp_path / "run")

    class Killed(BaseException):
        """Ends the process, as far as the run can tell."""

    def kill(_: object, of: state.State | None = None) -> None:
        if of is None or of.finished:
            raise Killed

    where: tuple[object, str] = (state, "remove_older") if removed == 0 else (checkpoint.TrainingFile, "remove")
    with monkeypatch.context() as patch:
        run_until("1", config.output)
        patch.setattr(*where, kill)
        with pytest.raises(Killed):
            dm2_fast.run(config)
    assert contents(config.output) != reference
    dm2_fast.run(config)
    assert contents(config.output) == reference


def damage(file: Path, kept: float) -> None:
    content = file.read_bytes()
    if kept == 1:  # nothing is cut off; one bit is another
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes(content[: int(len(content) * kept)])


@pytest.mark.parametrize("kept", [0, 0.0001, 0.01, 0.5, 0.9999, 1])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    kept: float, tmp_path: Path, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until("1", tmp_path)
    newest = tmp_path / "checkpoints" / "after_002.pt"
    damage(newest, kept)
    (tmp_path / "checkpoints" / "training.pt").unlink()
    trained = []
    whole = twins.train_round
    monkeypatch.setattr(loop, "train_round", lambda *a: trained.append(a[6]) or whole(*a))
    with pytest.warns(UserWarning, match=rf"{newest} is damaged; going on from what was saved before it"):
        dm2_fast.run(replace(CONFIG, output=tmp_path))
    assert trained == [1, 2]
    assert contents(tmp_path) == reference


@pytest.mark.parametrize("kept", [0, 0.3, 0.999, 1])
def test_a_damaged_training_is_begun_again(kept: float, tmp_path: Path, reference: dict[str, Any]) -> None:
    run_until("1", tmp_path)
    damage(tmp_path / "checkpoints" / "training.pt", kept)
    with pytest.warns(UserWarning, match=r"training.pt is damaged"):
        dm2_fast.run(replace(CONFIG, output=tmp_path))
    assert contents(tmp_path) == reference


def test_without_any_whole_checkpoint_a_run_begins_again(tmp_path: Path, reference: dict[str, Any]) -> None:
    run_until("1", tmp_path)
    for file in (tmp_path / "checkpoints").iterdir():
        damage(file, 0.5)
    with pytest.warns(UserWarning, match="is damaged") as warned:
        dm2_fast.run(replace(CONFIG, output=tmp_path))
    assert {Path(str(w.message).split()[0]).name for w in warned} >= {"after_001.pt", "after_002.pt", "training.pt"}
    assert contents(tmp_path) == reference


@pytest.mark.parametrize("kept", [0, 0.5, None])
def test_without_its_weights_a_finished_run_repeats_the_last_training(
    kept: float | None, tmp_path: Path, reference: dict[str, Any]
) -> None:
    dm2_fast.run(replace(CONFIG, output=tmp_path))
    if kept is None:
        (tmp_path / "model.pt").unlink()
    else:
        damage(tmp_path / "model.pt", kept)
    with pytest.warns(UserWarning, match=r"model.pt is damaged or missing; the last training is repeated"):
        dm2_fast.run(replace(CONFIG, output=tmp_path))
    assert contents(tmp_path) == reference


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    checkpoint.write(tmp_path / "a.pt", {"x": 1})
    assert checkpoint.read(tmp_path / "a.pt") == {"x": 1}
    monkeypatch.setattr(checkpoint, "VERSION", 1)
    with pytest.raises(ValueError, match=r"a.pt was written by a newer dm2_fast, in version 2 of the format"):
        checkpoint.read(tmp_path / "a.pt")


class Intruder:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (os.mkdir, ("intruded",))


def test_reading_a_checkpoint_executes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.write(tmp_path / "a.pt", {"x": Intruder()})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.read(tmp_path / "a.pt")
    assert not (tmp_path / "intruded").exists()
    payload = (tmp_path / "a.pt").read_bytes().partition(b"\n")[2]
    torch.load(io.BytesIO(payload), weights_only=False)
    assert (tmp_path / "intruded").exists()


def test_two_runs_in_one_folder_are_one_too_many(tmp_path: Path) -> None:
    config = replace(CONFIG, output=tmp_path / "run", rounds=0)
    with (
        RunFolder.open(resolve(config)),
        pytest.raises(FileExistsError, match=r"another process is using .*run"),
    ):
        dm2_fast.run(config)
    dm2_fast.run(config)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_goes_on_in_its_middle(optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, rounds=0, training=replace(CONFIG.training, epochs=6, optimizer=optimizer))
    whole = dm2_fast.run(replace(config, output=tmp_path / "whole"))
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN_WRITES", 0.0)
    shuffles = []
    batches = training._batches

    def counted(*arguments: Any) -> Any:
        shuffles.append(1)
        if len(shuffles) == 5:
            raise Stopped
        return batches(*arguments)

    monkeypatch.setattr(training, "_batches", counted)
    with pytest.raises(Stopped):
        dm2_fast.run(replace(config, output=tmp_path / "stopped"))
    result = dm2_fast.run(replace(config, output=tmp_path / "stopped"))
    assert len(shuffles) == 5 + 2  # four epochs were kept
    assert result.rounds[0].evaluation == whole.rounds[0].evaluation
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


# `dm2-fast` to which Ctrl-C comes when it has written the second checkpoint, wherever the clock stands.
STOPPED = """
import signal, sys
from dm2_fast import cli
from dm2_fast.experiment.folder import checkpoint

write = checkpoint.write

def write_and_stop(path, content):
    write(path, content)
    if path.name == "after_001.pt":
        signal.raise_signal(signal.SIGINT)

checkpoint.write = write_and_stop
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path: Path, reference: dict[str, Any]) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "config.yaml").open("wb") as file:
        file.write(reference["config.yaml"])
    command = ["run", "--config", "config.yaml", "--output", "run"]
    stopped = subprocess.run([sys.executable, "-c", STOPPED, *command], cwd=tmp_path, capture_output=True, text=True)
    assert stopped.stderr.splitlines()[-1].startswith("dm2-fast: interrupted")
    assert stopped.returncode == 130
    assert not (tmp_path / "run" / "model.pt").exists()
    subprocess.run([sys.executable, "-m", "dm2_fast", *command], cwd=tmp_path, check=True, capture_output=True)
    assert contents(tmp_path / "run") == reference


def test_a_folder_that_cannot_be_made_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    from dm2_fast.cli import main

    with pytest.raises(SystemExit) as stop:
        main(["run", "--rounds", "0", "--output", "/proc/run"])
    assert stop.value.code == 2
    assert "/proc/run" in capsys.readouterr().err
