from pathlib import Path

import pytest

from dm2_fast.plugins import is_plugin, load


def test_a_function_is_found_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_parts.py").write_text("def make():\n    return 'mine'\n")
    monkeypatch.chdir(tmp_path)
    assert load("my_parts:make")() == "mine"
    assert load("os.path:join")("a", "b") == "a/b"
    assert is_plugin("my_parts:make")
    assert not is_plugin("cnn")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("json", "must be named package.module:function, got 'json'"),
        (":dumps", "must be named package.module:function, got ':dumps'"),
        ("nowhere.at_all:make", "no module 'nowhere' for 'nowhere.at_all:make'"),
        ("json:nothing", "module json has no function 'nothing'"),
    ],
)
def test_a_name_without_a_function_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(name)


def test_what_the_user_s_module_lacks_is_reported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking.py").write_text("import not_there_at_all\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        load("lacking:make")
