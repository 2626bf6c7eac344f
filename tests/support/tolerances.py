"""How far apart two computations of one quantity may be: the only such table, for every device and dtype.

Each entry bounds the largest difference as a fraction of the largest expected value. What is expected is the NumPy
oracle's, in float64, or the CPU's. The reasons count in roundings of float32, eps = 6e-8, for at most 784 columns and
the few hundred rows that tests use: BLAS and OpenCL sum in their own order, which moves a sum of n products by some
eps sqrt(n) of its size. Each number then leaves about a factor of ten to other processors and other libraries.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["TOLERANCES", "assert_close", "kind_of"]

TOLERANCES = {
    # One subtraction, one product, one cast, each rounded as IEEE 754 says: nothing is left to choose.
    ("cpu", "float32", "scaled"): 0.0,
    ("cpu", "float64", "scaled"): 0.0,
    # A sigmoid's slope is at most 1/4, its argument's error eps sqrt(784) of a few units.
    ("cpu", "float32", "features"): 5e-6,
    ("opencl", "float32", "features"): 5e-6,
    ("cuda", "float32", "features"): 5e-6,
    # Sums over the features, of products that may cancel.
    ("cpu", "float32", "reconstruction"): 5e-6,
    ("opencl", "float32", "reconstruction"): 5e-6,
    ("cuda", "float32", "reconstruction"): 5e-6,
    # A mean of squares has nothing to cancel, but a good reconstruction's residual is itself a small difference.
    ("cpu", "float32", "cost"): 1e-5,
    ("opencl", "float32", "cost"): 1e-5,
    ("cuda", "float32", "cost"): 1e-5,
    # Sums over rows of products of both signs, of which less is left than was summed.
    ("cpu", "float32", "gradients"): 1e-5,
    # Tens of steps add the gradients' errors up; adam also divides small gradients by their own size.
    ("cpu", "float32", "parameters"): 2e-5,
    ("opencl", "float32", "parameters"): 2e-5,
    ("cuda", "float32", "parameters"): 2e-5,
}


def kind_of(device: str) -> str:
    """``opencl`` of ``opencl0:0``, ``cuda`` of ``cuda1``."""
    return re.sub(r"[\d:]+$", "", device)


def assert_close(found: ArrayLike, expected: ArrayLike, device: str, dtype: str, quantity: str) -> None:
    """Hold what a device computed in a dtype against what was expected, by the table's entry."""
    allowed = TOLERANCES[kind_of(device), dtype, quantity] * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=f"{quantity} on {device}")
