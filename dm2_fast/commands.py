"""What each command of `dm2-fast` does with its options."""

from collections.abc import Callable, Sequence
from typing import Any

from dm2_fast import strategies
from dm2_fast.distributed import torchrun
from dm2_fast.experiment import RunConfig, run
from dm2_fast.info import InfoConfig, write_info
from dm2_fast.options import build, check_files, option_groups, parser
from dm2_fast.paper.report import ReportConfig, write_comparison_of, write_report
from dm2_fast.paper.study import StudyConfig, study
from dm2_fast.paper.sweep import SweepConfig, sweep
from dm2_fast.paper.table4 import Table4Config, table4
from dm2_fast.selecting.command import SelectConfig, select_from_files
from dm2_fast.selecting.config import MergeConfig, shard_of
from dm2_fast.terminal import Printer


def carry_out(command: str, description: str, given: Sequence[str]) -> None:
    """Run a command with these arguments; description is the first line of its help.

    Raises:
        ValueError, TypeError, OSError: what the user can mend, in one line.
        SystemExit: an argument is wrong, which has been said, or was `--help`.
    """
    if command == "bench" and given[:1] != ["table4"]:
        command = "bench study"
    configs, act = _COMMANDS[command]
    groups = option_groups(given)
    check_files(given, configs, groups)
    values = parser(command, description, configs, groups).parse_args(list(given))
    for one, several in (("--seed", "--seeds"), ("--strategy", "--strategies")):
        if {one, several} <= {argument.partition("=")[0] for argument in given}:
            raise ValueError(f"use {one} or {several}, not both")
    _check_options_are_used(given, groups, values)
    act(values, Printer())


def _run(values: Any, echo: Callable[[str], None]) -> None:
    several = build(SweepConfig, values)
    if several.seeds is None and several.strategies is None:
        result = run(build(RunConfig, values), echo=echo)
        if result.to_label is None:
            for name, attack in (("accuracy_pgd", "PGD-20"), ("accuracy_autoattack", "AutoAttack")):
                if name in result.rounds[-1].evaluation.others:
                    echo(f"the last model under {attack}: {result.rounds[-1].evaluation.others[name]:.2%}")
            files = "curve.png, rounds.csv, selected.csv, round_NN.png (what was chosen), model.pt, config.yaml"
            echo(f"\n{result.folder}: {files}")
        else:
            rows = len(result.chosen[-1])
            echo(f"\n{result.to_label}: fill in the label of {'its row' if rows == 1 else f'each of the {rows} rows'}")
            echo("(the images are in to_label_*.png beside it), then give the same command again.")
        return
    configs = [
        build(RunConfig, values, strategy=strategy, seed=seed)
        for strategy in several.strategies or [values.strategy]
        for seed in several.seeds or [values.seed]
    ]
    echo(f"\n{sweep(configs, values.output, echo=echo)}: report.csv, report.png")


def _select(values: Any, echo: Callable[[str], None]) -> None:
    folder = select_from_files(build(SelectConfig, values), echo=echo)
    if values.shard is not None:
        echo(f"\n{folder.parent}")
    elif torchrun.speaks():
        echo(f"\n{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def _merge(values: Any, echo: Callable[[str], None]) -> None:
    files = sorted(values.shards.glob("*/config.yaml"))
    if len(files) != 1:
        raise ValueError(f"{values.shards} is no folder of shards: name the one that dm2-fast select --shard wrote")
    given = ["--config", str(files[0])]
    asked = parser("select", "", (SelectConfig,), option_groups(given)).parse_args(given)
    output = values.output or values.shards.with_name(values.shards.name.removesuffix(".parts"))
    config, (_, parts) = build(SelectConfig, asked, shard=None, output=output), shard_of(asked.shard)
    folder = select_from_files(config, echo=echo, merge=(files[0].parent, parts))
    echo(f"\n{folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")


def _bench(values: Any, echo: Callable[[str], None]) -> None:
    folder = table4(build(Table4Config, values), echo=echo)
    echo(f"\n{folder}: table4.md, table4.csv, table4.png, timings.csv (every single one)")


def _study(values: Any, echo: Callable[[str], None]) -> None:
    folder = study(build(StudyConfig, values), echo=echo)
    echo(f"\n{folder}: {', '.join(sorted(file.name for file in folder.iterdir() if not file.name.startswith('.')))}")


def _report(values: Any, echo: Callable[[str], None]) -> None:
    config = build(ReportConfig, values)
    if config.against is None:
        folder = write_report(config.folders, config.output, echo=echo)
        echo(f"\n{folder}: report.csv, report.png")
        return
    folder = write_comparison_of(config, echo=echo)
    echo(f"\n{folder}: comparison.md, comparison.csv and pictures")


def _info(values: Any, echo: Callable[[str], None]) -> None:
    if not write_info(build(InfoConfig, values), echo):
        raise SystemExit(1)


# The dataclasses of each command's options, and what it does with their values.
_COMMANDS: dict[str, tuple[tuple[type, ...], Callable[[Any, Callable[[str], None]], None]]] = {
    "run": ((RunConfig, SweepConfig), _run),
    "select": ((SelectConfig,), _select),
    "merge": ((MergeConfig,), _merge),
    "bench": ((Table4Config,), _bench),
    "bench study": ((StudyConfig,), _study),
    "report": ((ReportConfig,), _report),
    "info": ((InfoConfig,), _info),
}


def _check_options_are_used(given: Sequence[str], groups: dict[str, type], values: Any) -> None:
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
