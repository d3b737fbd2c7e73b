"""What the benches measure with: a fresh process, seconds and peak memory."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest

from dm2_fast.paper.clock import measured


@pytest.fixture(autouse=True)
def _benches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benches")


def test_a_fresh_process_returns_raises_and_dies() -> None:
    from process import in_fresh_process

    assert in_fresh_process(math.pow, 2.0, 5.0) == 32
    assert in_fresh_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="math domain error"):
        in_fresh_process(math.sqrt, -1.0)
    with pytest.raises(RuntimeError, match="the process of _exit died: it crashed, or was killed"):
        in_fresh_process(os._exit, 3)


def test_seconds_and_peak_memory_are_those_of_the_call() -> None:
    from process import in_fresh_process  # so that nothing else frees memory meanwhile

    result, seconds, peak = in_fresh_process(measured, _ones)
    assert result == 2**23
    assert seconds >= 0.05
    assert 60 * 2**20 < peak < 100 * 2**20
    assert in_fresh_process(measured, _nothing)[2] < 30 * 2**20


def _ones() -> int:
    time.sleep(0.05)
    return int(np.ones(2**23).sum())  # 64 MB, gone at the end


def _nothing() -> None: ...
