"""The packages that only an extra of dm2_fast installs: what lacks one says which extra that is."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):
    """A package is not installed; the message names the extra that brings it."""


@contextmanager
def needed(extra: str, who: str) -> Iterator[None]:
    """Around the imports of an extra's packages.

    Args:
        extra: Its name in pyproject.toml, "run" for `pip install 'dm2_fast[run]'`.
        who: What needs the packages, as the message names it.

    Raises:
        MissingExtra: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or str(error)).partition(".")[0]
        package = _PACKAGES.get(module, module)
        raise MissingExtra(f"{who} needs {package}: pip install 'dm2_fast[{extra}]'", name=error.name) from error


def check(extra: str, who: str, *modules: str) -> None:
    """Import these modules now, so that what lacks one says so before it has worked for an hour."""
    with needed(extra, who):
        for module in modules:
            importlib.import_module(module)


# Where the module has another name than the package.
_PACKAGES = {
    "sklearn": "scikit-learn",
    "skactiveml": "scikit-activeml",
    "small_text": "small-text",
    "yaml": "pyyaml",
    "docstring_parser": "docstring-parser",
}
