"""Protocols: what a study runs and what it asks, written in a YAML file before the first run."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from dm2_fast import strategies
from dm2_fast.experiment.config import AdversarialConfig, RunConfig, TrainingConfig
from dm2_fast.experiment.folder.files import read_yaml
from dm2_fast.strategies.dm2 import DM2Config
from dm2_fast.words import whole_numbers

FOLDER = Path(__file__).parent / "protocols"
Show = Literal["probe", "table1", "table2", "table3", "table5", "figure1", "figure4"]


@dataclass(frozen=True)
class Protocol:
    """A study: every method in every cell with every seed.

    Attributes:
        name: That of its file.
        show: The table or figure that it makes, or probe for the probe track.
        cells: What all methods share, by name: options of a run, or of a probe (see `dm2_fast.paper.probe.Probe`).
        methods: Options of a run that come on top, by name: a strategy, its options under its own name, adversarial.
        seeds: Every seed is a pair: it decides the pool, the first labels and the first weights for all methods.
        primary: The measure that is tested.
        against: The method that the others are compared with.
        compared: The methods that are tested against it; None for all that have all seeds.
        fewer: The seeds of methods that do not have all of them, by name; shown, and neither tested nor ranked.
    """

    name: str
    show: Show
    cells: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    primary: str = "accuracy"
    against: str = "random"
    compared: tuple[str, ...] | None = None
    fewer: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def tested(self) -> tuple[str, ...]:
        """The methods that are compared with `against`."""
        whole = tuple(m for m in self.methods if m not in self.fewer)
        return tuple(m for m in self.compared or whole if m != self.against)

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """Cell, method and seed of every curve, seed by seed, so that what is there at any time is paired."""
        keys = product(self.seeds, self.cells, self.methods)
        return [(cell, method, seed) for seed, cell, method in keys if seed in self.fewer.get(method, self.seeds)]

    def restricted(
        self, cells: Sequence[str] | None, methods: Sequence[str] | None, seeds: Sequence[int] | None
    ) -> "Protocol":
        """The part of the study with these cells, methods and seeds; None for all.

        Raises:
            ValueError: the protocol has no such cell or method.
        """
        kept: dict[str, Any] = {"seeds": self.seeds if seeds is None else tuple(seeds)}
        for what, wanted in (("cells", cells), ("methods", methods)):
            all_of = getattr(self, what)
            unknown = [name for name in wanted or () if name not in all_of]
            if unknown:
                raise ValueError(f"{what} must be among those of {self.name}, {', '.join(all_of)}, got {unknown[0]}")
            kept[what] = {name: all_of[name] for name in all_of if wanted is None or name in wanted}
        return replace(self, **kept)

    def commands(self, keys: Iterable[tuple[str, str, int]]) -> list[str]:
        """The commands that make the curves of these keys: one for all methods that have the same seeds in the same
        cells, and several for a method that has fewer seeds in some."""
        seeds_of: dict[tuple[str, str], list[int]] = {}
        for cell, method, seed in sorted(keys):
            seeds_of.setdefault((cell, method), []).append(seed)
        groups: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
        for method in self.methods:
            cells_of: dict[tuple[int, ...], list[str]] = {}
            for cell in self.cells:
                if (cell, method) in seeds_of:
                    cells_of.setdefault(tuple(seeds_of[cell, method]), []).append(cell)
            for seeds, having in cells_of.items():
                groups.setdefault((tuple(having), seeds), []).append(method)
        protocol = self.name if (FOLDER / f"{self.name}.yaml").is_file() else f"{self.name}.yaml"
        lines = []
        for (cells, seeds), methods in groups.items():
            line = f"dm2-fast bench {self.show} --protocol {protocol} --seeds {_ranges(seeds)}"
            line += "" if cells == tuple(self.cells) else f" --cells {','.join(cells)}"
            lines.append(line + ("" if methods == list(self.methods) else f" --methods {','.join(methods)}"))
        return lines

    def fingerprint(self, cell: str, method: str) -> str:
        """Eight characters that differ where the options of a cell or a method differ."""
        content = json.dumps([self.cells[cell], self.methods[method]], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:8]


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-4,7" of rising numbers."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def names(show: str) -> list[str]:
    """The names of the protocols that come with the package and make this table or figure."""
    return sorted(file.stem for file in FOLDER.glob(f"*-{show}.yaml"))


def read_protocol(name: str) -> Protocol:
    """Read a protocol: the name of one that comes with the package, or a YAML file.

    Raises:
        ValueError: there is none of this name, or the file holds something else; the message says what.
        FileNotFoundError: there is no such file.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not file.is_file():
        if file.parent == FOLDER:
            known = sorted(each.stem for each in FOLDER.glob("*.yaml"))
            raise ValueError(f"protocol must be a file.yaml or one of {', '.join(known)}, got {name!r}")
        raise FileNotFoundError(f"protocol file not found: {file.absolute()}")
    values = read_yaml(file)
    known_keys = ("show", "cells", "methods", "seeds", "primary", "against", "compared", "fewer")
    unknown = sorted(set(values) - set(known_keys))
    missing = sorted({"show", "cells", "methods", "seeds"} - set(values))
    if unknown or missing:
        wrong = f"unknown {', '.join(unknown)}" if unknown else f"{', '.join(missing)} missing"
        raise ValueError(f"{file} is no protocol: {wrong}")
    if values["show"] not in get_args(Show):
        raise ValueError(f"{file}: show must be one of {', '.join(get_args(Show))}, got {values['show']!r}")
    for what in ("cells", "methods"):
        if not isinstance(values[what], dict) or not values[what]:
            raise ValueError(f"{file}: {what} must be options by name, got {values[what]!r}")
        values[what] = {name: dict(options or {}) for name, options in values[what].items()}
    compared = values.get("compared")
    fewer = {method: _seeds(seeds) for method, seeds in (values.get("fewer") or {}).items()}
    made = Protocol(
        file.stem,
        **{
            **values,
            "seeds": _seeds(values["seeds"]),
            "compared": None if compared is None else tuple(compared),
            "fewer": fewer,
        },
    )
    for method in fewer:
        if method not in made.methods:
            raise ValueError(f"{file}: {method} has fewer seeds but is not among the methods {', '.join(made.methods)}")
    for method in (made.against, *made.tested):
        if method not in made.methods:
            raise ValueError(f"{file}: {method} is compared but not among the methods {', '.join(made.methods)}")
        if method in fewer:
            raise ValueError(f"{file}: {method} is compared, so it must have all seeds: leave it out of fewer")
    return made


