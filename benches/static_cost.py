"""What the Triton kernels cost on GPUs that are not here: compiled by the real assembler, counted in the machine code.

    python benches/static_cost.py [--json] [--measure] [--kernel NAME ...] [--target sm_90 ...] [--join FILE ...]

For every kernel as it is launched, on every target: registers, stack and shared memory, the warps that an SM holds, the
instructions of the inner loop, and the time below which the kernel cannot run: the slowest of the loop's float32
instructions through the pipes, all its instructions through the issue slots, and the bytes through the memory, each
array once but for what mixing gathers. Nothing here was measured on a GPU, where a run takes longer: loops wait, and
what is outside the inner loop is not counted. With --measure the problems also run on the CUDA device that is there.
"""

import argparse
import importlib
import json
import math
import os
import re
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dm2_fast.experiment.machine import header


@dataclass(frozen=True)
class Device:
    """lanes: float32 operations an SM finishes a clock; packed: what an instruction on two numbers takes of them."""

    name: str
    target: GPUTarget
    sms: int
    ghz: float
    lanes: int
    packed: int
    gb_per_s: float
    warps: int


# Boost clock, float32 lanes and bandwidth: NVIDIA's architecture papers of the A100 (SXM, 80 GB) and H100 (SXM), which
# come to 19.5 and 67 TFLOPS, and of the RTX 3090, 4090 and 5090 (35.6, 82.6 and 104.8 TFLOPS); the data sheet of HGX
# B200, 75 TFLOPS a GPU and 8 TB/s, so a packed instruction takes two slots; AMD's data sheet of the MI300X, 163 TFLOPS,
# so there it takes one. An SM issues 4 a clock.
DEVICES = {
    "sm_80": Device("A100", GPUTarget("cuda", 80, 32), 108, 1.41, 64, 2, 2039, 64),
    "sm_86": Device("RTX 3090", GPUTarget("cuda", 86, 32), 82, 1.695, 128, 2, 936, 48),
    "sm_89": Device("RTX 4090", GPUTarget("cuda", 89, 32), 128, 2.52, 128, 2, 1008, 48),
    "sm_90": Device("H100", GPUTarget("cuda", 90, 32), 132, 1.98, 128, 2, 3350, 64),
    "sm_100": Device("B200", GPUTarget("cuda", 100, 32), 148, 1.98, 128, 2, 8000, 64),
    "sm_120": Device("RTX 5090", GPUTarget("cuda", 120, 32), 170, 2.407, 128, 2, 1792, 48),
    "gfx942": Device("MI300X", GPUTarget("hip", "gfx942", 64), 304, 2.1, 64, 1, 5300, 32),
}
ISSUED = 4
BYTES_PER_CLOCK = 64  # VABSDIFF4 an SM finishes a clock: half the rate of float32, which is assumed and nowhere stated
REGISTERS = 65536  # an SM, 32 bits each; of a CU of gfx942 twice that
SHARED = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}  # KB an SM


@dataclass(frozen=True)
class Kernel:
    """A kernel as it is launched.

    Attributes:
        fn: The jitted function.
        types: Its arguments: a type, then the names that have it.
        aligned: Integers that are multiples of 16; all pointers are.
        constants: The tl.constexpr arguments and the options of the launch.
        steps: What one pass through the inner loop does for a whole program, in the unit of the table.
        unit: That unit.
        floor: float32 instructions that a unit needs at least; a loop with twice as many was unrolled twice.
        total, bytes: Units and bytes of memory of the problem that a time is given for.
        problem: Its name.
    """

    fn: Any
    types: tuple[str, ...]
    aligned: tuple[str, ...]
    constants: dict[str, Any]
    steps: float
    unit: str
    floor: float
    total: float
    bytes: float
    problem: str


