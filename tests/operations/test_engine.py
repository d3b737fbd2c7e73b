"""The engine of csrc/engine.hpp returns what the plain loop returns, bit for bit, and its filter drops no neighbour."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dm2_fast
from dm2_fast import _C
from dm2_fast.operations.knn import weights

NONE = np.iinfo(np.int64).max


def gauss(rng, m, d):
    return rng.standard_normal((m, d))


def relu(rng, m, d):
    return np.maximum(rng.standard_normal((m, 6)) @ rng.standard_normal((6, d)) + 0.3 * gauss(rng, m, d), 0)


def constant(rng, m, d):
    return np.full((m, d), 0.7)


def duplicates(rng, m, d):
    return gauss(rng, 7, d)[rng.integers(0, 7, m)]


def zero_rows(rng, m, d):
    return gauss(rng, m, d) * (rng.random((m, 1)) < 0.7)


def outlier_entry(rng, m, d):
    x = relu(rng, m, d)
    x[rng.integers(m), rng.integers(d)] = 1e9
    return x


def outlier_row(rng, m, d):
    x = relu(rng, m, d)
    x[rng.integers(m)] *= -1e6
    return x


def scales(rng, m, d):
    return relu(rng, m, d) * rng.choice([1e-18, 1e-30, 1.0, 1e18], (m, 1))


def lattice(rng, m, d):
    x = np.zeros((m, d))
    for row in x:
        row[rng.permutation(d)[: 4 if d >= 4 else 1]] = rng.choice([-1, 1], 4 if d >= 4 else 1)
    return x


def binary(rng, m, d):
    return (rng.random((m, d)) < 0.5).astype(float)


def one_hot(rng, m, d):
    return np.eye(d)[rng.integers(0, d, m)]


def clusters(rng, m, d):
    return gauss(rng, 5, d)[rng.integers(0, 5, m)] + 1e-6 * gauss(rng, m, d)


def on_the_bound(rng, m, d, h=0.001):
    """Rows c s with s = +-1: L2 is L1 / sqrt(d) and group sums lose nothing. c is at or beside an edge of the grid."""
    q = rng.integers(0, 255, m)
    beside = q + 0.5 + rng.choice([1e-4, 1e-3], m) * rng.choice([-1, 1], m)
    c = np.choose(rng.integers(0, 3, m), [q, beside, 255 * rng.random(m)])
    c[:2] = [0, 255][: len(c)]
    return c[:, None] * h * rng.choice([-1.0, 1.0], d)


KINDS = [gauss, relu, constant, duplicates, zero_rows, outlier_entry, outlier_row, scales, lattice, binary, one_hot]
KINDS += [clusters, on_the_bound]


def unit_scale(x):
    norm = np.sqrt(np.square(x.astype(np.float64)).sum(1))
    return np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0).astype(x.dtype)


def leaf(x, k, metric="literal", queries=None, parts=1, scale=None, num_threads=2, **options):
    """_C.knn over the rows in parts, on one running best."""
    d, ids = x.shape[1], np.arange(len(x))
    scale = unit_scale(x) if scale is None else scale
    asked = (x, scale, ids) if queries is None else (queries, unit_scale(queries), np.full(len(queries), -1))
    distances = np.full((len(asked[0]), k), np.inf, scale.dtype)
    indices = np.full(distances.shape, NONE)
    for part in np.array_split(ids, parts):
        rows = (x, scale, ids) if parts == 1 else (x[part[0] : part[-1] + 1], scale[part], part)
        _C.knn(*asked, *rows, distances, indices, *weights(metric, d), num_threads=num_threads, **options)  # type: ignore[call-arg, misc]
    return distances, indices


def assert_equal(got, want):
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_array_equal(got[0], want[0])


def wide_levels(d):
    """Bytes of the codes behind the 32-byte ones."""
    return [32 * 2**i for i in range(1, 20) if 32 * 2**i < d] + ([-(-d // 32) * 32] if d > 32 else [])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_equals_the_plain_loop(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m = draw(st.one_of(st.integers(2, 200), st.integers(500, 1100)))
    d = draw(st.one_of(st.integers(1, 130), st.sampled_from([255, 256, 257, 300])))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float64]))
    x = draw(st.sampled_from(KINDS))(rng, m, d).astype(dtype)
    metric = draw(st.sampled_from(["literal", "rms", "l1", "l2"]))
    k = draw(st.sampled_from([1, 2, 10, 40, 512, m - 1]))
    queries = draw(st.sampled_from([None, None, "same", "other"]))
    if queries is not None:
        queries = x[rng.integers(0, m, 70)] if queries == "same" else gauss(rng, 70, d).astype(dtype)
    most = m - (queries is None)
    k = min(k, most)
    want = leaf(x, k, metric, queries, levels="plain")
    got = leaf(
        x,
        k,
        metric,
        queries,
        parts=draw(st.sampled_from([1, 1, 3])) if m > 3 else 1,
        levels=draw(st.lists(st.sampled_from(wide_levels(d) or [32]), max_size=3, unique=True)),
        isa=draw(st.sampled_from(["auto", "generic"])),
        num_threads=draw(st.sampled_from([1, 2, 3, 7])),
    )
    assert_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_chosen_from_the_data(kind):
    x = kind(np.random.default_rng(5), 4000, 96).astype(np.float32)
    want = leaf(x, 10, levels="plain")
    assert_equal(leaf(x, 10), want)
    assert_equal(leaf(x, 10, isa="generic", num_threads=3), want)


@pytest.mark.parametrize("m", [2, 16, 127, 128, 129, 256, 300, 513, 650])
@pytest.mark.parametrize("kind", [gauss, constant, duplicates, lattice])
def test_rows_that_no_filter_helps_meet_each_other_once(kind, m):
    for dtype in (np.float32, np.float64):
        x = kind(np.random.default_rng(m), m, 20).astype(dtype)
        for k in {1, min(9, m - 1), m - 1}:
            want = leaf(x, k, "l2", levels="plain")
            for num_threads in (1, 2, 7):
                assert_equal(leaf(x, k, "l2", num_threads=num_threads), want)


@pytest.mark.parametrize(("m", "d", "k"), [(600, 513, 3), (300, 1023, 299), (150, 2049, 20), (80, 4095, 7)])
@pytest.mark.parametrize("kind", [relu, on_the_bound])
def test_many_dimensions(kind, m, d, k):
    x = kind(np.random.default_rng(d), m, d).astype(np.float32)
    want = leaf(x, k, levels="plain")
    assert_equal(leaf(x, k, levels=[wide_levels(d)[-1]]), want)
    assert_equal(leaf(x, k, levels=[128, 256], num_threads=1), want)


def bfloat16(x):
    """Rows cut to bfloat16: the float32 rows, and the int16 of their bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.int16)[:, 1::2].copy()
    return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32), bits


