"""A pytest plugin: the tests run on the extension that DM2_EXTENSION names, built with a sanitizer."""

import importlib.util
import os
import sys

import dm2_fast

_spec = importlib.util.spec_from_file_location("dm2_fast._C", os.environ["DM2_EXTENSION"])
assert _spec is not None
assert _spec.loader is not None
sys.modules.pop("dm2_fast._C", None)
_module = importlib.util.module_from_spec(_spec)
sys.modules["dm2_fast._C"] = dm2_fast._C = _module  # type: ignore[attr-defined]
_spec.loader.exec_module(_module)
