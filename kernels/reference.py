"""What the Ops of `kernels.ops` compute, in plain NumPy and float64: the reference for their C code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["RULES", "code", "gradients", "lie_in", "row_errors", "scaled"]


_BETA2 = float(np.float32(0.999))  # 1 - 0.999 loses digits in float32, here as there


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
    with np.errstate(over="ignore"):
        values = rows.astype(low.dtype, copy=False)
    return np.asarray(((values >= low) & (values <= high)).all(axis=1))


def code(x: np.ndarray, W: np.ndarray, b_hidden: np.ndarray) -> np.ndarray:
    """Features (n_rows, n_features) of scaled rows."""
    with np.errstate(over="ignore"):
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
    c = 2 / x.size
    return float(np.mean(r**2)), [c * (x.T @ dh + r.T @ h), c * dh.sum(axis=0), c * r.sum(axis=0)]


def _momentum(p: np.ndarray, g: np.ndarray, rate: float, decay: float, velocity: np.ndarray) -> None:
    velocity[:] = decay * velocity - rate * g
    p += velocity


def _nesterov(p: np.ndarray, g: np.ndarray, rate: float, decay: float, velocity: np.ndarray) -> None:
    velocity[:] = decay * velocity - rate * g
    p[:] = p + decay * velocity - rate * g


def _adam(p: np.ndarray, g: np.ndarray, rate: float, decay: float, mean: np.ndarray, square: np.ndarray) -> None:
    mean[:] = decay * mean + (1 - decay) * g
    square[:] = _BETA2 * square + (1 - _BETA2) * g**2
    p[:] = p - rate * mean / (np.sqrt(square) + 1e-8)


def _rmsprop(p: np.ndarray, g: np.ndarray, rate: float, decay: float, square: np.ndarray) -> None:
    square[:] = decay * square + (1 - decay) * g**2
    p[:] = p - rate * g / np.sqrt(square + 1e-6)


RULES: dict[str, Callable[..., None]] = {
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adam": _adam,
    "rmsprop": _rmsprop,
}
"""The rules of `kernels.updates`: ``(parameter, gradient, rate, decay, *states)``, which change arrays in place."""
