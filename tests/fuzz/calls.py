"""Every public function with wrong arguments: it returns, or refuses in a sentence that a caller can understand."""

import re
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

import dm2_fast
from dm2_fast import strategies
from dm2_fast.experiment import AdversarialConfig, TrainingConfig

REFUSALS = (ValueError, TypeError, RuntimeError)
# Words of the machinery beneath, which an error must not end in.
INTERNAL = re.compile(
    r"0x[0-9a-f]{6}|tensor\(|array\(|dtype=|Traceback|NoneType|incompatible function arguments|_C\.|numpy\.ndarray|"
    r"object has no attribute|is not iterable|unhashable|not subscriptable|is not callable|"
    r"unsupported operand|not supported between|object of type|positional argument|"
    r"INTERNAL ASSERT|aten::|Proxy|\n",
)


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.rand(6, 4), 0.1, 0, torch.quint8)


class Own(torch.Tensor):
    """A subclass."""


WRONG: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 2**31, lambda: 2**70, lambda: 2.0, lambda: 0.5,
    lambda: float("nan"), lambda: float("inf"), lambda: 1j, lambda: "text", lambda: "x" * 5000, lambda: b"bytes",
    list, lambda: [1, 2, 3], lambda: [[1.0, 2.0], [3.0]], lambda: (0.5,), lambda: {"k": 2}, lambda: {1, 2},
    lambda: object(), lambda: int, lambda: print, lambda: iter([1]), lambda: range(6), lambda: slice(3),
    lambda: np.float32(3), lambda: np.int64(2), lambda: np.array(3), lambda: np.array([None, 1]), lambda: np.array("a"),
    lambda: np.zeros((6, 4)), lambda: np.zeros((6, 4), np.float32)[::-1, ::-1], lambda: np.zeros((6, 4), ">f4"),
    lambda: np.zeros((6, 0)), lambda: np.zeros((0, 4), np.float32), lambda: np.full((6, 4), np.nan, np.float32),
    lambda: np.zeros((6, 4), complex), lambda: np.ma.masked_array(np.zeros((6, 4)), np.eye(6, 4)),
    lambda: np.zeros((6, 4), [("a", "f4")]), lambda: np.zeros((6, 4), "M8[s]"), lambda: np.zeros((6, 4), np.uint16),
    lambda: np.arange(6), lambda: np.arange(12).reshape(6, 2), lambda: np.zeros((6, 4), np.longdouble),
    lambda: torch.tensor(3), lambda: torch.tensor(2.5), lambda: torch.tensor([]), lambda: torch.zeros(6, 4),
    lambda: torch.zeros(6, 4, dtype=torch.bool), lambda: torch.zeros(6, 4, dtype=torch.complex64),
    lambda: torch.zeros(6, 4, dtype=torch.float8_e4m3fn), lambda: torch.zeros(6, 4).to_sparse(),
    lambda: torch.zeros(6, 4).to_sparse_csr(), quantised, lambda: torch.zeros(6, 4, device="meta"), nested,
    lambda: torch.zeros(6, 4).as_subclass(Own), lambda: torch.full((6, 4), torch.nan), lambda: torch.ones(6, 4, 2, 2),
    lambda: torch.ones(6, 4, dtype=torch.complex64).conj().imag,
    lambda: torch.arange(6), lambda: torch.arange(6, dtype=torch.int32), lambda: torch.full((6, 2), 99),
    lambda: torch.zeros(6, 4, requires_grad=True) * 1, lambda: torch.ones(10**6), lambda: torch.channels_last,
    lambda: torch.float16, lambda: torch.device("cpu"), lambda: nn.Linear(4, 3), lambda: nn.Module,
    lambda: nn.Sequential(), lambda: nn.Flatten(), lambda: dm2_fast.DM2Config(k=3), lambda: ("a", "b"),
    lambda: (torch.tensor(0.5), [1, 2]), lambda: ([0.1] * 4, [0.0] * 4),
]  # fmt: skip


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 3))


def features() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random((6, 4), np.float32))


def images() -> torch.Tensor:
    return features().view(6, 1, 2, 2)


def indices() -> torch.Tensor:
    return torch.tensor([[1, 2], [2, 3], [3, 4], [4, 5], [5, 0], [0, 1]])


