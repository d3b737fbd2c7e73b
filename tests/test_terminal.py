"""What the commands print in a narrow terminal."""

import pytest

from dm2_fast.terminal import Printer

TABLE = [
    "| strategy | labelled | accuracy (%) | selection (s) |",
    "| -------- | -------- | ------------ | ------------- |",
    "| random   |          | 8.75 ± 1.77  |               |",
    "| dm2      | 22       | 23.75 ± 8.84 | 0.4           |",
]
ROUNDS = ["round  labelled  accuracy  under FGSM", "    0        12    17.50%      15.00%"]


def printed(
    lines: list[str], columns: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    echo = Printer()
    for line in lines:
        echo(line)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [200, None])
def test_what_fits_and_what_no_terminal_shows_is_printed_as_it_is(
    columns: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [*ROUNDS, "", *TABLE, "word " * (30 if columns else 300) + "end", "a\nb", *ROUNDS]
    assert printed(lines, columns, capsys, monkeypatch) == "\n".join(lines).split("\n")


def test_a_table_that_does_not_fit_is_told_row_by_row(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(["dm2 on digits", *ROUNDS, "", *TABLE], 30, capsys, monkeypatch) == [
        "dm2 on digits",
        "round 0, labelled 12, accuracy",
        "  17.50%, under FGSM 15.00%",
        "",
        "strategy random, accuracy (%)",
        "  8.75 ± 1.77",
        "strategy dm2, labelled 22,",
        "  accuracy (%) 23.75 ± 8.84,",
        "  selection (s) 0.4",
    ]


def test_a_sentence_is_broken_between_words_and_stays_in_its_column(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        "  torch      no GPU: torch sees none",
        "  one,  two,  3  and  four,  five,  six,  seven",
        "a long-named one",
    ]
    assert printed(lines, 30, capsys, monkeypatch) == [
        "  torch      no GPU: torch",
        "             sees none",
        "  one,  two,  3  and  four,",
        "        five,  six,  seven",
        "a long-named one",
    ]
