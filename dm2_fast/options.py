"""The options of a command, built from the configuration dataclasses, and the dataclasses built from their values."""

import difflib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from dm2_fast import extras, plugins, strategies
from dm2_fast.experiment import models
from dm2_fast.experiment.config import RECIPES, RunConfig, TrainingConfig
from dm2_fast.experiment.data import sets
from dm2_fast.experiment.folder.files import read_yaml
from dm2_fast.operations.arguments import nearest, shown
from dm2_fast.selecting.config import SelectConfig
from dm2_fast.strategy import Strategy
from dm2_fast.words import whole_numbers

with extras.needed("run", "the command dm2-fast"):
    import docstring_parser
    import yaml
    from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter


class _Parser(ArgumentParser):
    """A parser that says what is wrong in one line."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.option_types: dict[str, Any] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lacking = re.search(r"arguments are required: (\w+)", message)
        if lacking and lacking[1] in _POSITIONAL:
            message = f"give {_POSITIONAL[lacking[1]]}"
        key = re.search(r'key "([\w.]+)"|argument --([\w.-]+)', message)
        value = re.search(r"[Vv]alue: (.*)$", message)
        unknown = re.search(r"[Uu]nrecognized arguments: (--[\w.-]+)", message)
        name = (key[1] or key[2]).replace("-", "_") if key else ""
        near = self._near(unknown[1]) if unknown else None
        if value and name in self.option_types:
            got = value[1].strip("'")
            option = name if name in _POSITIONAL else f"--{name.replace('_', '-')}"
            kind = self.option_types[name]
            message = f"{option} must be {_words(kind)}, got {got}"
            near = nearest(got, _choices(kind))
        instead = f"did you mean {near}? " if near else ""
        raise ValueError(" ".join(message.split()) + f" ({instead}see {self.prog} --help)")

    def _near(self, unknown: str) -> str | None:
        """The option that was meant: one of the same name in a group, else one that is spelled nearly alike."""
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        in_group = [option for option in options if option.endswith("." + unknown.removeprefix("--"))]
        names = {option.rpartition(".")[2].removeprefix("--"): option for option in options}
        spelled = difflib.get_close_matches(unknown, options, 1)
        alone = [names[name] for name in difflib.get_close_matches(unknown.removeprefix("--"), names, 1)]
        return next(iter(in_group + spelled + alone), None)


class _Help(DefaultHelpFormatter):
    """At most 100 columns wide; types and defaults are in the text of an option already."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)  # type: ignore[no-untyped-call]
        self._width = min(self._width, 98)

    def start_section(self, heading: str | None) -> None:
        super().start_section(heading and textwrap.fill(heading, self._width))

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _get_help_string(self, action: Any) -> str:
        return (action.help or "").replace("%", "%%")


# What stands for the value of an option in the help where its type does not say it, and what it may be.
_NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    "dataset": ("NAME|FILE.npz", sets.NAMES),
    "model": ("NAME|MODULE:FUNCTION", models.NAMES),
    "strategy": ("NAME|MODULE:FUNCTION", strategies.names()),
    "dataset_sha256": ("HEX", ()),
    "head": ("FILE.npz|NAME", ()),
    "normalize": ("MEAN/STD", ()),
}
_OF_SELECT = {"model": ("MODULE:FUNCTION", ())}
_POSITIONAL = {"folders": "FOLDER", "table": "table4", "study": "STUDY", "shards": "FOLDER"}


def option_groups(given: Sequence[str]) -> dict[str, type]:
    """The options of every strategy, by the name of their group; those of the user's that are named in given, too."""
    named = _named_strategies(given)
    groups: dict[str, type] = {}
    for strategy in [strategies.get(name) for name in (*strategies.names(), *filter(plugins.is_plugin, named))]:
        group = strategies.group(strategy)
        if group is not None and strategy.options is not None:
            groups[group] = strategy.options
    return groups


def _named_strategies(given: Sequence[str]) -> list[str]:
    """What stands behind --strategy and --strategies, or at their place in a file behind --config."""
    named = _values_of("--strategy", given) + _values_of("--strategies", given)
    for _, content in _config_files(given):
        for key in ("strategy", "strategies"):
            found = content.get(key)
            named += found if isinstance(found, list) else [str(found)]
    return [name.strip() for names in named for name in str(names).split(",")]


