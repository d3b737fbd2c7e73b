"""Where the parts of a selection that several processes make are kept until it is written."""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from dm2_fast import strategies
from dm2_fast.selecting.config import SelectConfig


def parts_folder(config: SelectConfig, output: Path) -> Path:
    """The folder for what is finished of this selection: another one where an option or an input file has changed."""
    same = replace(config, output=None, threads=None, device="auto", workers=0, shard=None)
    files = [config.pool, config.features, config.weights, config.labelled, config.logits, config.probabilities]
    files += [Path(config.head)] if config.head is not None else []
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file and file.is_file()]
    digest = hashlib.sha256(repr((same, stamps)).encode()).hexdigest()[:16]
    return output.with_name(f"{output.name}.parts") / digest


def write_config(config: SelectConfig, folder: Path) -> None:
    """Write config.yaml, from which the command can be given again."""
    import yaml  # of an extra

    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    options, group = values.pop("options"), strategies.group(strategies.get(config.strategy))
    values |= {"output": None} | ({} if group is None else {group: options})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
