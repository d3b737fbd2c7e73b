"""A user's own function, named as `package.module:function`."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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
