"""The short form of the fuzzers: the same cases every time, within two minutes."""

import inspect

import pytest
from fuzz.calls import FUNCTIONS
from fuzz.run import run

import dm2_fast


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # what is damaged or wrong may be warned of
@pytest.mark.parametrize(
    ("name", "cases"), [("engine", 600), ("calls", 1500), ("threads", 8), ("files", 60), ("kills", 4)]
)
def test_cases_of_seeds_that_are_known(name: str, cases: int) -> None:
    count, findings = run(name, 0, cases, None)
    assert count == cases
    assert not findings, findings[0]


def test_every_public_function_is_called_with_wrong_arguments() -> None:
    public = {name for name in dm2_fast.__all__ if inspect.isfunction(getattr(dm2_fast, name))}
    assert public - {name.partition(" ")[0] for name in FUNCTIONS} == {"run"}  # its arguments are those of RunConfig
