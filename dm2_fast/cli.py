"""The command `dm2-fast`, built from the configuration dataclasses."""

import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter, Namespace

import dm2_fast
from dm2_fast import strategies
from dm2_fast.experiment import RunConfig, SelectConfig, data, models, run, select_from_files
from dm2_fast.experiment.info import InfoConfig, check_kernels, info
from dm2_fast.experiment.report import ReportConfig, write_report
from dm2_fast.experiment.sweep import SweepConfig, sweep
from dm2_fast.experiment.table4 import Table4Config, table4


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one readable line for what the user can mend, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser().parse_args(given)
    for one, several in (("--seed", "--seeds"), ("--strategy", "--strategies")):
        if {one, several} <= {argument.partition("=")[0] for argument in given}:
            _fail(f"{several} takes the place of {one}, got both")
    configs, execute, _ = _commands()[parsed.subcommand]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            execute(*(_build(config, parsed[parsed.subcommand]) for config in configs))
    except (ValueError, TypeError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumed = "; the same command goes on where it stopped" if parsed.subcommand in _RESUMABLE else ""
        print(f"dm2-fast: interrupted{resumed}", file=sys.stderr)
        raise SystemExit(130) from None


_RESUMABLE = ("run", "bench")


def _commands() -> dict[str, tuple[tuple[type, ...], Callable[..., None], str]]:
    """Each command: the dataclasses of its options, what it does with them, and what that is in words."""
    return {
        "run": ((RunConfig, SweepConfig), _run, "Run active learning on a data set and write a folder of results."),
        "select": ((SelectConfig,), _select, "Choose the next samples to label from files of your own."),
        "bench": ((Table4Config,), _bench, "Time one acquisition of every method: the table that the paper calls 4."),
        "report": ((ReportConfig,), _report, "Compare runs: a table and a plot of mean and standard deviation."),
        "info": ((InfoConfig,), _info, "Say what is installed, which devices, backends and data sets there are."),
    }


def _run(config: RunConfig, several: SweepConfig) -> None:
    if several.seeds is None and several.strategies is None:
        result = run(config, echo=_echo)
        if result.to_label is None:
            files = "curve.png, rounds.csv, selected.csv, round_NN.png (what was chosen), model.pt, config.yaml"
            print(f"\n{result.folder}: {files}")
        else:
            print(f"\n{result.to_label}: fill in the label of each of the {len(result.chosen[-1])} rows")
            print("(the images are in to_label_*.png beside it), then give the same command again.")
        return
    seeds = [str(config.seed)] if several.seeds is None else several.seeds.split(",")
    names = [config.strategy] if several.strategies is None else several.strategies.split(",")
    wrong = [seed for seed in seeds if not seed.strip().isdecimal()]
    if wrong:
        raise ValueError(f"seeds must be whole numbers with commas between, got {several.seeds!r}")
    folder = sweep(config, [int(seed) for seed in seeds], [name.strip() for name in names], echo=_echo)
    print(f"\n{folder}: report.csv, report.png")


def _select(config: SelectConfig) -> None:
    folder = select_from_files(config, echo=_echo)
    print(f"\n{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def _bench(config: Table4Config) -> None:
    folder = table4(config, echo=_echo)
    print(f"\n{folder}: table4.md, table4.csv, table4.png, timings.csv (every single one)")


def _report(config: ReportConfig) -> None:
    folder = write_report(config.folders, config.output, echo=_echo)
    print(f"\n{folder}: report.csv, report.png")


def _info(config: InfoConfig) -> None:
    lines, agree = check_kernels() if config.check else ([], True)  # first: it decides whether Triton is interpreted
    print("\n".join(info(config.data_dir) + lines))
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
        key, value = re.search(r'key "([\w.]+)"', message), re.search(r"[Vv]alue: (.*)$", message)
        types = getattr(self, "option_types", {})
        if key and value and key[1] in types:
            message = f"--{key[1].replace('_', '-')} must be {_words(types[key[1]])}, got {value[1]}"
        _fail(" ".join(message.split()) + f" (see {self.prog} --help)")


class _Help(DefaultHelpFormatter):
    """The metavar already says what an option takes."""

    def _get_help_string(self, action: Any) -> str:
        return super()._get_help_string(action).replace("type: %(type)s, ", "").replace(", type: %(type)s", "")


# What stands for the value of an option in the help where its type does not say it.
_METAVARS = {
    "dataset": "{" + ",".join(data.NAMES) + "}|FILE.npz",
    "model": "{" + ",".join(models.NAMES) + "}|MODULE:FUNCTION",
    "strategy": "{" + ",".join(strategies.names()) + "}|MODULE:FUNCTION",
    "dataset_sha256": "HEX",
    "seeds": "N,N,...",
    "budgets": "N,N,...",
    "classes": "N,N,...",
    "methods": "NAME,NAME,...",
    "strategies": "NAME,NAME,...",
}

_POSITIONAL = {"folders": "FOLDER", "table": "table4"}


def _parser() -> ArgumentParser:
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
            command.option_types |= _add_options(command, config)
        commands.add_subcommand(name, command, help=description[0].lower() + description[1:].rstrip("."))
        command.prog = f"dm2-fast {name}"
    return parser


def _add_options(parser: Any, cls: type, prefix: str = "") -> dict[str, Any]:
    """An option per field, with its help from the class's docstring; nested ones are groups. Returns the types."""
    option_types: dict[str, Any] = {}
    documented = docstring_parser.parse(cls.__doc__ or "")
    help_of = {parameter.arg_name: " ".join((parameter.description or "").split()) for parameter in documented.params}
    types = get_type_hints(cls)
    for item in sorted(fields(cls), key=lambda item: is_dataclass(types[item.name])):
        name, kind = f"{prefix}{item.name}", types[item.name]
        if is_dataclass(kind):
            summary, _, rest = (docstring_parser.parse(kind.__doc__ or "").short_description or "").partition(".")
            group = parser.add_argument_group(summary, rest.strip() or None)
            option_types |= _add_options(group, kind, f"{name}.")  # type: ignore[arg-type]
            continue
        option_types[name] = kind
        if name in _POSITIONAL:
            several: dict[str, Any] = {"nargs": "+"} if get_origin(kind) is list else {}
            parser.add_argument(
                name,
                type=get_args(kind)[0] if several else kind,
                metavar=_POSITIONAL[name],
                help=help_of[item.name],
                **several,
            )
            continue
        option = f"--{name.replace('_', '-')}"
        if kind is bool:
            action = ActionYesNo(no_prefix="no-")
            parser.add_argument(option, action=action, default=item.default, help=help_of[item.name])
            continue
        metavar = _METAVARS.get(name) or _metavar(kind)
        parser.add_argument(option, type=kind, default=item.default, metavar=metavar, help=help_of[item.name])
    return option_types


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    parts = [part for part in get_args(kind) if part is not type(None)]
    if parts:
        return "|".join(part if isinstance(part, str) else _metavar(part) for part in parts)
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "NAME")


def _words(kind: Any) -> str:
    """A type in words: "a number or one of beta"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    parts = [_words(part) for part in get_args(kind)]
    if parts:
        return " or ".join(parts)
    names = {int: "an integer", float: "a number", bool: "true or false", Path: "a path", type(None): "null"}
    return names.get(kind, "a text")


def _build(cls: type, values: Namespace) -> Any:
    """The dataclass from parsed values."""
    types = get_type_hints(cls)
    nested = {name: kind for name, kind in types.items() if is_dataclass(kind)}
    return cls(
        **{
            item.name: _build(nested[item.name], values[item.name]) if item.name in nested else values[item.name]  # type: ignore[arg-type]
            for item in fields(cls)
        }
    )