def layouts(x):
    """The same rows as callers hold them: (name, rows in float32, rows as they are)."""
    wide = np.zeros((2 * len(x), 3 * x.shape[1]), np.float32)
    wide[::2, ::3] = x
    half = x.astype(np.float16)
    yield "every third column", x, wide[::2, ::3]
    yield "columns", x, np.asfortranarray(x)
    yield "backwards", x, np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1]
    yield "float16", half.astype(np.float32), half
    yield "columns of float16", half.astype(np.float32), np.asfortranarray(half)
    yield "bfloat16", *bfloat16(x)
    yield "columns of bfloat16", bfloat16(x)[0], np.asfortranarray(bfloat16(x)[1])


@pytest.mark.parametrize("levels", [[64, 128], "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_converted_as_they_are_read(kind, levels):
    rng = np.random.default_rng(8)
    x = (kind(rng, 560, 117) * (1e-3 if kind in (outlier_entry, outlier_row, on_the_bound) else 1)).astype(np.float32)
    x[np.abs(x) > 6e4] = 6e4
    for name, dense, held in layouts(x):
        scale = unit_scale(dense)
        want = leaf(dense, 9, scale=scale, levels="plain")
        got = leaf(held, 9, scale=scale, levels=levels, parts=len(name) % 2 + 1, num_threads=3)
        np.testing.assert_array_equal(got[1], want[1], name)
        np.testing.assert_array_equal(got[0], want[0], name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [[64], "plain"])
def test_rows_with_two_factors(levels, dtype):
    x = relu(np.random.default_rng(9), 700, 70).astype(dtype)
    power = np.ldexp(dtype(1), np.random.default_rng(10).integers(-20, 90, len(x))).astype(dtype)
    scale = unit_scale(x)
    want = leaf(x, 9, scale=scale, levels="plain")
    for held in (x / power[:, None], np.asfortranarray(x / power[:, None])):
        for parts in (1, 2):
            got = leaf(held, 9, scale=np.stack([power, scale], 1), levels=levels, parts=parts)
            assert_equal(got, want)


@pytest.mark.parametrize("flush", [False, True])
def test_every_value_of_half_precision_is_widened_exactly(flush):
    bits = np.arange(2**16, dtype=np.uint16).reshape(64, 1024)
    half, brain = bits.view(np.float16), bits.view(np.int16)
    half_floats, brain_floats = half.astype(np.float32), (bits.astype(np.uint32) << 16).view(np.float32)
    ones = np.ones(64, np.float32)
    for held, floats in ((half, half_floats), (brain, brain_floats), (half[:, ::-1], half_floats[:, ::-1])):
        normal = np.isfinite(floats) & ((np.abs(floats) >= 2.0**-126) | (floats == 0))
        held, floats = np.where(normal, held, 0), np.where(normal, floats, 0)
        assert torch.set_flush_denormal(flush)
        try:
            out = np.full((64, 64), np.nan, np.float32)
            _C.pairwise(held, ones, np.ascontiguousarray(floats), ones, out, 1.0, 0.0, num_threads=1)
        finally:
            torch.set_flush_denormal(False)
        assert (out.diagonal() == 0).all()


def test_rows_of_another_type_than_scale():
    x = np.ones((5, 3), np.float32)
    for wrong in (x.astype(np.float64), x.astype(np.int32), x.view(np.int32), x.astype(np.int8), x.astype(np.uint16)):
        with pytest.raises((ValueError, TypeError), match="rows must be floats like scale|incompatible"):
            leaf(wrong, 2, scale=x[:, 0].copy())
    with pytest.raises(ValueError, match="rows must be floats like scale"):
        leaf(x.astype(np.float16), 2, scale=np.ones(5))


PEAK = """
import re
import numpy as np, torch, dm2_fast

def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

m, d, k = 6000, 640, 10
rng = np.random.default_rng(0)
x = np.maximum(rng.standard_normal((m, 6), np.float32) @ rng.standard_normal((6, d), np.float32), 0)
for rows in (x, x.astype(np.float16), np.asfortranarray(x), x * np.float32(1e-35)):
    dm2_fast.knn(rows[:2000], k)
    open("/proc/self/clear_refs", "w").write("5")  # forget the peak
    before = resident("VmRSS")
    dm2_fast.knn(rows, k)
    print(resident("VmHWM") - before)
"""


@pytest.mark.slow
def test_peak_memory():
    """A copy in float32 would be 4 bytes per element; codes may be 1.5, (k + 64) numbers go with each row."""
    m, d, k = 6000, 640, 10
    fixed = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}  # what is freed leaves the process
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=fixed)
    peaks = [int(line) for line in run.stdout.split()]
    assert len(peaks) == 4
    assert max(peaks) < 1.5 * m * d + 4 * m * (k + 64) + 2**23, peaks


@pytest.mark.parametrize("isa", ["auto", "generic"])
def test_more_neighbours_than_a_block_holds(isa):
    x = relu(np.random.default_rng(2), 2500, 40).astype(np.float32)
    assert_equal(leaf(x, 700, levels=[64], isa=isa), leaf(x, 700, levels="plain"))


def test_an_instruction_set_that_the_machine_lacks():
    message = r"isa must be one that this machine has \(auto, (.*, )?generic\), got 'mmx'"
    with pytest.raises(ValueError, match=message):
        leaf(np.ones((3, 4), np.float32), 1, isa="mmx")


def test_rows_that_are_not_normalised():
    rng = np.random.default_rng(3)
    x = np.concatenate([relu(rng, 300, 70), 1e-40 * gauss(rng, 100, 70), 1e18 * gauss(rng, 100, 70)]).astype(np.float32)
    ones = np.ones(len(x), np.float32)
    assert_equal(leaf(x, 9, scale=ones, levels=[64]), leaf(x, 9, scale=ones, levels="plain"))


def test_flushing_subnormals_changes_nothing():
    x = (2.0**-130 * gauss(np.random.default_rng(4), 600, 50)).astype(np.float32)
    ones = np.ones(len(x), np.float32)
    want = leaf(x, 9, scale=ones, levels="plain")
    assert torch.set_flush_denormal(True)
    try:
        got = leaf(x, 9, scale=ones, levels=[])
    finally:
        torch.set_flush_denormal(False)
    assert_equal(got, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["literal", "rms", "l1", "l2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_survives_its_own_distance(kind, metric, dtype):
    for seed, d in enumerate((1, 31, 128, 517)):
        x = kind(np.random.default_rng(seed), 90, d).astype(dtype)
        for clip in (1.0, 0.4):
            for scale in (unit_scale(x), np.ones(len(x), dtype)):
                assert _C.survives(x, scale, *weights(metric, d), clip=clip).all()


@pytest.mark.parametrize("h", [2.0**-10, 0.001])
@pytest.mark.parametrize("d", [32, 128, 512, 4096])
def test_the_bound_is_tight(d, h):
    x = on_the_bound(np.random.default_rng(d), 96, d, h).astype(np.float32)
    ones, w = np.ones(len(x), np.float32), weights("literal", d)
    assert _C.survives(x, ones, *w).all()
    assert not _C.survives(x, ones, *w, error=0.5).all((1, 2)).any(), "half the error passes at some level"
    if d == 4096:  # the slack is worth less than one step of a short code
        assert not _C.survives(x, ones, *w, slack=False).all(), "a bound without slack passes"


def test_through_the_front():
    x = torch.from_numpy(relu(np.random.default_rng(6), 1500, 128).astype(np.float32))
    want = dm2_fast.knn(x, 10, backend="torch")  # another order of summation
    for layout in (x, x.T.contiguous().T, x.repeat_interleave(2, 0)[::2]):
        distances, indices = dm2_fast.knn(layout, 10, num_threads=3)
        torch.testing.assert_close(distances, want[0])
        assert (indices == want[1]).float().mean() > 0.999
    distances, indices = dm2_fast.knn(x.half(), 10)
    assert_equal((distances.numpy(), indices.numpy()), [t.numpy() for t in dm2_fast.knn(x.half().float(), 10)])


@pytest.mark.parametrize("levels", [[], "plain"])
def test_progress_and_ctrl_c(levels):
    x = gauss(np.random.default_rng(7), 30000, 512).astype(np.float32)  # minutes, uninterrupted
    parts, several = [], threading.Event()

    def report(part):
        parts.append(part)
        if len(parts) == 5:
            several.set()

    def interrupt():
        several.wait()
        signal.raise_signal(signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    with pytest.raises(KeyboardInterrupt):
        leaf(x, 10, levels=levels, report=report)
    interrupter.join()
    assert parts == sorted(parts)
    assert all(0 <= part < 1 for part in parts)
