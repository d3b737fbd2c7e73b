"""The C++ extension, which is optional, and the mapping of kernels/; everything else is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dm2_fast", "dm2_fast.*"]), "dm2_fast.kernels", "dm2_fast.paper.protocols"],
    package_dir={"dm2_fast.kernels": "kernels"},
    package_data={"dm2_fast": ["py.typed", "_C.pyi"], "dm2_fast.paper.protocols": ["*.yaml"]},
    ext_modules=[
        Pybind11Extension(
            "dm2_fast._C",
            ["csrc/bindings.cpp"],
            depends=[str(header) for header in sorted(Path("csrc").glob("*.hpp"))],
            cxx_std=17,
            extra_compile_args=["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,  # without a compiler one warning, and plain torch in its place
        )
    ],
)
