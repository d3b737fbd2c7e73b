"""A user's own function, named as `package.module:function`: a model (see models.py) or a strategy."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dm2_fast import strategies
from dm2_fast.acquire import Picked
from dm2_fast.strategies import Round, Strategy


def is_plugin(name: str) -> bool:
    """Whether a name means a user's function and not one of ours."""
    return ":" in name


def load_function(name: str) -> Callable[..., Any]:
    """Import `package.module:function`; modules in the working directory are found too.

    Raises:
        ValueError: the name has another form, or there is no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name.isidentifier():
        raise ValueError(f"a function of your own must be named package.module:function, got {name!r}")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise ValueError(f"{name!r} must name an importable module, got no module {error.name!r}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{name!r} must name a function of {module_name}, got none of this name")
    return function  # type: ignore[no-any-return]


@contextmanager
def of_the_user(name: str, when: str) -> Iterator[None]:
    """Around the user's own code: its error keeps its traceback, and a line below says whose it is."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(f"{name} raised {type(error).__name__} {when}") from error


@contextmanager
def naming(model: str | None, what: str) -> Iterator[None]:
    """Around our code that runs a model: if that is the user's and it raised, as `of_the_user`."""
    try:
        yield
    except Exception as error:
        frame = error.__traceback__
        while frame is not None:
            if model is not None and is_plugin(model) and frame.tb_frame.f_code is nn.Module._call_impl.__code__:
                raise RuntimeError(f"the model of {model} raised {type(error).__name__} on {what}") from error
            frame = frame.tb_next
        raise


def strategy(name: str) -> Strategy:
    """One of our strategies, or `package.module:function` for a user's, called as `function(round, budget, options)`.

    Raises:
        ValueError: there is no such strategy; or, when it is called, it does not return budget distinct rows.
    """
    if not is_plugin(name):
        return strategies.get(name)
    function = load_function(name)

    def choose(round: Round, budget: int, options: Any) -> Picked:
        with of_the_user(name, f"when asked for {budget} of {len(round)} rows"):
            picked = function(round, budget, options)
        _check_picked(picked, f"strategy {name}", budget, len(round))
        return picked  # type: ignore[no-any-return]

    return choose


def _check_picked(picked: object, who: str, budget: int, m: int) -> None:
    if not isinstance(picked, Picked):
        raise ValueError(f"{who} must return a dm2_fast.Picked(indices, scores), got {type(picked).__name__}")
    rows, scores = picked.indices, picked.scores
    if not isinstance(rows, Tensor) or rows.dtype != torch.int64 or rows.shape != (budget,):
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(f"{who} must choose {budget} rows as an int64 tensor of shape ({budget},), got {got}")
    outside = rows[(rows < 0) | (rows >= m)]
    if len(outside):
        raise ValueError(f"{who} must choose rows of the pool, 0 to {m - 1}, got {outside[0].item()}")
    repeated = torch.nonzero(torch.bincount(rows) > 1)
    if len(repeated):
        raise ValueError(f"{who} must choose distinct rows, got row {repeated[0].item()} more than once")
    if scores is not None and (not isinstance(scores, Tensor) or scores.shape != (m,)):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{who} must return None or a score for each of the {m} rows, got {got}")
