"""A choice as active-learning scripts ask for it: an object with `query(n)` and `select(budget)`, or modAL's function."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dm2_fast.acquire import select
from dm2_fast.adapters.classifier import Rows, choose
from dm2_fast.operations.arrays import as_array
from dm2_fast.strategies import get


class Selector:
    """A model and a pool, asked for rows of the pool as scripts of the DeepAL, DISTIL and LabelBench kind ask.

    Args:
        model, pool, strategy, options: As in `dm2_fast.select`.
        others: Everything else that `dm2_fast.select` takes, by name.
    """
