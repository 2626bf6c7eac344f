"""Tolerances between two computations of one quantity, for every device. There are no other tolerances.

Each bounds the largest difference as a fraction of the largest expected value. The expected values come from the
NumPy reference in float64, or from the CPU. The reasons count roundings of float32, eps = 6e-8, for at
most 784 columns and the few hundred rows of the tests: BLAS and OpenCL sum in their own order, which changes a sum of
n products by about eps sqrt(n) of its size. Each number includes a factor of about ten for other processors and
libraries.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

TOLERANCES = {
    # The slope of a sigmoid is at most 1/4; the error of its argument is eps sqrt(784) times a few units.
    "features": 5e-6,
    # A mean of squares has no cancellation, but the residual of a good reconstruction is itself a small difference.
    "cost": 1e-5,
    # Sums of products of both signs over rows; by cancellation they are smaller than their terms.
    "gradients": 1e-5,
    # Tens of steps accumulate errors of the gradients; adam also divides small gradients by their own size.
    "parameters": 2e-5,
}


def assert_close(found: ArrayLike, expected: ArrayLike, device: str, quantity: str) -> None:
    """Compare the float32 result of a device with the expected values, within the tolerance of the quantity."""
    allowed = TOLERANCES[quantity] * np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=allowed, err_msg=f"{quantity} on {device}")