def _seeds(given: int | str | list[Any]) -> tuple[int, ...]:
    """So many seeds from 0 on, or the seeds themselves, as on the command line."""
    try:
        return tuple(range(given)) if isinstance(given, int) else tuple(whole_numbers(given))
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"seeds must be how many, or whole numbers as in 25-74, got {given!r}") from error


def run_config(values: dict[str, Any], **others: Any) -> RunConfig:
    """The configuration of a run from plain values; the options of a strategy stand under its name.

    Those of dm2 change the paper's setting, `DM2Config.published()`, which `dm2: published` takes as it is, so that a
    protocol says the same whatever the defaults become; without them, dm2 has its defaults.

    Raises:
        ValueError: an option is unknown or wrong.
    """
    given = {**values, **others}
    strategy = strategies.get(given.get("strategy", "dm2"))
    group = strategies.group(strategy)
    try:
        for name, kind in (("training", TrainingConfig), ("adversarial", AdversarialConfig)):
            given[name] = kind(**given.get(name) or {})
        if group in given and strategy.options is not None:
            own = given.pop(group)
            own = {} if own == "published" else own
            options = DM2Config.published if strategy.options is DM2Config else strategy.options
            given["options"] = options(**own)
        return RunConfig(**given)
    except TypeError as error:
        raise ValueError(f"options of a run are wrong: {error}") from error


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both options; those of the second win, within their groups too."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both
