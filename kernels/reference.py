"""What the Ops of `kernels.ops` compute, in plain NumPy and float64: the reference for their C code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["code", "gradients", "lie_in", "row_errors", "scaled"]


def scaled(rows: np.ndarray, scaling: Sequence[np.ndarray]) -> np.ndarray:
    """Rows, scaled in the dtype of minimum and scale where these are given, and rounded to float32.

    Products of bytes in integers never round them, and so differ from what follows from this by the rounding.
    """
    if not scaling:
        return rows.astype(np.float32).astype(np.float64)
    minimum, scale = scaling
    return ((rows.astype(minimum.dtype) - minimum) * scale).astype(np.float32).astype(np.float64)


def lie_in(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which rows have all their values in a range (n_inputs,): bool, (n_rows,). NaN lies in none."""
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, and lies outside
        values = rows.astype(low.dtype, copy=False)
    return np.asarray(((values >= low) & (values <= high)).all(axis=1))


def code(x: np.ndarray, W: np.ndarray, b_hidden: np.ndarray) -> np.ndarray:
    """Features (n_rows, n_features) of scaled rows."""
    with np.errstate(over="ignore"):  # exp(-z) is Inf far below 0, where the sigmoid is 0
        return 1 / (1 + np.exp(-(x @ W + b_hidden)))


def row_errors(x: np.ndarray, W: np.ndarray, b_hidden: np.ndarray, b_output: np.ndarray) -> np.ndarray:
    """Mean squared errors (n_rows,) of the reconstructions of scaled rows."""
    return np.mean((code(x, W, b_hidden) @ W.T + b_output - x) ** 2, axis=1)


def gradients(
    x: np.ndarray, W: np.ndarray, b_hidden: np.ndarray, b_output: np.ndarray
) -> tuple[float, list[np.ndarray]]:
    """The cost of scaled rows, and its gradients with respect to ``W``, ``b_hidden`` and ``b_output``."""
    h = code(x, W, b_hidden)
    r = h @ W.T + b_output - x
    dh = (r @ W) * h * (1 - h)
    c = 2 / x.size  # of the mean's derivative
    return float(np.mean(r**2)), [c * (x.T @ dh + r.T @ h), c * dh.sum(axis=0), c * r.sum(axis=0)]
