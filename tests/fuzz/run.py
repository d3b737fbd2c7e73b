"""Runs random cases without end, or as many as one likes: `make fuzz`, or

    python tests/fuzz/run.py [engine] [calls] [threads] [files] [kills] [--seconds S | --cases N] [--seed FIRST]

A case is made from its seed alone. Findings are printed with the command that runs them again.
"""

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

NAMES = ("engine", "calls", "threads", "files", "kills")


def run(name: str, first: int, cases: int | None, seconds: float | None) -> tuple[int, list[str]]:
    """How many cases ran, and the findings."""
    fuzzer = importlib.import_module(f"fuzz.{name}")
    findings, start, seed = [], time.monotonic(), first
    while (cases is None or seed < first + cases) and (seconds is None or time.monotonic() - start < seconds):
        try:
            fuzzer.case(seed)
        except Exception:
            again = f"python tests/fuzz/run.py {name} --seed {seed} --cases 1"
            findings.append(f"{again}\n{traceback.format_exc()}")
            print(findings[-1], flush=True)
        seed += 1
    return seed - first, findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, default=0, metavar="FIRST")
    args = parser.parse_args()
    seed, wrong = args.seed, 0
    while True:
        for name in args.names:
            bounded = args.cases is not None or args.seconds is not None
            count, findings = run(name, seed, args.cases, args.seconds if bounded else 60)
            wrong += len(findings)
            print(f"{name}: seeds {seed} to {seed + count - 1}, {len(findings)} findings", flush=True)
        if bounded:
            sys.exit(wrong > 0)
        seed += 10**6


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
