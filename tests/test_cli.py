from pathlib import Path

import pytest

from dm2_fast.cli import main

QUICK = ["--initial", "12", "--budget", "5", "--rounds", "1", "--pool", "60", "--test", "40", "--training.epochs", "2"]


def test_run_prints_each_round_and_where_the_files_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["run", *QUICK, "--strategy", "entropy"])
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("entropy on digits with cnn, seed 0")
    assert out[1].split() == ["round", "labelled", "accuracy", "under", "FGSM", "loss", "seconds"]
    assert [line.split()[:2] for line in out[2:4]] == [["0", "12"], ["1", "17"]]
    folder = next((tmp_path / "runs").iterdir())
    assert folder.name.startswith("digits-cnn-entropy-seed0-")
    assert out[-1].startswith(f"runs/{folder.name}: curve.png")


def test_a_config_file_is_overridden_by_options_after_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("strategy: dm2\nbudget: 3\ndm2:\n  k: 4\n")
    main(["run", "--config", str(file), *QUICK, "--rounds", "0", "--output", str(tmp_path / "run")])
    assert "dm2 on digits" in capsys.readouterr().out
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "budget: 5\n" in text
    assert "k: 4\n" in text


def test_a_run_s_own_config_with_another_seed_makes_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["run", *QUICK, "--rounds", "0"])
    (first,) = Path("runs").iterdir()
    main(["run", "--config", str(first / "config.yaml"), "--seed", "1"])
    assert len(list(Path("runs").iterdir())) == 2
    before = (first / "selected.csv").read_text()
    main(["run", "--config", str(first / "config.yaml")])
    assert len(list(Path("runs").iterdir())) == 2
    assert (first / "selected.csv").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--nothing", "3"], "unrecognized arguments: --nothing 3"),
        (
            ["run", "--dataset", "svhm"],
            "dataset must be one of digits, mnist, fashion-mnist, cifar10, svhn or a file.npz, got 'svhm'",
        ),
        (["run", "--dataset", "nowhere.npz"], "dataset file not found: "),
        (["run", "--model", "nowhere:make"], "no module 'nowhere' for 'nowhere:make'"),
        (["run", "--strategy", "json:nothing"], "module json has no function 'nothing'"),
        (["run", "--seeds", "0,x"], "--seeds must be whole numbers, as in 0,1,2 or 0-4, got 0,x"),
        (["run", "--seeds", "1,1"], "seeds must be distinct and at least one, got 1, 1"),
        (["run", "--seeds", "0,1", "--seed", "2"], "use --seed or --seeds, not both"),
        (["run", "--strategy=dm2", "--strategies", "random"], "use --strategy or --strategies, not both"),
        (["run", "--strategies", "random,dm3"], "strategy must be one of random"),
        (["report"], "folders"),
        (["report", "nowhere"], "none of these folders holds a run with a training: nowhere"),
        (["run", "--training.batch-size", "many"], "--training.batch-size must be an integer or null, got many"),
        (["run", "--dm2.metric", "l3"], "--dm2.metric must be one of literal, rms, l1, l2, got l3"),
        (["run", "--dm2.lam", "high"], "--dm2.lam must be a number or one of beta, got high"),
        (["run", "--dm2.lam", "2"], "lam must be in [0, 1] or 'beta', got 2.0"),
        (["run", "--strategy", "dm3"], "strategy must be one of random"),
        (["run", "--strategy", "dm2", "--bald.passes", "3"], "--bald.passes is an option of another strategy than dm2"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere/MNIST/raw"),
        (["fly"], "'fly'"),
        ([], "subcommand"),
    ],
)
def test_a_mistake_gets_one_readable_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("dm2-fast: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_ctrl_c_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dm2_fast.cli.run", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["run"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "dm2-fast: interrupted; the same command goes on where it stopped\n"


def test_help_names_every_option_with_its_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--data-dir PATH", "--download", "--strategy {random,least-confidence,entropy,margin,bald,",
        "--noise-stability.noise {module,global}", "--entropy-bayesian.reading {predictive,expected}",
        "--dataset {digits,mnist,fashion-mnist,cifar10,svhn}|FILE.npz", "--seeds N,N,...",
        "--prob-cover.radius X|{purity}",
        "--dm2.metric {literal,rms,l1,l2}", "--adversarial.epsilon X|{search}", "--training.weight-decay X",
    ):  # fmt: skip
        assert part in text
    assert "type:" not in text
