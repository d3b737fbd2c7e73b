import sys
from importlib import metadata

import pytest
import torch

from dm2_fast.experiment import machine


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/anywhere/bin/dm2-fast", "run", "--output", "a b"], "dm2-fast run --output 'a b'"),
        (["/anywhere/dm2_fast/__main__.py", "info"], "python -m dm2_fast info"),
        (["/anywhere/benches/table4.py", "--limit", "8"], "python benches/table4.py --limit 8"),
    ],
)
def test_the_command_can_be_typed_again(argv: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert machine.command() == said
    lines = machine.header(torch.device("cpu")).splitlines()
    assert lines[0] == f"- `{said}`"
    assert all(line.startswith("- ") for line in lines)
    assert f"torch {metadata.version('torch')}" in lines[2]
    assert "/anywhere" not in "".join(lines)
