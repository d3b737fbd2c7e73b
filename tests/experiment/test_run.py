import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml

import dm2_fast
from dm2_fast import DM2Config, RunConfig, draws, fgsm, strategies
from dm2_fast.experiment import AdversarialConfig, TrainingConfig, twins
from dm2_fast.experiment.config import RECIPES, fingerprint, resolve
from dm2_fast.experiment.data import sets
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.loop import shuffled
from dm2_fast.experiment.training import Evaluation, train

QUICK = RunConfig(initial=12, budget=6, rounds=2, pool=120, test=80, training=TrainingConfig(epochs=4))

WITHOUT_SCORES = (
    "coreset",
    "core-gcn",
    "badge",
    "prob-cover",
    "alpha-mix",
    "noise-stability",
    "batchbald",
    "cluster-margin",
)


def table(file: Path) -> list[dict[str, str]]:
    with file.open() as lines:
        return list(csv.DictReader(lines))


def without_seconds(file: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in table(file)]


RELATED = ("batchbald", "ent-gn", "exp-gn", "qbc", "cluster-margin", "isal", "ll4al", "vaal")  # each takes seconds


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=[pytest.mark.slow] if name in RELATED else []) for name in strategies.names()],
)
def test_a_run_labels_trains_and_leaves_its_files(strategy: str, tmp_path: Path) -> None:
    lines: list[str] = []
    result = dm2_fast.run(replace(QUICK, strategy=strategy, output=tmp_path / "run"), echo=lines.append)
    assert sorted(file.name for file in result.folder.iterdir()) == [
        "checkpoints", "config.yaml", "curve.png", "model.pt", "round_01.png", "round_02.png", "rounds.csv",
        "selected.csv",
    ]  # fmt: skip

    rounds = table(result.folder / "rounds.csv")
    assert [(line["round"], line["labelled"]) for line in rounds] == [("0", "12"), ("1", "18"), ("2", "24")]
    for line, entry in zip(rounds, result.rounds, strict=True):
        assert float(line["accuracy"]) == pytest.approx(entry.evaluation.accuracy, abs=1e-6)
        assert float(line["accuracy_fgsm"]) == pytest.approx(entry.evaluation.accuracy_fgsm, abs=1e-6)
        assert float(line["loss"]) == pytest.approx(entry.evaluation.loss, abs=1e-6)
        assert float(line["seconds_train"]) > 0
    selecting = {
        "random": "train", "least-confidence": "logits", "entropy": "logits", "margin": "logits", "bald": "dropout",
        "entropy-bayesian": "dropout", "noise-stability": "noise", "ent-gn": "entropy_slope", "exp-gn": "label_slopes",
        "qbc": "sampled", "batchbald": "sampled", "isal": "influence", "ll4al": "blocks", "vaal": "codes",
    }.get(strategy, "features")  # fmt: skip
    assert [bool(line[f"seconds_{selecting}"]) for line in rounds[:2]] == [True, True]
    assert [line["epsilon"] for line in rounds] == (["", "0.015686", "0.015686"] if strategy == "dm2-at" else [""] * 3)

    data = load("digits")
    selected = table(result.folder / "selected.csv")
    rows = [int(line["row"]) for line in selected]
    assert len(set(rows)) == len(rows) == 24
    assert [int(line["label"]) for line in selected] == data.y[rows].tolist()
    assert [line["round"] for line in selected] == ["0"] * 12 + ["1"] * 6 + ["2"] * 6
    assert [line["order"] for line in selected] == [str(i) for n in (12, 6, 6) for i in range(n)]
    scores = [float(line["score"]) for line in selected[12:18] if line["score"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == (0 if strategy in WITHOUT_SCORES else 6)
    assert torch.equal(torch.cat(result.chosen), torch.tensor(rows))

    assert len(lines) == 5
    assert f"{strategy} on digits with cnn, seed 0" in lines[0]
    for name in ("curve.png", "round_01.png"):
        assert matplotlib.image.imread(result.folder / name).std() > 0.05


def test_a_run_is_repeated_to_the_bit_by_its_own_config_file(tmp_path: Path) -> None:
    options = DM2Config(k=3, mix="random", lam="beta")
    config = replace(QUICK, strategy="dm2-at", options=options, rounds=1, threads=1)  # training rounds by its threads
    first = dm2_fast.run(replace(config, output=tmp_path / "a"))
    torch.rand(5)
    again = subprocess.run(
        [sys.executable, "-m", "dm2_fast", "run", "--config", "a/config.yaml", "--output", "b"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stderr == ""  # no progress bars where the output is not a terminal
    assert without_seconds(tmp_path / "a" / "rounds.csv") == without_seconds(tmp_path / "b" / "rounds.csv")
    for name in ("selected.csv", "round_01.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    changed = dm2_fast.run(replace(config, output=tmp_path / "c", seed=1))
    assert not torch.equal(torch.cat(changed.chosen), torch.cat(first.chosen))


def test_strategies_start_from_the_same_labels(tmp_path: Path) -> None:
    runs = [
        dm2_fast.run(replace(QUICK, strategy=name, rounds=0, output=tmp_path / name)) for name in ("dm2", "entropy")
    ]
    assert torch.equal(runs[0].chosen[0], runs[1].chosen[0])
    assert runs[0].rounds[0].evaluation == runs[1].rounds[0].evaluation


def test_each_round_draws_anew(tmp_path: Path) -> None:
    config = replace(QUICK, strategy="random", rounds=3, candidates=30, seed=4, output=tmp_path / "run")
    chosen = dm2_fast.run(config).chosen
    pool = shuffled(torch.arange(len(load("digits").x)), 4, "pool")[:120].sort().values
    for r in (1, 2, 3):
        left = pool[~torch.isin(pool, torch.cat(chosen[:r]))]

        def by_draw(rows: torch.Tensor, purpose: str, r: int = r) -> torch.Tensor:
            return torch.from_numpy(draws.uniform(4, r, rows.numpy(), purpose))

        candidates = left[by_draw(left, "candidates").argsort()[:30]].sort().values
        expected = candidates[by_draw(candidates, "order").argsort(descending=True)[:6]]
        assert chosen[r].tolist() == expected.tolist()


def test_dm2_at_differs_from_dm2_only_in_training(tmp_path: Path) -> None:
    plain = dm2_fast.run(replace(QUICK, strategy="dm2", output=tmp_path / "dm2"))
    adversarial = dm2_fast.run(replace(QUICK, strategy="dm2-at", output=tmp_path / "dm2-at"))
    assert torch.equal(plain.chosen[1], adversarial.chosen[1])
    assert plain.rounds[0].evaluation == adversarial.rounds[0].evaluation
    assert plain.rounds[1].evaluation != adversarial.rounds[1].evaluation


def test_twins_are_made_once_from_the_chosen_samples_with_the_predicted_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def spy(model, x, y, epsilon, **options):
        x_adv = fgsm(model, x, y, epsilon, **options)
        made.append((x, y, epsilon, x_adv))
        return x_adv

    seen = []

    def seen_train(model, labelled, *arguments, **options):
        seen.append(labelled)
        return train(model, labelled, *arguments, **options)

    monkeypatch.setattr(twins, "fgsm", spy)
    monkeypatch.setattr(twins, "train", seen_train)
    result = dm2_fast.run(replace(QUICK, strategy="dm2-at", output=tmp_path / "run"))
    data = load("digits")
    assert len(made) == 2
    for (x, y, epsilon, _), rows in zip(made, result.chosen[1:], strict=True):
        assert torch.equal(x, data.x[rows])
        assert y is None
        assert epsilon == 4 / 255
    assert [len(labelled.twins) for labelled in seen] == [0, 6, 12]
    assert seen[2].twin_of.tolist() == list(range(12, 24))
    assert torch.equal(seen[2].twins, torch.cat([made[0][3], made[1][3]]))


def test_epsilon_is_searched_on_a_held_out_tenth_of_the_labelled_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    accuracy = {1 / 255: 0.25, 2 / 255: 0.5, 4 / 255: 0.5, 8 / 255: 0.25}
    data = load("digits")

    def judge(model, x, y, normalize, epsilon, batch_size, **options):
        assert epsilon == 0.05
        asked.append(x)
        candidate = twins.SEARCHED_EPSILONS[(len(asked) - 1) % 4]
        return Evaluation(accuracy=0.0, accuracy_fgsm=accuracy[candidate], loss=0.0)

    sizes, trained_on = [], []

    def counted_train(model, labelled, *arguments, **options):
        sizes.append(len(labelled))
        trained_on.append(labelled.x)
        return train(model, labelled, *arguments, **options)

    monkeypatch.setattr(twins, "evaluate", judge)
    monkeypatch.setattr(twins, "train", counted_train)
    config = replace(QUICK, strategy="dm2-at", eval_epsilon=0.05, initial=14, output=tmp_path / "run")
    result = dm2_fast.run(replace(config, adversarial=AdversarialConfig(epsilon="search")))
    assert [entry.epsilon for entry in result.rounds] == [None, 2 / 255, 2 / 255]
    assert sizes == [14, *[18] * 4, 20, *[24] * 4, 26]
    labelled = data.x[torch.cat(result.chosen[:2])]
    for x, others in zip(asked[:4], trained_on[1:5], strict=True):
        assert torch.equal(x, asked[0])
        assert len(x) == 2  # a tenth of 20
        held_out_and_rest = [sample.numpy().tobytes() for sample in torch.cat([x, others])]
        assert sorted(held_out_and_rest) == sorted(sample.numpy().tobytes() for sample in labelled)


@pytest.mark.parametrize("epsilon", [0.02, "search"])
def test_a_fresh_twin_at_every_step_needs_no_chosen_samples(tmp_path: Path, epsilon: float | str) -> None:
    config = replace(QUICK, strategy="dm2-at", rounds=1, output=tmp_path / "run", training=TrainingConfig(epochs=1))
    result = dm2_fast.run(replace(config, adversarial=AdversarialConfig(epsilon=epsilon, train="step")))
    allowed = twins.SEARCHED_EPSILONS if epsilon == "search" else (0.02,)
    assert all(entry.epsilon in allowed for entry in result.rounds)


def test_recipes_are_those_of_section_6() -> None:
    cifar = resolve(RunConfig(dataset="cifar10"))
    assert (cifar.model, cifar.training.optimizer, cifar.training.lr) == ("mobilenet", "sgd", 0.1)
    assert (cifar.training.epochs, cifar.training.batch_size) == (200, 128)
    mnist = resolve(RunConfig(dataset="mnist"))
    assert (mnist.model, mnist.training.optimizer) == ("cnn", "adam")
    assert (mnist.training.epochs, mnist.training.batch_size) == (50, 96)
    own = resolve(RunConfig(dataset="mnist", model="mobilenet", budget=7, training=TrainingConfig(lr=0.5)))
    assert (own.model, own.budget, own.training.lr, own.training.epochs) == ("mobilenet", 7, 0.5, 50)
    svhn = resolve(RunConfig(dataset="svhn"))
    assert (svhn.initial, svhn.budget, svhn.rounds, svhn.training) == (7326, 3663, 6, cifar.training)
    for name, base in sets.VARIANTS.items():
        assert RECIPES[name] == RECIPES[base]
    assert set(RECIPES) == {*sets.NAMES, "npz"}


def test_the_folder_s_name_says_what_was_run_and_not_where() -> None:
    first = resolve(RunConfig()).output
    assert first == resolve(RunConfig(data_dir=Path("/elsewhere"), threads=1, device="cpu", download=True)).output
    assert first != resolve(RunConfig(options=DM2Config(k=11))).output
    assert str(first) == f"runs/digits-cnn-dm2-seed0-{fingerprint(resolve(RunConfig()))}"


def test_a_folder_of_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    config = replace(QUICK, rounds=0, output=tmp_path / "run")
    dm2_fast.run(config)
    before = (tmp_path / "run" / "rounds.csv").read_text().splitlines()[1].split(",")[:5]
    dm2_fast.run(replace(config, threads=1))
    assert (tmp_path / "run" / "rounds.csv").read_text().splitlines()[1].split(",")[:5] == before
    with pytest.raises(
        FileExistsError, match=r"another configuration, name another --output: seed \(0 there, 1 here\)"
    ):
        dm2_fast.run(replace(config, seed=1))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(FileExistsError, match="holds something else than a run"):
        dm2_fast.run(replace(config, output=tmp_path / "other"))


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    dm2_fast.run(replace(QUICK, rounds=0, threads=before + 1, output=tmp_path / "run"))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "imagenet"}, "dataset must be one of digits, .*, svhnc or a file.npz, got 'imagenet'"),
        ({"strategy": "bait"}, "strategy must be one of random, .*, got 'bait'"),
        ({"model": "resnet"}, "model must be one of cnn, .* or package.module:function, got 'resnet'"),
        ({"initial": 1}, "initial must be at least 2, got 1"),
        ({"budget": 0}, "budget must be at least 1, got 0"),
        ({"rounds": -1}, "rounds must be at least 0, got -1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"eval_epsilon": -0.1}, r"eval_epsilon must be in \[0, 1\], got -0.1"),
        ({"pool": 31}, r"pool must hold initial \+ rounds \* budget = 20 \+ 2 \* 6 samples, got 31"),
        ({"pool": 2000}, "pool must be at most 1437 for this data set, got 2000"),
        ({"test": 361}, "test must be at most 360 for this data set, got 361"),
        ({"device": "tpu"}, "device must be auto, cpu or a usable GPU, got 'tpu'"),
    ],
)
def test_wrong_options_of_a_run_are_named_before_any_work(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        dm2_fast.run(RunConfig(**{"initial": 20, "budget": 6, "rounds": 2, "output": tmp_path / "run"} | options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, r"epsilon must be in \[0, 1\] or 'search', got -0.1"),
        ({"epsilon": "best"}, r"epsilon must be in \[0, 1\] or 'search', got 'best'"),
        ({"label": "random"}, "label must be one of predicted, true, got 'random'"),
        ({"train": "never"}, "adversarial.train must be one of off, round, step, got 'never'"),
        ({"clean_weight": 2.0}, r"clean_weight must be in \[0, 1\], got 2.0"),
    ],
)
def test_wrong_adversarial_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdversarialConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.0}, "epochs must be a whole number, got 2.0"),
        ({"lr": 0.0}, "lr must be positive and finite, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0 and finite, got -1.0"),
        ({"optimizer": "lamb"}, "optimizer must be one of sgd, adam, got 'lamb'"),
        ({"augment": "cutout"}, "augment must be one of none, flip-crop, got 'cutout'"),
    ],
)
def test_wrong_training_options_are_named_at_the_door(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        TrainingConfig(**options)


def test_config_yaml_holds_the_resolved_configuration(tmp_path: Path) -> None:
    dm2_fast.run(replace(QUICK, options=DM2Config(k=3), rounds=0, output=tmp_path / "run"))
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert values["training"] == {
        "epochs": 4, "batch_size": 32, "optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0, "augment": "none",
    }  # fmt: skip
    assert values["output"] is None
    assert (values["model"], values["dm2"]["k"], values["initial"]) == ("cnn", 3, 12)
