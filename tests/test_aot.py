"""Every kernel compiles for the GPUs that matter, without one, and keeps its tile in registers."""

import json
import os
import subprocess
import sys

import pytest

ARCHITECTURES = (80, 90, 100)

# Runs in a process of its own: what was imported to be interpreted cannot be compiled.
COMPILE = """
import importlib, json, os, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

knn, mix, confidence = (importlib.import_module("dm2_fast.kernels." + name) for name in ("knn", "mix", "confidence"))
cuobjdump = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def kernel(fn, types, aligned, constants, config):
    config = dict(config)
    warps = config.pop("num_warps")
    constants = constants | config
    names = fn.arg_names
    types = {n: t for t, *group in map(str.split, types) for n in group}
    source = ASTSource(
        fn=fn,
        signature={n: "constexpr" if n in constants else types[n] for n in names},
        constexprs={(names.index(n),): value for n, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]]
               for n in names if types.get(n, "").startswith("*") or n in aligned},
    )
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return lambda arch: triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def distances(dtype):
    return [f"*{dtype} q_ptr x_ptr", "*fp32 q_scale_ptr x_scale_ptr best_ptr out_ptr",
            "*i64 q_ids_ptr x_ids_ptr ids_ptr", "i32 M N D K stride_q stride_x", "fp32 w1 w2"]


def mixing(dtype, out):
    return [f"*{dtype} inputs_ptr", f"*{out} out_ptr", "*i64 indices_ptr", "*fp32 coefficients_ptr mean_ptr std_ptr",
            "i32 WIDTH TERMS stride_m channel_stride CHANNELS"]


even, nobody = ("D", "stride_q", "stride_x"), {"NOBODY": knn._NOBODY.value}
block = {"BLOCK": 1024, "num_warps": 4}
kernels = {
    "pairwise": kernel(knn._pairwise_kernel, distances("fp32"), even, {}, knn._config(2)),
    "mix uint8": kernel(mix._mix_kernel, mixing("u8", "fp32"), ("WIDTH", "stride_m"),
                        {"PIXELS": True, "NORMALIZE": True}, block),
    "mix fp16": kernel(mix._mix_kernel, mixing("fp16", "fp16"), ("WIDTH", "stride_m"),
                       {"PIXELS": False, "NORMALIZE": False}, block),
    "knn 16": kernel(knn._knn_kernel, distances("fp32"), even, nobody | {"K_PAD": 16}, knn._config(16)),
    "entropy": kernel(confidence._uncertainty_kernel, ["*fp32 logits_ptr out_ptr", "i32 N C stride_n"], (),
                      {"KIND": confidence._KINDS["entropy"], "BLOCK_C": 16}, {"BLOCK_N": 256, "num_warps": 4}),
}
usage = {}
for name in sys.argv[2:]:
    for arch in json.loads(sys.argv[1]):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernels[name](arch).asm["cubin"])
            file.flush()
            command = [cuobjdump, "--dump-resource-usage", file.name]
            text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage[f"{name} sm_{arch}"] = [int(re.search(what + r":(\\d+)", text)[1]) for what in ("REG", "STACK")]
print(json.dumps(usage))
"""
KERNELS = ("knn 16", "pairwise", "mix uint8", "mix fp16", "entropy")


@pytest.fixture(scope="module")
def usage() -> dict[str, list[int]]:
    """(registers, bytes of stack) a thread of every kernel on every architecture."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(ARCHITECTURES), *KERNELS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_kernel_compiles_and_spills_nothing(usage: dict[str, list[int]], kernel: str, arch: int) -> None:
    registers, stack = usage[f"{kernel} sm_{arch}"]
    assert 0 < registers <= 255
    assert stack == 0