def _values_of(option: str, given: Sequence[str]) -> list[str]:
    values = []
    for argument, following in zip(given, [*given, ""][1:], strict=True):
        name, assigned, value = argument.partition("=")
        if name == option:
            values.append(value if assigned else following)
    return values


def _config_files(given: Sequence[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files behind --config that are there, and what they hold."""
    for file in map(Path, _values_of("--config", given)):
        with suppress(OSError):  # the parser says what is wrong with it
            yield file, read_yaml(file)


def check_files(given: Sequence[str], configs: Iterable[type], groups: dict[str, type]) -> None:
    """Raise unless the files behind --config have the options of each group below its name.

    Raises:
        ValueError: one has something else there.
    """
    nested = {item.name for cls in configs for item in fields(cls) if is_dataclass(get_type_hints(cls)[item.name])}
    for file, content in _config_files(given):
        for name, found in content.items():
            if name in {*groups, *nested} and not isinstance(found, dict):
                raise ValueError(f"{file}: {name} must have its options in the lines below it, got {shown(found)}")


def parser(command: str, description: str, configs: Iterable[type], groups: dict[str, type]) -> ArgumentParser:
    """The parser of a command: an option per field of the dataclasses and of the groups of the strategies.

    Its `error` raises a ValueError of one line.
    """
    takes = {"report": "FOLDER... ", "bench": "table4 ", "bench study": "STUDY ", "merge": "FOLDER "}.get(command, "")
    command = command.partition(" ")[0]
    made = _Parser(
        prog=f"dm2-fast {command}",
        description=description,
        allow_abbrev=False,
        print_config="--print-config",
        usage=f"dm2-fast {command} {takes}[options]",
        formatter_class=_Help,
    )
    made.add_argument(
        "--config", action="config", metavar="FILE", help="YAML file with any of these options; later ones win."
    )
    (printing,) = (action for action in made._actions if "--print-config" in action.option_strings)
    printing.metavar, printing.help = "", "Print all options as such a file, and end."
    for config in configs:
        made.option_types |= _add_options(made, config, groups)
    return made


def _add_options(parser: Any, cls: type, groups: dict[str, type], prefix: str = "") -> dict[str, Any]:
    """An option per field, with help from the class's docstring; dataclasses are groups. Returns their types."""
    option_types: dict[str, Any] = {}
    documented = docstring_parser.parse(cls.__doc__ or "")
    help_of = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented.params}
    types = get_type_hints(cls)
    nested = {item.name: types[item.name] for item in fields(cls) if is_dataclass(types[item.name])}
    for item in fields(cls):
        name, kind = f"{prefix}{item.name}", types[item.name]
        if item.name in nested or item.name == "options":
            continue
        option_types[name] = kind
        text, metavar, choices = help_of.get(item.name, ""), _metavar(kind), _choices(kind)
        if name in _NAMED:
            metavar, choices = (_NAMED | _OF_SELECT if cls is SelectConfig else _NAMED)[name]
        keywords: dict[str, Any] = {"type": kind, "metavar": metavar}
        if name in _POSITIONAL:
            keywords["metavar"] = _POSITIONAL[name]
            if get_origin(kind) is list:
                keywords |= {"type": get_args(kind)[0], "nargs": "+"}
            parser.add_argument(name, help=text, **keywords)
            continue
        listed = _element(kind)
        if listed is not None:
            keywords["type"] = partial(_listed, listed)
        elif float in (kind, *get_args(kind)):
            keywords["type"] = partial(_number, kind)
        if kind is bool:
            keywords = {"action": ActionYesNo(no_prefix="no-")}
        if "NAME" in (metavar or "") and choices:
            text = f"{text} Names: {', '.join(choices)}."
        default = item.default if item.default_factory is MISSING else item.default_factory()
        text += _default_in_words(cls, item, default)
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=text, **keywords)
    if any(item.name == "options" for item in fields(cls)):
        nested = groups | nested
    for name, kind in nested.items():
        summary, _, rest = (docstring_parser.parse(kind.__doc__ or "").short_description or "").partition(".")
        group = parser.add_argument_group(summary, rest.strip() or None)
        option_types |= _add_options(group, kind, groups, f"{prefix}{name}.")
    return option_types