def of_model(**more: Any) -> dict[str, Any]:
    return {"model": model(), "normalize": None, "batch_size": 4} | more


def neighbours(queries: Any, k: Any, rows: Any, without: Any, **given: Any) -> None:
    index = dm2_fast.Neighbours(**given)
    index.graph(k)
    index.query(queries, k)
    index.of(rows, k)
    index.without(without).graph(k)


def from_arrays(budget: Any, strategy: Any, options: Any = None, **given: Any) -> None:
    dm2_fast.select_from(dm2_fast.Round.from_arrays(**given), budget, strategy, options)


# name, whose first word is what the function is called: (function, right arguments)
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]]]] = {
    "knn": (
        dm2_fast.knn,
        lambda: {
            "x": features(), "k": 2, "metric": "literal", "queries": None, "recall": None, "unit_rows": True,
            "per_dimension": True, "backend": "auto", "num_threads": 1, "progress": False,
        },
    ),
    "pairwise": (
        dm2_fast.pairwise,
        lambda: {
            "x": features(), "y": None, "metric": "rms", "unit_rows": False, "per_dimension": False, "backend": "auto",
            "num_threads": 1,
        },
    ),
    "Neighbours": (
        neighbours,
        lambda: {
            "x": features(), "metric": "l1", "recall": None, "seed": 0, "backend": "auto", "num_threads": 1,
            "progress": False, "queries": features(), "k": 2, "rows": torch.tensor([0, 2]),
            "without": torch.tensor([1]),
        },
    ),
    "logits_of": (dm2_fast.logits_of, lambda: {"probabilities": torch.full((6, 3), 1 / 3), "multilabel": False}),
    "mix": (
        dm2_fast.mix,
        lambda: {
            "inputs": features(), "indices": indices(), "lam": 0.5, "weights": None, "rows": None, "normalize": None,
            "memory_format": torch.preserve_format, "out": None, "backend": "auto", "num_threads": 1,
        },
    ),
    "uncertainty": (
        dm2_fast.uncertainty,
        lambda: {"logits": features(), "kind": "entropy", "backend": "auto", "num_threads": 1},
    ),
    "linear_probe": (
        dm2_fast.linear_probe,
        lambda: {
            "features": features(), "indices": indices(), "lam": 0.5, "weight": torch.ones(3, 4), "bias": None,
            "kind": "margin", "weights": None, "rows": None, "backend": "auto", "num_threads": 1,
        },
    ),
    "fgsm": (
        dm2_fast.fgsm,
        lambda: of_model(x=features(), y=torch.zeros(6, dtype=torch.int64), epsilon=0.1, progress=False),
    ),
    "pgd": (
        dm2_fast.pgd,
        lambda: of_model(
            x=features(), y=None, epsilon=0.1, steps=2, restarts=2, step_size=None, seed=0, progress=False
        ),
    ),
    "pair_loss": (
        dm2_fast.pair_loss,
        lambda: {
            "clean": torch.ones(6, 3), "adversarial": torch.ones(2, 3), "y": torch.zeros(6, dtype=torch.int64),
            "twins": torch.tensor([0, 3]), "clean_weight": 0.5,
        },
    ),
    "select": (
        dm2_fast.select,
        lambda: of_model(
            pool=features(), budget=2, strategy="dm2", options=dm2_fast.DM2Config(k=2), labelled=None, labels=None,
            row_ids=None, ids=None, ties="lower", seed=0, round=0, head=None, backend="auto", num_threads=1,
            progress=False, prepare="auto", autocast=None, num_workers=0, entries=None, memory=2**20, multilabel=None,
            these_are_logits=False,
        ),
    ),
    "select alpha-mix": (
        dm2_fast.select,
        lambda: of_model(
            pool=features(), budget=2, strategy="alpha-mix", labelled=features(),
            labels=torch.tensor([0, 1, 2, 0, 1, 2]), row_ids=np.arange(6), num_threads=1,
        ),
    ),
    "select prob-cover": (
        dm2_fast.select,
        lambda: of_model(pool=features(), budget=2, strategy="prob-cover", labelled=features(), labels=None, seed=1),
    ),
    "select_from": (
        from_arrays,
        lambda: {
            "features": features(), "logits": None, "probabilities": None, "labelled_features": features(),
            "labels": np.arange(6) % 3, "head": (torch.ones(3, 4), torch.zeros(3)), "ids": None, "row_ids": None,
            "ties": "random", "seed": 0, "round": 0, "multilabel": None, "these_are_logits": False, "batch_size": None,
            "backend": "auto", "num_threads": 1, "progress": False, "budget": 2, "strategy": "dm2",
            "options": dm2_fast.DM2Config(k=2),
        },
    ),
    "select_from least-confidence": (
        from_arrays,
        lambda: {"logits": None, "probabilities": np.full((6, 3), 1 / 3), "budget": 2, "strategy": "least-confidence"},
    ),
    "RunConfig": (
        dm2_fast.RunConfig,
        lambda: {
            "dataset": "digits", "model": "cnn", "strategy": "dm2", "initial": 20, "budget": 5, "rounds": 1,
            "pool": 100, "test": 50, "seed": 0, "device": "cpu", "threads": 1, "eval_batch_size": 64,
            "eval_epsilon": 0.1, "oracle": "data", "options": None,
        },
    ),
    "RunConfig of training": (
        lambda **given: dm2_fast.RunConfig(training=TrainingConfig(**given)),
        lambda: {"epochs": 1, "batch_size": 8, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "augment": "none"},
    ),
    "RunConfig of adversarial": (
        lambda **given: dm2_fast.RunConfig(adversarial=AdversarialConfig(**given)),
        lambda: {"train": "round", "epsilon": 0.1, "label": "true", "clean_weight": 0.5},
    ),
}  # fmt: skip

