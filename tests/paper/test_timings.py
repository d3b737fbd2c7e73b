import csv
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from dm2_fast.paper.table4_picture import draw
from dm2_fast.paper.timings import Timing, markdown, read_timings, summarise, write_lines, write_timings

POOL = 600


def planted() -> list[Timing]:
    """Two methods that share a pass, one that needs none, three repeats each; each time is its own."""
    timings = [
        Timing("budget", 10, "pass", "features", 0, 0, 8.0, 50_000_000),
        Timing("budget", 10, "pass", "labelled", 0, 0, 0.5, 1_000_000),
        Timing("budget", 10, "pass", "perturb", 100, 0, 0.25, 2_000_000),
        Timing("budget", 10, "pass", "perturb", 200, 0, 0.75, 3_000_000),
    ]
    for method, needs in (("coreset", "features+labelled"), ("dm2-at", "features+perturb"), ("random", "")):
        for budget in (100, 200):
            for repeat, seconds in enumerate((3.0, 1.0, 200.0)):
                peak = 4_000_000 * (repeat + 1)
                timings.append(
                    Timing("budget", 10, "selection", method, budget, repeat, seconds * budget / 100, peak, needs)
                )
    timings += [Timing("classes", 1000, "selection", "coreset", 100, r, s, 7_000_000) for r, s in enumerate((4.0, 6.0))]
    return timings


def test_every_method_is_charged_with_its_passes_in_full_and_with_its_median_selection() -> None:
    lines = {(line.axis, line.method, line.budget): line for line in summarise(planted(), POOL)}
    assert len(lines) == 7
    selection = {budget: float(np.median([3.0, 1.0, 200.0])) * budget / 100 for budget in (100, 200)}
    forward = {
        ("coreset", 100): 8.0 + 0.5, ("coreset", 200): 8.0 + 0.5,
        ("dm2-at", 100): 8.0 + 0.25, ("dm2-at", 200): 8.0 + 0.75,
        ("random", 100): 0.0, ("random", 200): 0.0,
    }  # fmt: skip
    for (method, budget), expected in forward.items():
        line = lines["budget", method, budget]
        assert line.forward_seconds == expected
        assert line.selection_seconds == selection[budget]
        assert line.total_seconds == expected + selection[budget]
        assert line.samples_per_second == POOL / (expected + selection[budget])
        assert line.peak_megabytes == (12.0 if method == "random" else 50.0)
        assert line.classes == 10
    synthetic = lines["classes", "coreset", 100]
    assert (synthetic.forward_seconds, synthetic.selection_seconds, synthetic.total_seconds) == (None, 5.0, 5.0)
    assert (synthetic.classes, synthetic.peak_megabytes) == (1000, 7.0)


def test_a_pass_that_was_not_timed_is_missed() -> None:
    with pytest.raises(ValueError, match="the pass 'labelled', which coreset needs, was not timed"):
        summarise([t for t in planted() if t.name != "labelled"], POOL)


def test_timings_are_read_back_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "timings.csv"
    assert read_timings(file) == []
    write_timings(file, planted())
    assert read_timings(file) == planted()
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert read_timings(file) == planted()[:-1]


def test_the_table_is_written_for_people_and_for_programs(tmp_path: Path) -> None:
    lines = summarise(planted(), POOL)
    text = markdown(lines, ["some machine"])
    assert "- some machine\n" in text
    assert "| coreset | 100 | 8.50 | 3.00 | 11.5 | 50 | 52.2 |" in text
    assert "| random | 200 | 0 | 6.00 | 6.00 | 12 | 100 |" in text
    assert "## By classes: selection alone, a synthetic linear head" in text
    assert "| coreset | 1000 | 100 | 5.00 | 7 |" in text
    write_lines(tmp_path / "table4.csv", lines)
    with (tmp_path / "table4.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [line.method for line in lines]
    assert rows[-1]["forward_seconds"] == ""
    assert float(rows[0]["total_seconds"]) == 11.5
    draw(tmp_path / "table4.png", lines, "planted")
    assert matplotlib.image.imread(tmp_path / "table4.png").std() > 0.05
