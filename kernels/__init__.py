"""The Triton implementation of the operations, installed as `dm2_fast.kernels`. Imports torch and triton only."""

import triton
import triton.language as tl
from dm2_fast.kernels.confidence import uncertainty
from dm2_fast.kernels.knn import knn, pairwise
from dm2_fast.kernels.linear_probe import linear_probe
from dm2_fast.kernels.mix import mix

# Decided when triton is imported: then its own functions, and so these kernels, run in the interpreter on the CPU.
INTERPRETED = not isinstance(tl.sum, triton.JITFunction)

TAKES_THREADS = False
WHOLE_PROBLEMS = False

__all__ = [
    "INTERPRETED",
    "TAKES_THREADS",
    "WHOLE_PROBLEMS",
    "knn",
    "linear_probe",
    "mix",
    "pairwise",
    "uncertainty",
]
