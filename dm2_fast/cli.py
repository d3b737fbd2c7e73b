"""The command `dm2-fast`, built from the configuration dataclasses."""

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

import dm2_fast
from dm2_fast import plugins, strategies
from dm2_fast.experiment import RunConfig, models, run
from dm2_fast.experiment.data import sets
from dm2_fast.experiment.folder.files import read_yaml
from dm2_fast.info import InfoConfig, check_kernels, info
from dm2_fast.paper.report import ReportConfig, write_report
from dm2_fast.paper.sweep import SweepConfig, sweep
from dm2_fast.paper.table4 import Table4Config, table4
from dm2_fast.selecting.command import SelectConfig, select_from_files
from dm2_fast.strategy import Strategy


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one readable line for what the user can mend, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        groups = _option_groups(given)
    except ValueError as error:
        _fail(str(error))
    parsed = _parser(groups).parse_args(given)
    command, values = parsed.subcommand, parsed[parsed.subcommand]
    for one, several in (("--seed", "--seeds"), ("--strategy", "--strategies")):
        if {one, several} <= {argument.partition("=")[0] for argument in given}:
            _fail(f"use {one} or {several}, not both")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            _check_options_are_used(given, groups, values)
            _commands()[command][1](values)
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumed = "; the same command goes on where it stopped" if command in _RESUMABLE else ""
        print(f"dm2-fast: interrupted{resumed}", file=sys.stderr)
        raise SystemExit(130) from None


_RESUMABLE = ("run", "bench")


def _commands() -> dict[str, tuple[tuple[type, ...], Callable[[Namespace], None], str]]:
    """Each command: the dataclasses of its options, what it does with their values, and what that is in words."""
    return {
        "run": ((RunConfig, SweepConfig), _run, "Run active learning on a data set and write a folder of results."),
        "select": ((SelectConfig,), _select, "Choose the next samples to label from files of your own."),
        "bench": ((Table4Config,), _bench, "Time one acquisition of every method: the table that the paper calls 4."),
        "report": ((ReportConfig,), _report, "Compare runs: a table and a plot of mean and standard deviation."),
        "info": ((InfoConfig,), _info, "Say what is installed, which devices, backends and data sets there are."),
    }


def _run(values: Namespace) -> None:
    several = _build(SweepConfig, values)
    if several.seeds is None and several.strategies is None:
        result = run(_build(RunConfig, values), echo=_echo)
        if result.to_label is None:
            files = "curve.png, rounds.csv, selected.csv, round_NN.png (what was chosen), model.pt, config.yaml"
            print(f"\n{result.folder}: {files}")
        else:
            print(f"\n{result.to_label}: fill in the label of each of the {len(result.chosen[-1])} rows")
            print("(the images are in to_label_*.png beside it), then give the same command again.")
        return
    configs = [
        _build(RunConfig, values, strategy=strategy, seed=seed)
        for strategy in several.strategies or [values.strategy]
        for seed in several.seeds or [values.seed]
    ]
    print(f"\n{sweep(configs, values.output, echo=_echo)}: report.csv, report.png")


def _select(values: Namespace) -> None:
    folder = select_from_files(_build(SelectConfig, values), echo=_echo)
    print(f"\n{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def _bench(values: Namespace) -> None:
    folder = table4(_build(Table4Config, values), echo=_echo)
    print(f"\n{folder}: table4.md, table4.csv, table4.png, timings.csv (every single one)")


def _report(values: Namespace) -> None:
    config = _build(ReportConfig, values)
    folder = write_report(config.folders, config.output, echo=_echo)
    print(f"\n{folder}: report.csv, report.png")


def _info(values: Namespace) -> None:
    lines, agree = check_kernels() if values.check else ([], True)  # first: it decides whether Triton is interpreted
    print("\n".join(info(values.data_dir) + lines))
    if not agree:
        raise SystemExit(1)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"dm2-fast: warning: {message}", file=sys.stderr)


def _echo(line: str) -> None:
    print(line, flush=True)


def _fail(message: str) -> NoReturn:
    print(f"dm2-fast: error: {message}", file=sys.stderr)
    raise SystemExit(2) from None


