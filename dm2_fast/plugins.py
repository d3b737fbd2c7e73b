"""What a user wrote, named as `package.module:function`: a model, or a strategy."""

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dm2_fast.operations.arguments import shown
from dm2_fast.round import Picked, Round
from dm2_fast.strategy import Strategy


class UsersError(RuntimeError):
    """An error of the user's own code, which is its cause."""

    def told(self) -> str:
        """What went wrong in one sentence, with the line of the user's code."""
        error = self.__cause__
        said = str(error).strip().splitlines()[:1]
        frames = traceback.extract_tb(error.__traceback__ if error else None)
        ours = (str(Path(__file__).parent), str(Path(torch.__file__).parent))
        own = [frame for frame in frames if not frame.filename.startswith((*ours, "<"))]
        place = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        return f"{self}{': ' if said else ''}{''.join(said)}{place}"


def is_plugin(name: object) -> bool:
    """Whether a name means a user's function and not one of ours."""
    return isinstance(name, str) and ":" in name


def load(name: str) -> Any:
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
        raise ValueError(f"no module {error.name!r} for {name!r} (is it in this folder, or installed?)") from error
    found = getattr(module, function_name, None)
    if not callable(found) and not isinstance(found, Strategy):
        raise ValueError(f"module {module_name} has no function {function_name!r}")
    return found


@contextmanager
def of_the_user(name: str, when: str) -> Iterator[None]:
    """Around the user's own code: its error keeps its traceback, and a line below says whose it is."""
    try:
        yield
    except Exception as error:
        raise UsersError(f"{name} raised {type(error).__name__} {when}") from error


@contextmanager
def naming(model: str | None, what: str) -> Iterator[None]:
    """Around our code that runs a model: if that is the user's and it raised, as `of_the_user`."""
    try:
        yield
    except Exception as error:
        frame = error.__traceback__
        while frame is not None:
            if model is not None and is_plugin(model) and frame.tb_frame.f_code is nn.Module._call_impl.__code__:
                raise UsersError(f"the model of {model} raised {type(error).__name__} on {what}") from error
            frame = frame.tb_next
        raise


def strategy(name: str) -> Strategy:
    """The user's strategy of this name: a `Strategy`, or a function, called with (round, budget, options).

    Raises:
        ValueError: there is none; or, when it is called, it does not return budget distinct rows.
    """
    found = load(name)
    described = found if isinstance(found, Strategy) else Strategy(name, found)

    def choose(round: Round, budget: int, options: Any) -> Picked:
        with of_the_user(name, f"when asked for {budget} of {len(round)} rows"):
            return described.choose(round, budget, options)

    return replace(described, choose=choose)


def model(name: str, **known: Any) -> nn.Module:
    """The model that the user's function returns, called with those of `channels`, `size` and `classes` that it names.

    Args:
        name: `package.module:function`.
        known: The number of channels, the (height, width) and the number of classes; None for what is not known.

    Raises:
        ValueError: there is no such function, it wants something else, or it returns no `nn.Module`.
    """
    function = load(name)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have none
        parameters = []
    wanted = {p.name: known[p.name] for p in parameters if p.name in known}
    others = [p.name for p in parameters if p.name not in known and p.default is p.empty and p.kind not in _VARIADIC]
    if others:
        raise ValueError(
            f"{name} wants {', '.join(others)}, but a model function is called with {', '.join(known)}: give "
            f"{'it a default' if len(others) == 1 else 'them defaults'}"
        )
    called = ", ".join(f"{argument}={value}" for argument, value in wanted.items())
    with of_the_user(name, f"when called with {called}" if called else "when called without arguments"):
        made = function(**wanted)
    if not isinstance(made, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, got {shown(made)}")
    return made


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
