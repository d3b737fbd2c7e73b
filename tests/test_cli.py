import re
import subprocess
import sys
from pathlib import Path

import pytest

import dm2_fast
from dm2_fast import cli, strategies
from dm2_fast.cli import main
from dm2_fast.options import parser
from dm2_fast.paper.sweep import SweepConfig

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
        (["run", "--lr", "1"], "unrecognized arguments: --lr 1 (did you mean --training.lr?"),
        (["run", "--stratgy", "dm2"], "(did you mean --strategy?"),
        (["run", "--strategie", "dm2"], "unrecognized arguments: --strategie dm2 (did you mean --strategies?"),
        (["run", "--adversarial.train", "rond"], "or null, got rond (did you mean round? see dm2-fast run --help)"),
        (["run", "--model", "resnt18"], "got 'resnt18' (did you mean resnet18?)"),
        (["run", "--seeds", "4-1"], "--seeds must be whole numbers, as in 0,1,2 or 0-4, got 4-1"),
        (["bench"], "give STUDY (see"),
        (["bench", "figur1"], "got figur1 (did you mean figure1? see dm2-fast bench --help)"),
        (["run", "--adversarial.epsilon", "300/255"], "epsilon must be in [0, 1] or 'search', got 1.17"),
        (["run", "--adversarial.epsilon", "x/255"], "--adversarial.epsilon must be a number or search, got x/255"),
        (["run", "--adversarial.epsilon", "1/0"], "--adversarial.epsilon must be a number or search, got 1/0"),
        (
            ["run", "--dataset", "svhm"],
            "cifar10c, svhnc or a file.npz, got 'svhm' (did you mean svhn?)",
        ),
        (["run", "--dataset", "nowhere.npz"], "dataset file not found: "),
        (["run", "--model", "nowhere:make"], "no module 'nowhere' for 'nowhere:make'"),
        (["run", "--strategy", "json:nothing"], "module json has no function 'nothing'"),
        (["run", "--seeds", "0,x"], "--seeds must be whole numbers, as in 0,1,2 or 0-4, got 0,x"),
        (["run", "--seeds", "1,1"], "seeds must be distinct and at least one, got 1, 1"),
        (["run", "--seeds", "0,1", "--seed", "2"], "use --seed or --seeds, not both"),
        (["run", "--strategy=dm2", "--strategies", "random"], "use --strategy or --strategies, not both"),
        (["run", "--strategies", "random,dm3"], "strategy must be one of random"),
        (["report"], "give FOLDER (see"),
        (["report", "nowhere"], "none of these folders holds a run with a training: nowhere"),
        (["run", "--training.batch-size", "many"], "--training.batch-size must be an integer or null, got many"),
        (["run", "--dm2.metric", "l3"], "--dm2.metric must be one of literal, rms, l1, l2, got l3"),
        (["run", "--dm2.lam", "high"], "--dm2.lam must be a number or beta, got high"),
        (["run", "--dm2.lam", "2"], "lam must be in [0, 1] or 'beta', got 2.0"),
        (["run", "--strategy", "dm3"], "or module:function, got 'dm3' (did you mean dm2?)"),
        (["run", "--strategy", "dm2", "--bald.passes", "3"], "--bald.passes is an option of another strategy than dm2"),
        (["run", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "--dataset", "mnist", "--data-dir", "nowhere"], "nowhere/MNIST/raw"),
        (["fly"], "no command 'fly': there are run, select, merge, bench, report, info"),
        (["merge", "nowhere"], "nowhere is no folder of shards: name the one that dm2-fast select --shard wrote"),
        (["rum"], "no command 'rum': did you mean run?"),
        ([], "give a command: run, select, merge, bench, report, info"),
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

    monkeypatch.setattr("dm2_fast.commands.run", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["run"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "dm2-fast: interrupted; the same command goes on where it stopped\n"


def helped(capsys: pytest.CaptureFixture[str], command: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_option_with_its_choices_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(helped(capsys, "run").split())
    for part in (
        "--data-dir PATH", "--download", "--seeds N,N,...", "--dataset NAME|FILE.npz",
        "--strategy NAME|MODULE:FUNCTION", "Names: random, least-confidence, entropy, margin, bald,",
        "Names: digits, mnist, fashion-mnist, cifar10, cifar100, svhn, cifar10s,",
        "--noise-stability.noise {module,global}", "--entropy-bayesian.reading {predictive,expected}",
        "--prob-cover.radius X|{purity}", "--dm2.metric {literal,rms,l1,l2}", "--adversarial.epsilon X|{search}",
        "--training.weight-decay X", "the clean one. (default: 4/255)",
        "Labels per round. (default: 20; 1000 for cifar10; 2500 for cifar100; 3663 for svhn)",
        "Passes over the labelled set. (default: 50; 200 for cifar10 and cifar100 and svhn)",
        "(default: cnn; mobilenet for cifar10 and cifar100 and svhn)",
    ):  # fmt: skip
        assert part in text
    assert "type:" not in text
    assert "default: null" not in text
    assert "default: None" not in text


@pytest.mark.parametrize("command", ["run", "select", "bench", "report", "info"])
@pytest.mark.parametrize("columns", [40, 200])
def test_help_fits_a_narrow_terminal_and_stays_readable_on_a_wide_one(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for line in helped(capsys, command).splitlines():
        option = line.strip().startswith(("-", "usage:"))  # which is one word that cannot be broken
        assert len(line) <= min(columns, 100) or (option and columns == 40), line


def test_all_options_can_be_printed_as_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["run", *QUICK, "--rounds", "0", "--dm2.k", "3", "--print-config"])
    assert stop.value.code == 0
    file = tmp_path / "config.yaml"
    file.write_text(capsys.readouterr().out)
    main(["run", "--config", str(file), "--output", str(tmp_path / "run")])
    assert "  k: 3\n" in (tmp_path / "run" / "config.yaml").read_text()
    assert helped(capsys, "run").count("--print-config") == 1


def test_a_fraction_is_a_number(tmp_path: Path) -> None:
    main(["run", *QUICK, "--rounds", "0", "--eval-epsilon", "8/255", "--output", str(tmp_path / "run")])
    assert f"eval_epsilon: {8 / 255}" in (tmp_path / "run" / "config.yaml").read_text()


def test_all_strategies_and_a_range_of_seeds_can_be_named_in_a_word() -> None:
    values = parser("run", "", [SweepConfig], {}).parse_args(["--strategies", "all", "--seeds", "0-2,7"])
    assert values.strategies == list(strategies.names())
    assert values.seeds == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("arguments", "said"), [(["--help"], "usage: dm2-fast COMMAND"), (["--version"], "dm2-fast 0")]
)
def test_help_and_version_are_there_before_torch_is_loaded(arguments: list[str], said: str) -> None:
    command = f"import sys; from dm2_fast.cli import main; main({arguments}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)


def test_every_remedy_that_a_command_says_otherwise_is_one_that_a_message_has() -> None:
    package = Path(dm2_fast.__file__).parent
    source = "".join(file.read_text() for file in package.rglob("*.py") if file.name != "cli.py")
    joined = re.sub(r'"\s*\n\s*f?"', "", source)  # sentences that go on in the next line
    assert not [remedy for remedy in cli._AS_OPTIONS if remedy not in joined]
