"""`dm2-fast select` in several processes, as shards, and after a kill: the files are those of one process."""

import contextlib
import io
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dm2_fast.cli import main
from dm2_fast.operations import approximate

PROCESSES = 2


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _write(tmp_path)
    monkeypatch.chdir(tmp_path)
    main(_command("one"))
    return tmp_path


def _write(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.normal(size=(1000, 20)).astype(np.float16))
    np.savez(folder / "head.npz", weight=rng.normal(size=(4, 20)).astype(np.float32), bias=np.zeros(4, np.float32))
    np.savetxt(folder / "labelled.txt", np.arange(0, 1000, 100), fmt="%d")


def _command(output: str, *more: str) -> list[str]:
    fixed = "select --features x.npy --head head.npz --labelled labelled.txt --budget 20 --batch-size 64 --threads 1"
    return [*fixed.split(), "--output", output, *more]


def _same(one: Path, other: Path) -> bool:
    names = sorted(file.name for file in one.iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def _process(rank: int, port: int, folder: Path, command: list[str], kill_at: int | None, pipe: Any) -> None:
    """What torchrun starts; rank 1 is killed when it tells the others something for the n-th time."""
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(PROCESSES), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    os.chdir(folder)
    approximate._LEAST_ROWS = 50  # where a recall is asked for
    told = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal told
            told += 1
            if rank == 1 and told == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in ("all_gather_object", "all_gather", "batch_isend_irecv"):
        setattr(dist, name, counting(getattr(dist, name)))
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            main(command)
        except SystemExit as error:
            code = int(error.code or 0)
    pipe.send((code, said.getvalue(), told))


def _run(folder: Path, command: list[str], kill_at: int | None = None) -> list[tuple[int, str, int] | None]:
    """(exit code, what it printed, how often it told the others something) of each process; None for a killed one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "dm2_fast", "dm2_fast.selecting.command"])
    pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES)]
    workers = [
        context.Process(target=_process, args=(rank, port, folder, command, kill_at, sender))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(200)
    return [receiver.recv() if receiver.poll() else None for receiver, _ in pipes]


def test_two_processes_write_what_one_writes(files: Path) -> None:
    first, second = _run(files, _command("two"))
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == 0
    assert "two: config.yaml, scores.npy, selected.csv" in first[1]
    assert second[1] == ""  # rank 0 alone speaks
    assert _same(files / "one", files / "two")
    assert not (files / "two.parts").exists()


def test_two_processes_approximate_what_one_does(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    recall = ("--dm2.recall", "0.5")
    main(_command("alone", *recall))
    first, second = _run(files, _command("two", *recall))
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == 0
    assert "approximate neighbours: recall" in first[1]
    assert _same(files / "alone", files / "two")


@pytest.mark.slow
def test_a_graph_that_was_finished_is_not_made_again(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    recall = ("--dm2.recall", "0.5")
    main(_command("alone", *recall))
    second = _run(files, _command("two", *recall))[1]
    assert second is not None
    survivor, killed = _run(files, _command("killed", *recall), second[2] - 4)
    assert killed is None
    assert survivor is not None
    assert survivor[0] == 2
    assert list(files.glob("killed.parts/*/neighbours-*.pt"))
    again = _run(files, _command("killed", *recall))[1]
    assert again is not None
    assert again[2] < second[2] - 20, "the graph is not made again"
    assert _same(files / "alone", files / "killed")


def test_two_processes_read_a_folder_of_images(files: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    (files / "photos").mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(files / "photos" / f"{i:02}.png")
    for i in (3, 40):
        (files / "photos" / f"{i:02}.png").write_bytes(b"no picture")
    (files / "photo_model.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 8), torch.nn.Linear(8, 3))\n"
    )
    fixed = "select --pool photos --model photo_model:build --size 16 --budget 5 --dm2.k 3 --threads 1 --batch-size 16"
    command = [*fixed.split(), "--skip-damaged", "--output"]
    main([*command, "alone"])
    first, second = _run(files, [*command, "two"])
    assert first is not None
    assert second is not None
    assert first[0] == second[0] == 0, first[1]
    assert second[1] == ""
    assert _same(files / "alone", files / "two")


def test_what_is_wrong_is_said_once(files: Path) -> None:
    found = _run(files, _command("two", "--strategy", "prob-cover"))
    assert [one[0] for one in found if one] == [2, 2]
    said = "".join(one[1] for one in found if one)
    assert said.count("dm2-fast: error") == 1
    assert "strategy prob-cover looks at all of the pool at once and needs one process" in said


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How often a process tells the others something."""
    folder = tmp_path_factory.mktemp("whole")
    _write(folder)
    second = _run(folder, _command("whole"))[1]
    assert second is not None
    assert second[2] > 10
    return second[2]


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_a_process_that_is_killed_ends_all_and_the_same_command_goes_on(files: Path, moments: int, tenth: int) -> None:
    survivor, killed = _run(files, _command("killed"), 1 + (moments - 1) * tenth // 9)
    assert killed is None
    if not (files / "killed").exists():  # the last word may come after all is written
        assert survivor is not None
        assert survivor[0] == 2
        assert survivor[1].count("dm2-fast: error: another process has ended; the same command goes on") == 1
        assert "Traceback" not in survivor[1]
        finished = list(files.glob("killed.parts/*/*.pt"))
        assert tenth < 5 or finished
        assert [one[0] for one in _run(files, _command("killed")) if one] == [0, 0]
    assert _same(files / "one", files / "killed")
    assert not list(files.glob(".killed*")), "nothing is left behind"


@pytest.mark.parametrize("strategy", ["dm2", "badge", "entropy", "dm2 --dm2.recall 0.5"])
def test_shards_make_what_one_process_makes(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    monkeypatch.setattr(approximate, "_LEAST_ROWS", 50)
    more = ("--strategy", *strategy.split())
    strategy = strategy.replace(" ", "")
    main(_command(f"whole-{strategy}", *more))
    output = f"shards-{strategy}"
    main(_command(output, *more, "--shard", "1/3"))
    main(_command(output, *more, "--shard", "3/3"))
    with pytest.raises(SystemExit):
        main(["merge", f"{output}.parts"])
    assert "run the command with --shard 2/3" in capsys.readouterr().err
    main(_command(output, *more, "--shard", "2/3"))
    main(_command(output, *more, "--shard", "1/3"))  # goes on with the neighbours of its rows
    main(["merge", f"{output}.parts", "--output", f"merged-{strategy}"])
    assert _same(files / f"whole-{strategy}", files / f"merged-{strategy}")
    assert not (files / f"{output}.parts").exists()


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b"])
def test_a_shard_is_one_of_so_many(files: Path, capsys: pytest.CaptureFixture[str], shard: str) -> None:
    with pytest.raises(SystemExit):
        main(_command("two", "--shard", shard))
    assert "shard must be i/N with i from 1 to N, as in 2/4" in capsys.readouterr().err
