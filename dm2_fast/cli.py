"""The command `dm2-fast`. What a command needs is imported when it is called, so that help is there at once."""

import difflib
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import dm2_fast
from dm2_fast.extras import MissingExtra

COMMANDS = {
    "run": "Run active learning on a data set and write a folder of results.",
    "select": "Choose the next samples to label from files of your own.",
    "merge": "Put the shards of a selection together.",
    "bench": "Run a study (probe, table1, table2, table3, table5, figure1, figure4), or time every method (table4).",
    "report": "Compare runs: a table and a plot of mean and standard deviation.",
    "info": "Say what is installed, which devices, backends and data sets there are.",
}
_RESUMABLE = ("run", "bench")
# What a message for Python says to do, and how a command says it.
_AS_OPTIONS = {
    "ties='random'": "--ties random",
    "multilabel='mean'": "--multilabel mean",
    "these_are_logits=True": "--these-are-logits",
    "options=DM2Config(space='features')": "--dm2.space features",
    "DM2Config(recall=0.95)": "--dm2.recall 0.95",
    "or dm2_fast.logits_of(probabilities)": "or use --probabilities",
    "logits=, probabilities= or head= to Round.from_arrays": "--logits, --probabilities or --head",
    "pass it and its samples to dm2_fast.select": "use --model and --pool",
    "head=(weight, bias) to Round.from_arrays, or a model to dm2_fast.select": "--head, or use --model and --pool",
    "features= to Round.from_arrays": "--features",
    "labelled_features= with": "--labelled with",
    "labelled= with": "--labelled with",
    "labels= with those of": "--labelled with the labels of",
    "with head=...": "with --head",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 and one readable line for what the user can mend, 130 for Ctrl-C."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["--version"]:
        print(f"dm2-fast {dm2_fast.__version__}")
        return
    if given and given[0] in ("-h", "--help"):
        print(_overview())
        return
    if not given:
        _fail(f"give a command: {', '.join(COMMANDS)} (see dm2-fast --help)")
    command, *rest = given
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        _fail(f"no command {command!r}: {meant} (see dm2-fast --help)")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            if given == ["info"]:  # what is missing can be asked without what options need
                from dm2_fast.info import InfoConfig, write_info
                from dm2_fast.terminal import Printer

                write_info(InfoConfig(), Printer())
            else:
                from dm2_fast import commands

                commands.carry_out(command, COMMANDS[command], rest)
    except RuntimeError as error:
        from dm2_fast.distributed.group import Lost
        from dm2_fast.plugins import UsersError

        if isinstance(error, Lost):
            _fail(f"{error}; the same command goes on with what was finished", lost=True)
        if not isinstance(error, UsersError):
            raise
        _fail(error.told())
    except (ValueError, TypeError, OSError, MissingExtra) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        resumed = "; the same command goes on where it stopped" if command in _RESUMABLE else ""
        print(f"dm2-fast: interrupted{resumed}", file=sys.stderr)
        raise SystemExit(130) from None


def _overview() -> str:
    """What `dm2-fast --help` prints."""
    width = min(shutil.get_terminal_size().columns - 2, 98)
    column = max(map(len, COMMANDS)) + 4
    commands = [
        textwrap.fill(what, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
        for name, what in COMMANDS.items()
    ]
    after = textwrap.fill("dm2-fast COMMAND --help names the options of a command.", width)
    return "\n".join(
        ["usage: dm2-fast COMMAND [options]", "", "Deep active learning with DM2 and DM2-AT.", "", *commands, "", after]
    )


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    if os.environ.get("RANK", "0") != "0":  # torchrun started this process, and another speaks
        return
    print(f"dm2-fast: warning: {_as_options(str(message))}", file=sys.stderr)


def _fail(message: str, lost: bool = False) -> NoReturn:
    if "RANK" in os.environ and "torch" in sys.modules:
        from dm2_fast.distributed import torchrun

        if not torchrun.first_to_fail(lost):
            raise SystemExit(2) from None
    print(f"dm2-fast: error: {_as_options(message)}", file=sys.stderr)
    raise SystemExit(2) from None


def _as_options(message: str) -> str:
    for python, option in _AS_OPTIONS.items():
        message = message.replace(python, option)
    return message
