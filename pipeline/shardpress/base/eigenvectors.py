"""Eigenvectors of symmetric matrices."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits


def eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues and the eigenvectors of a symmetric matrix (n, n), float64.

    The eigenvalues (n,) increase. The eigenvectors are the orthonormal columns of an array (n, n). One thread computes,
    which takes a fifth of a second for 800 rows, and three seconds for 2,000.
    """
    # BLAS threads wait for each other after each of thousands of small products. On a busy machine, each wait takes
    # milliseconds: two threads needed 16 seconds where one needs a fifth of a second.
    with threadpool_limits(1, "blas"):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors
