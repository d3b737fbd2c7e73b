"""Every kernel compiles for the GPUs that matter, without one, and keeps to its floor in the machine code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # it compiles every kernel for every target

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
REGISTERS = int(0.9 * 255)  # of a thread: with room to spare, so that another compiler does not spill
KERNELS = (
    "knn",
    "knn of lists",
    "filter",
    "pairwise",
    "mix u8",
    "mix fp16",
    "entropy of 10",
    "probe of 10",
    "probe of 100",
)
SMALLEST_SHARED_MEMORY = 48 * 1024  # of a program on any GPU that Triton serves
Costs = dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def costs() -> Costs:
    """benches/static_cost.py in a process of its own: what was imported to be interpreted cannot be compiled."""
    script = Path(__file__).parents[2] / "benches" / "static_cost.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "--json", "--kernel", *KERNELS, "--target", *TARGETS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr
    return {(row["kernel"], row["target"]): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_compiles_spills_nothing_and_fits_any_device(costs: Costs, kernel: str, target: str) -> None:
    cost = costs[kernel, target]
    assert 0 < cost["registers"] <= REGISTERS
    assert cost["stack"] == 0
    assert cost["shared"] <= SMALLEST_SHARED_MEMORY


@pytest.mark.parametrize("kernel", ["knn", "knn of lists", "pairwise"])
def test_the_inner_loop_of_the_distance_is_near_its_floor_of_three(costs: Costs, kernel: str) -> None:
    instructions = costs[kernel, "sm_90"]["instructions"]
    assert 3 <= instructions["float32"] <= 3.6
    assert instructions["float32"] < instructions["all"] <= 4.2


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100"])
def test_the_filter_compares_four_bytes_by_one_instruction(costs: Costs, target: str) -> None:
    cost = costs["filter", target]
    pairs = 64 * 64 // (8 * 32)  # of a thread
    assert cost["opcodes"]["VABSDIFF4.U8.ACC"] == pairs * 8  # 8 words of four dimensions
    assert cost["instructions"]["all"] <= 0.55


@pytest.mark.parametrize("target", TARGETS)
def test_the_search_computes_distances_alike_with_and_without_lists(costs: Costs, target: str) -> None:
    assert costs["knn of lists", target]["arithmetic"] == costs["knn", target]["arithmetic"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["knn", "pairwise"])
def test_rows_reach_the_tile_by_asynchronous_copies_of_16_bytes(costs: Costs, kernel: str, target: str) -> None:
    assert any(access.startswith("LDGSTS") and access.endswith(".128") for access in costs[kernel, target]["global"])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", ["mix u8", "mix fp16"])
def test_mixing_reads_and_writes_16_bytes_at_a_time(costs: Costs, kernel: str, target: str) -> None:
    accesses = costs[kernel, target]["global"]
    assert any(access.startswith("LDG") and ".128" in access for access in accesses)
    assert [access for access in accesses if access.startswith("STG")] == ["STG.E.128"]