def _default_in_words(cls: type, item: "Field[Any]", default: Any) -> str:
    """ " (default: 20; 1000 for cifar10; 7326 for svhn)"; nothing for null where no data set has a recipe for it."""
    by_value: dict[str, list[str]] = {}
    if default is None and cls in (RunConfig, TrainingConfig):
        for dataset, recipe in ((name, each) for name, each in RECIPES.items() if name not in sets.VARIANTS):
            values = vars(recipe["training"]) if cls is TrainingConfig else recipe
            if values.get(item.name) is not None:
                by_value.setdefault(_shown(values[item.name]), []).append(dataset)
    if by_value:
        usual, *others = sorted(by_value, key=lambda value: -len(by_value[value]))
        others = [f"{value} for {' and '.join(by_value[value])}" for value in others]
        return f" (default: {'; '.join([usual, *others])})"
    return "" if default is None else f" (default: {_shown(default)})"


def _shown(value: Any) -> str:
    """A default as one would type it: pixel steps as n/255, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    if isinstance(value, float) and 0 < value < 1 and round(value * 255) / 255 == value:
        return f"{round(value * 255)}/255"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _element(kind: Any) -> type | None:
    """int for list[int] and list[int] | None; None for what is no list."""
    for part in (kind, *get_args(kind)):
        if get_origin(part) is list:
            element: type = get_args(part)[0]
            return element
    return None


def _listed(element: type, value: Any) -> Any:
    """A list from `0,1,2`, `0-4`, `[0, 1, 2]`, or a list of a YAML file; `all` is every strategy."""
    if value is None or value == "null":
        return None
    if isinstance(value, str) and value.startswith("["):
        value = yaml.safe_load(value)
    if element is int:
        return whole_numbers(value if isinstance(value, list) else str(value))
    words = value if isinstance(value, list) else str(value).split(",")
    return list(strategies.names()) if words == ["all"] else [str(word).strip() for word in words]


def _number(kind: Any, value: Any) -> Any:
    """A number from `0.5` or `4/255`; one of the words, or null, that kind has beside numbers."""
    if value is None or (value == "null" and type(None) in get_args(kind)):
        return None
    if isinstance(value, str) and value not in _choices(kind):
        over, slash, under = value.partition("/")
        if slash and float(under) == 0:
            raise ValueError("division by zero")
        return float(over) / float(under) if slash else float(over)
    return value if isinstance(value, str) else float(value)


def _choices(kind: Any) -> tuple[str, ...]:
    """The words of a Literal, or of those in a union."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in _choices(part))


def _metavar(kind: Any) -> str:
    if _element(kind) is not None:
        return "N,N,..." if _element(kind) is int else "NAME,NAME,..."
    if get_origin(kind) is Literal:
        words = "{" + ",".join(get_args(kind)) + "}"
        return words if len(words) <= 24 else "NAME"
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        return "|".join(part if isinstance(part, str) else _metavar(part) for part in parts)
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _words(kind: Any) -> str:
    """A type in words: "a number or one of beta"."""
    if _element(kind) is not None:
        return "whole numbers, as in 0,1,2 or 0-4" if _element(kind) is int else "names with commas between"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}" if len(get_args(kind)) > 1 else str(get_args(kind)[0])
    parts = [_words(part) for part in get_args(kind)]
    if parts:
        return " or ".join(parts)
    names = {int: "an integer", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}
    return names.get(kind, "a text")


def build(cls: type, values: Any, **others: Any) -> Any:
    """The dataclass from parsed values; others take their place."""
    types, given = get_type_hints(cls), {}
    for item in fields(cls):
        kind = types[item.name]
        if item.name == "options":
            given["options"] = _options(strategies.get(others.get("strategy", values.strategy)), values)
        elif is_dataclass(kind):
            given[item.name] = build(kind, values[item.name])  # type: ignore[arg-type]
        else:
            given[item.name] = others.get(item.name, values[item.name])
    return cls(**given)


def _options(strategy: Strategy, values: Any) -> Any:
    group = strategies.group(strategy)
    return None if group is None or strategy.options is None else build(strategy.options, values[group])