def kernels() -> dict[str, Kernel]:
    """Every kernel in the configurations that are launched."""
    knn, codes, mix, confidence, probe = (
        importlib.import_module("dm2_fast.kernels." + name)
        for name in ("knn", "codes", "mix", "confidence", "linear_probe")
    )
    tile = knn._TILE | knn._OPTIONS
    differences = tile["BLOCK_M"] * tile["BLOCK_N"] * tile["BLOCK_D"]
    m, d, r, n, width = 50_000, 512, 50_000, 10, 3072
    distance = (
        "*fp32 q_ptr x_ptr best_ptr out_ptr",
        "*i64 q_ids_ptr x_ids_ptr ids_ptr",
        "*i32 order_ptr list_ptr count_ptr",
        "fp32 w1 w2",
    )
    integers = "i32 M N D K PART stride_out WIDTH TERMS stride_m channel_stride CHANNELS R C stride_n"
    out = {
        "knn": Kernel(
            knn._knn_kernel, (*distance, integers), ("D", "PART"), tile | {"BLOCK_K": knn._BLOCK_K, "LISTED": 0},
            differences, "(row, row, dimension)", 3, m * m * d, m * d * 4.0, "50,000 x 512",
        ),
        "pairwise": Kernel(
            knn._pairwise_kernel, (*distance, integers), ("D", "stride_out"), tile,
            differences, "(row, row, dimension)", 3, m * m * d, m * m * 4.0, "50,000 x 512",
        ),
    }  # fmt: skip
    out["knn of lists"] = replace(out["knn"], constants=out["knn"].constants | {"LISTED": codes.TILE})
    out["filter"] = Kernel(
        codes._filter_kernel,
        ("*i32 q_ptr reach_ptr q_order_ptr x_ptr x_reach_ptr margin_ptr x_margin_ptr order_ptr pairs_ptr",
         "*i32 count_ptr list_ptr x_count_ptr x_list_ptr", "i32 M N W ROOM"), ("ROOM",) + ("W",) * (d % 64 == 0),
        codes._CONFIG | {"SYMMETRIC": True, "NATIVE": True, "TILE": codes.TILE},
        codes.TILE**2 * codes._CONFIG["BLOCK_W"] * 4, "(row, row, dimension)", math.inf, m * m * d / 2, m * d * 1.0,
        "50,000 x 512, each pair once",
    )  # fmt: skip
    for dtype, size, out_dtype in (("u8", 1, "fp32"), ("fp32", 4, "fp32"), ("fp16", 2, "fp16")):
        pixels = dtype == "u8"
        out[f"mix {dtype}"] = Kernel(
            mix._mix_kernel,
            (f"*{dtype} inputs_ptr", f"*{out_dtype} out_ptr", "*i64 indices_ptr",
             "*fp32 coefficients_ptr mean_ptr std_ptr", integers),
            ("WIDTH", "stride_m"),
            mix._CONFIG | {"PIXELS": pixels, "NORMALIZE": pixels, "LAST": 0, "enable_fp_fusion": False},
            mix._CONFIG["BLOCK"], "element and neighbour", 2,
            r * (n + 1) * width, r * width * (size * (n + 1) + (4 if out_dtype == "fp32" else 2)),
            "50,000 images of 3,072, 10 neighbours",
        )  # fmt: skip
    for kind, classes in (("least-confidence", 10), ("entropy", 10), ("margin", 1000)):
        config = confidence._config(classes)
        out[f"{kind} of {classes}"] = Kernel(
            confidence._uncertainty_kernel, ("*fp32 logits_ptr out_ptr", integers), (),
            config | {"KIND": confidence.KINDS[kind], "enable_fp_fusion": True},
            config["BLOCK_N"] * config["BLOCK_C"], "logit", math.inf, r * classes, r * (classes + 1) * 4.0,
            f"50,000 x {classes:,} logits",
        )  # fmt: skip
    for classes in (10, 100):
        config = probe._config(classes)
        out[f"probe of {classes}"] = Kernel(
            probe._linear_probe_kernel,
            ("*fp32 features_ptr weight_ptr bias_ptr out_ptr coefficients_ptr", "*i64 indices_ptr", integers),
            ("D", "stride_m"),
            config | {"KIND": confidence.KINDS["entropy"], "enable_fp_fusion": True},
            config["BLOCK_M"] * config["BLOCK_D"], "dimension and neighbour", 1,
            r * d * (n + 1), r * d * 4.0 * (n + 1), "50,000 x 512, 10 neighbours",
        )  # fmt: skip
    return out


