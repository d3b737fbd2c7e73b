import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, names)
    assert len(names["picked"].indices) == 20
    assert len(names["margin"].indices) == 20
    assert (tmp_path / names["result"].folder / "curve.png").exists()
    assert "dm2 on digits" in capsys.readouterr().out


def test_files_that_the_readme_names_exist() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"!\[.*?\]\((.*?)\)|`((?:dm2_fast|csrc|kernels|docs)/[\w./]*)`", README):
        assert (root / (name[0] or name[1])).exists()