# The options of every strategy, and a choice by those with options that decide how much is computed.
CHEAP: dict[str, dict[str, Any]] = {
    "batchbald": {"passes": 2, "configurations": 8}, "vaal": {"latent": 2, "width": 2, "epochs": 1},
    "ll4al": {"epochs": 1}, "isal": {"steps": 2, "restarts": 1, "samples": 2}, "ent-gn": {}, "exp-gn": {},
    "qbc": {"passes": 2, "networks": 2}, "cluster-margin": {}, "noise-stability": {"passes": 2}, "core-gcn": {},
}  # fmt: skip


for _name in strategies.names():
    _options = strategies.get(_name).options
    if _options is not None:
        FUNCTIONS[_options.__name__] = (_options, partial(asdict, _options()))
for _name, _cheap in CHEAP.items():
    FUNCTIONS[f"select {_name}"] = (
        dm2_fast.select,
        partial(
            lambda name, cheap: of_model(
                pool=images(), budget=2, strategy=name, options=strategies.get(name).options(**cheap), head=None,
                labelled=images(), labels=torch.tensor([0, 1, 2, 0, 1, 2]), num_threads=1, seed=0, round=0,
            ),
            _name, _cheap,
        ),
    )  # fmt: skip


def judge(error: BaseException, what: str) -> None:
    """Raise unless an error is a sentence to a caller."""
    text = str(error)
    assert isinstance(error, REFUSALS), f"{what} raises {type(error).__name__}: {text[:200]}"
    assert 0 < len(text) <= 300, f"{what} says {len(text)} characters: {text[:300]}"
    assert not INTERNAL.search(text), f"{what} says: {text}"


# So many steps as one of the wrong numbers take long, and are not wrong.
LONG = {("pgd", "steps"), ("pgd", "restarts")}


def case(seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    name = list(FUNCTIONS)[rng.integers(len(FUNCTIONS))]
    function, right = FUNCTIONS[name]
    arguments = right()
    changed = rng.choice(list(arguments), min(len(arguments), 1 + (rng.random() < 0.2)), replace=False)
    which = rng.integers(0, len(WRONG), len(changed))
    for key, i in zip(changed, which, strict=True):
        arguments[key] = WRONG[i]()
        if (name, key) in LONG and isinstance(arguments[key], int) and arguments[key] > 10**6:
            return
    what = f"{name} with " + ", ".join(f"{key} = WRONG[{i}]" for key, i in zip(changed, which, strict=True))
    kept = {key: value for key, value in arguments.items() if key not in changed and isinstance(value, torch.Tensor)}
    before = {key: value.clone() for key, value in kept.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            function(**arguments)
    except Exception as error:
        judge(error, what)
    for key, value in before.items():
        assert torch.equal(kept[key], value), f"{what} changes {key}"