class _Parser(ArgumentParser):
    """A parser that says what is wrong in one line."""

    option_types: dict[str, Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        key = re.search(r'key "([\w.]+)"|argument --([\w.-]+)', message)
        value = re.search(r"[Vv]alue: (.*)$", message)
        types = getattr(self, "option_types", {})
        name = (key[1] or key[2]).replace("-", "_") if key else ""
        if value and name in types:
            got = value[1].strip("'")
            message = f"--{name.replace('_', '-')} must be {_words(types[name])}, got {got}"
        _fail(" ".join(message.split()) + f" (see {self.prog} --help)")


class _Help(DefaultHelpFormatter):
    """The metavar already says what an option takes."""

    def _get_help_string(self, action: Any) -> str:
        return super()._get_help_string(action).replace("type: %(type)s, ", "").replace(", type: %(type)s", "")


# What stands for the value of an option in the help where its type does not say it.
_METAVARS = {
    "dataset": "{" + ",".join(sets.NAMES) + "}|FILE.npz",
    "model": "{" + ",".join(models.NAMES) + "}|MODULE:FUNCTION",
    "strategy": "{" + ",".join(strategies.names()) + "}|MODULE:FUNCTION",
    "dataset_sha256": "HEX",
}

_POSITIONAL = {"folders": "FOLDER", "table": "table4"}


def _option_groups(given: Sequence[str]) -> dict[str, type]:
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
    values: dict[str, list[str]] = {"--strategy": [], "--strategies": [], "--config": []}
    for argument, following in zip(given, [*given, ""][1:], strict=True):
        option, assigned, value = argument.partition("=")
        if option in values:
            values[option].append(value if assigned else following)
    named = values["--strategy"] + values["--strategies"]
    for file in map(Path, values["--config"]):
        try:
            content = read_yaml(file)
        except OSError:
            continue  # the parser says what is wrong with it
        for key in ("strategy", "strategies"):
            found = content.get(key)
            named += found if isinstance(found, list) else [str(found)]
    return [name.strip() for names in named for name in str(names).split(",")]


def _check_options_are_used(given: Sequence[str], groups: dict[str, type], values: Namespace) -> None:
    """Raise if the command line has an option of a strategy that is not chosen."""
    if "strategy" not in values:
        return
    chosen = values.get("strategies") or [values.strategy]
    used = {strategies.group(strategies.get(name)) for name in chosen}
    for argument in given:
        name, dot, _ = argument.removeprefix("--").partition(".")
        if dot and name.replace("-", "_") in set(groups) - used:
            option = argument.partition("=")[0]
            raise ValueError(f"{option} is an option of another strategy than {', '.join(chosen)}: leave it out")


def _parser(groups: dict[str, type]) -> ArgumentParser:
    parser = _Parser(
        prog="dm2-fast",
        description="Deep active learning with DM2 and DM2-AT.",
        usage="%(prog)s COMMAND",
        formatter_class=_Help,  # also of the commands
    )
    parser.add_argument("--version", action="version", version=f"dm2-fast {dm2_fast.__version__}")
    commands = parser.add_subcommands(metavar="COMMAND", title="commands")
    for name, (configs, _, description) in _commands().items():
        takes = {"report": "FOLDER... ", "bench": "table4 "}.get(name, "")
        command = _Parser(description=description, usage=f"dm2-fast {name} {takes}[options]")
        command.add_argument(
            "--config", action="config", metavar="FILE", help="YAML file with any of these options; later ones win."
        )
        command.option_types = {}
        for config in configs:
            command.option_types |= _add_options(command, config, groups)
        commands.add_subcommand(name, command, help=description[0].lower() + description[1:].rstrip("."))
        command.prog = f"dm2-fast {name}"
    return parser


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
        keywords: dict[str, Any] = {"type": kind, "metavar": _METAVARS.get(name) or _metavar(kind)}
        if name in _POSITIONAL:
            keywords["metavar"] = _POSITIONAL[name]
            if get_origin(kind) is list:
                keywords |= {"type": get_args(kind)[0], "nargs": "+"}
            parser.add_argument(name, help=help_of[item.name], **keywords)
            continue
        listed = _element(kind)
        if listed is not None:
            keywords["type"] = partial(_listed, listed)
        if kind is bool:
            keywords = {"action": ActionYesNo(no_prefix="no-")}
        default = item.default if item.default_factory is MISSING else item.default_factory()
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, default=default, help=help_of.get(item.name, ""), **keywords)
    if any(item.name == "options" for item in fields(cls)):
        nested = groups | nested
    for name, kind in nested.items():
        summary, _, rest = (docstring_parser.parse(kind.__doc__ or "").short_description or "").partition(".")
        group = parser.add_argument_group(summary, rest.strip() or None)
        option_types |= _add_options(group, kind, groups, f"{prefix}{name}.")
    return option_types


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
    words = value if isinstance(value, list) else str(value).split(",")
    if element is str:
        return list(strategies.names()) if words == ["all"] else [str(word).strip() for word in words]
    numbers: list[int] = []
    for word in map(str, words):
        first, dash, last = word.strip().partition("-")
        numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    return numbers


def _metavar(kind: Any) -> str:
    if _element(kind) is not None:
        return "N,N,..." if _element(kind) is int else "NAME,NAME,..."
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        return "|".join(part if isinstance(part, str) else _metavar(part) for part in parts)
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _words(kind: Any) -> str:
    """A type in words: "a number or one of beta"."""
    if _element(kind) is not None:
        return "whole numbers, as in 0,1,2 or 0-4" if _element(kind) is int else "names with commas between"
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    parts = [_words(part) for part in get_args(kind)]
    if parts:
        return " or ".join(parts)
    names = {int: "an integer", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}
    return names.get(kind, "a text")


def _build(cls: type, values: Namespace, **others: Any) -> Any:
    """The dataclass from parsed values; others take their place."""
    types, given = get_type_hints(cls), {}
    for item in fields(cls):
        kind = types[item.name]
        if item.name == "options":
            given["options"] = _options(strategies.get(others.get("strategy", values.strategy)), values)
        elif is_dataclass(kind):
            given[item.name] = _build(kind, values[item.name])  # type: ignore[arg-type]
        else:
            given[item.name] = others.get(item.name, values[item.name])
    return cls(**given)


def _options(strategy: Strategy, values: Namespace) -> Any:
    group = strategies.group(strategy)
    return None if group is None or strategy.options is None else _build(strategy.options, values[group])