def compiled(kernel: Kernel, target: GPUTarget) -> Any:
    """The kernel through the compiler, as a launch with aligned pointers would do it."""
    constants = dict(kernel.constants)
    options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion", "maxnreg") if name in constants}
    if target.backend == "hip":
        options.pop("maxnreg", None)
        constants |= {"NATIVE": False} if "NATIVE" in constants else {}
    names = kernel.fn.arg_names
    types = {name: kind for kind, *group in map(str.split, kernel.types) for name in group}
    source = ASTSource(
        fn=kernel.fn,
        signature={name: "constexpr" if name in constants else types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if name not in constants and (types[name].startswith("*") or name in kernel.aligned)
        },
    )
    return triton.compile(source, target=target, options=options)


@dataclass
class Code:
    """What a program needs, and the opcodes of its innermost loop with the most arithmetic."""

    registers: int
    stack: int
    shared: int
    loop: list[str] = field(default_factory=list)
    widths: list[str] = field(default_factory=list)  # of the accesses to global memory


def number(pattern: str, text: str) -> int:
    """What the group of the pattern holds where it first fits."""
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiler's output has nothing like {pattern}")
    return int(found[1])


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(binary: Any, target: GPUTarget) -> Code:
    if target.backend == "hip":
        text = binary.asm["amdgcn"]
        registers, *spilled = (
            number(rf"\.{what}:\s+(\d+)", text)
            for what in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        )
        code = Code(registers, sum(spilled), binary.metadata.shared)
        label, line, jump = r"(\.LBB\w+):", r"\s+([sv]_\w+|ds_\w+|global_\w+|buffer_\w+)(.*)", r"(\.LBB\w+)"
        access = r"(?:global|buffer)_(?:load|store)\w+"
    else:
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary.asm["cubin"])
            file.flush()
            usage = output(tools / "cuobjdump", "--dump-resource-usage", file.name)
            text = output(tools / "nvdisasm", "-c", file.name)
        registers, stack = (number(rf"{what}:(\d+)", usage) for what in ("REG", "STACK"))
        code = Code(registers, stack, binary.metadata.shared)
        label, line, jump = (
            r"\s*(\.L\w+):", r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", r"`\((\.L\w+)\)",
        )  # fmt: skip
        access = r"(?:LDG|STG|LDGSTS)\b.*"
    places: dict[str, int] = {}
    opcodes: list[str] = []
    loops: list[tuple[int, int]] = []
    for row in text.splitlines():
        if found := re.match(label, row):
            places[found[1]] = len(opcodes)
        elif found := re.match(line, row):
            opcodes.append(found[1])
            back = re.search(jump, found[2]) if "BRA" in found[1] or "branch" in found[1] else None
            if back and back[1] in places:
                loops.append((places[back[1]], len(opcodes)))
    code.widths = sorted({opcode for opcode in opcodes if re.match(access, opcode)})
    inner = [a for a in loops if not any(a[0] <= b[0] and b[1] <= a[1] and a != b for b in loops)]
    bodies = [opcodes[start:stop] for start, stop in inner]
    code.loop = max(bodies, key=lambda body: (float32(body, 1) + four_bytes(body), len(body)), default=[])
    return code


def four_bytes(loop: list[str]) -> int:
    """Instructions that end a sum over four bytes: VABSDIFF4, or IDP.4A where several stand for it."""
    return sum(opcode.startswith(("VABSDIFF4", "IDP.4A")) for opcode in loop)


FLOAT32 = re.compile(r"(FADD|FFMA|FMUL)2?\b|v_(pk_)?(add|sub|mul|fma|fmac|mac)_f32").match


def float32(loop: list[str], packed: int) -> int:
    """Slots of the float32 pipes: one for an instruction, `packed` for one on two numbers."""
    single = sum(bool(re.match(r"(FADD|FFMA|FMUL)\b|v_(?!pk_)", opcode)) for opcode in loop)
    return single + packed * sum(bool(re.match(r"(FADD2|FFMA2|FMUL2)\b|v_pk_", opcode)) for opcode in loop)


def cost(name: str, kernel: Kernel, target: str) -> dict[str, Any]:
    """The row of the table of a kernel on a target."""
    device = DEVICES[target]
    code = read(compiled(kernel, device.target), device.target)
    warps, width = kernel.constants["num_warps"], device.target.warp_size
    arithmetic = sum(2 if re.match(r"v_pk|....2", opcode) else 1 for opcode in code.loop if FLOAT32(opcode))
    unrolled = max(1, int(arithmetic * width * warps / kernel.steps / kernel.floor))
    steps = unrolled * kernel.steps / (width * warps)  # of a warp's instruction, which does `width` at once
    registers = REGISTERS * (2 if device.target.backend == "hip" else 1)
    programs = min(
        registers // (math.ceil(max(code.registers, 1) / 8) * 8 * width * warps),
        SHARED[target] * 1024 // max(1, code.shared + 1024),
        device.warps // warps,
    )
    instructions = {what: round(value / steps, 2) for what, value in
                    (("float32", float32(code.loop, 1)), ("all", len(code.loop)))}  # fmt: skip
    turns = kernel.total / (unrolled * kernel.steps) * warps / (device.sms * device.ghz * 1e9)
    seconds = {
        "float32": turns * float32(code.loop, device.packed) * width / device.lanes,
        "issue": turns * len(code.loop) / ISSUED,
        "memory": kernel.bytes / (device.gb_per_s * 1e9),
        "bytes": turns * four_bytes(code.loop) * width / BYTES_PER_CLOCK,
    }
    return {
        "kernel": name, "target": target, "device": device.name, "triton": triton.__version__,
        "registers": code.registers, "stack": code.stack, "shared": code.shared, "warps": programs * warps,
        "unit": kernel.unit, "instructions": instructions, "opcodes": dict(Counter(code.loop).most_common(8)),
        "arithmetic": dict(Counter(opcode for opcode in code.loop if FLOAT32(opcode))),
        "global": code.widths, "problem": kernel.problem, "seconds": seconds,
        "limit": max(seconds, key=seconds.__getitem__),
    }  # fmt: skip


def measure(names: list[str]) -> dict[str, float]:
    """Seconds of the problems of the table on the current CUDA device, from tensor to tensor: median of five runs."""
    import dm2_fast

    device = torch.device("cuda")
    x, weight = torch.randn(50_000, 512, device=device), torch.randn(100, 512, device=device)
    neighbours = torch.randint(0, 50_000, (50_000, 10), device=device)
    pool = torch.randint(0, 256, (50_000, 3_072), dtype=torch.uint8, device=device)
    floats, halves, wide = pool.float(), pool.half(), x.repeat(1, 2)[:, :1000]
    calls: dict[str, Callable[[], object]] = {
        "knn": lambda: dm2_fast.knn(x, 10),
        "pairwise": lambda: dm2_fast.pairwise(x),
        "mix u8": lambda: dm2_fast.mix(pool, neighbours, 0.5, normalize=(0.5, 0.25)),
        "mix fp32": lambda: dm2_fast.mix(floats, neighbours, 0.5),
        "mix fp16": lambda: dm2_fast.mix(halves, neighbours, 0.5),
        "least-confidence of 10": lambda: dm2_fast.uncertainty(x[:, :10]),
        "entropy of 10": lambda: dm2_fast.uncertainty(x[:, :10], "entropy"),
        "margin of 1000": lambda: dm2_fast.uncertainty(wide, "margin"),
        "probe of 10": lambda: dm2_fast.linear_probe(x, neighbours, 0.5, weight[:10], kind="entropy"),
        "probe of 100": lambda: dm2_fast.linear_probe(x, neighbours, 0.5, weight, kind="entropy"),
    }
    seconds = {}
    for name in [name for name in names if name in calls]:  # the filter has no call of its own
        times = []
        for _ in range(6):  # the first one compiles
            torch.cuda.synchronize()
            start = time.perf_counter()
            calls[name]()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        seconds[name] = statistics.median(times[1:])
    return seconds


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        f"Triton {triton.__version__}. Instructions of the inner loop: float32 / all, for each unit.",
        "",
        "| kernel | target | registers | stack | shared | warps | instructions | unit | problem "
        "| at least, ms | by | measured, ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        count, ms = row["instructions"], 1000 * max(row["seconds"].values())
        measured = "" if row["measured"] is None else f"{1000 * row['measured']:.3g}"
        lines.append(
            f"| {row['kernel']} | {row['target']} ({row['device']}) | {row['registers']} | {row['stack']} | "
            f"{row['shared']} | {row['warps']} | {count['float32']:.2f} / {count['all']:.2f} | {row['unit']} | "
            f"{row['problem']} | {ms:.3g} | {row['limit']} | {measured} |"
        )
    return "\n".join(lines)


def compilers(files: list[Path]) -> str:
    """What each of several versions of Triton makes of the kernels: one line for a kernel and target, from --json."""
    rows = [row for file in files for row in json.loads(file.read_text())]
    versions = sorted({row["triton"] for row in rows})
    found = {(row["kernel"], row["target"], row["triton"]): row for row in rows}
    lines = [
        f"Triton {' / '.join(versions)}; instructions of the inner loop: float32, then all, for each unit.",
        "",
        "| kernel | target | registers | stack | float32 | all |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kernel, target in dict.fromkeys((row["kernel"], row["target"]) for row in rows):
        each = [found[kernel, target, version] for version in versions if (kernel, target, version) in found]
        columns = (
            [str(row["registers"]) for row in each],
            [str(row["stack"]) for row in each],
            [f"{row['instructions']['float32']:.2f}" for row in each],
            [f"{row['instructions']['all']:.2f}" for row in each],
        )
        lines.append(f"| {kernel} | {target} | {' | '.join(' / '.join(column) for column in columns)} |")
    return "\n".join(lines)


def main() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise SystemExit("TRITON_INTERPRET must not be set, got 1: what is interpreted cannot be compiled")
    everything = kernels()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", nargs="+", choices=everything, default=list(everything))
    parser.add_argument("--target", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", action="store_true", help="run the problems on the CUDA device that is there")
    parser.add_argument("--join", nargs="+", type=Path, metavar="FILE", help="the table of these --json outputs")
    arguments = parser.parse_args()
    if arguments.join:
        print(f"{header(torch.device('cpu'))}\n{compilers(arguments.join)}")
        return
    measured = {}
    if arguments.measure:
        if not torch.cuda.is_available():
            raise SystemExit("--measure needs a CUDA device, got none")
        target = "sm_{}{}".format(*torch.cuda.get_device_capability())
        measured = {(name, target): seconds for name, seconds in measure(arguments.kernel).items()}
    rows = [cost(name, everything[name], target) for name in arguments.kernel for target in arguments.target]
    for row in rows:
        row["measured"] = measured.get((row["kernel"], row["target"]))
    print(json.dumps(rows, indent=1) if arguments.json else f"{header(torch.device('cpu'))}\n{markdown(rows)}")


if __name__ == "__main__":
    main()
