"""The packages that only an extra of dm2_fast installs: what lacks one says which extra that is."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata


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


def installed() -> Iterator[tuple[str, str]]:
    """(extra, what it lacks) of every extra but those of our own development."""
    of_extra: dict[str, list[str]] = {}
    wanted = metadata.requires("dm2_fast") if _is_installed("dm2_fast") else None  # not where a source tree runs
    for line in wanted or []:
        found = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)", line)
        if found and found[2] not in ("all", "bench", "docs", "test"):
            of_extra.setdefault(found[2], []).append(found[1])
    for extra, packages in of_extra.items():
        missing = [package for package in packages if not _is_installed(package)]
        yield extra, f"without {', '.join(missing)} (pip install 'dm2_fast[{extra}]')" if missing else "installed"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


# Where the module has another name than the package.
_PACKAGES = {"sklearn": "scikit-learn", "yaml": "pyyaml", "docstring_parser": "docstring-parser"}
