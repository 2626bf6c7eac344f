"""How far features may lie from what float64 makes of the same rows: what float32 rounds away, and no more."""

from __future__ import annotations

import numpy as np

from kernels.network import SLOPES
from pipeline.model import Model

__all__ = ["rounding"]

_EPS = 2.0**-24  # of float32: how far a number may be rounded, as a share of it
_SAFETY = 4.0  # see `rounding`
_LEAST = 1e-30  # of units whose weights are all 0
_SIGMOID = 16 * _EPS  # of its own: polynomials and the libraries' exponentials are off by less


def rounding(model: Model, rows: np.ndarray) -> np.ndarray:
    """How far features (n_rows, n_features) of unscaled rows (n_rows, n_inputs) may lie from those of `Model.encode`.

    A sum of n products is off by about ``sqrt(n)`` roundings of the sum of their sizes, in whatever order they are
    added (Higham and Mary, "A new approach to probabilistic rounding error analysis", 2019, section 3, with lambda 4),
    and independent errors of one layer reach the next by their root mean square. Integer products round each weight by
    the size of all that its unit has, so the mean of these counts for each. Devices that sum in another order, or have
    the scaling folded into the weights, stay far within: docs/reliability.md has measurements.

    Returns
    -------
    ndarray of shape (n_rows, n_features), float64
        Inf, or NaN, where float32 overflows.
    """
    network = model.network
    # In float32, so that large weights are copied once at a time: of a bound, a few digits will do.
    with np.errstate(over="ignore", invalid="ignore"):
        a = model.scaler.transform(rows)
        error = np.float32(_SAFETY * _EPS) * (np.abs(a) + 1)
        for (weights, bias, _), kind in zip(network.layers, network.activations, strict=True):
            W, b = model.parameters[weights], model.parameters[bias]
            sizes = np.abs(W)
            sizes += sizes.mean(axis=0)
            own = np.float32(_SAFETY * _EPS * np.sqrt(len(W))) * (np.abs(a) @ sizes + np.abs(b))
            error = np.hypot(np.sqrt(error**2 @ W**2), own)
            if kind == "sigmoid":
                error = error / 4 + np.float32(_SIGMOID)  # a quarter is the steepest that it gets
            a = a @ W + b
            if kind in SLOPES:  # behind sigmoids nothing follows
                a = np.where(a > 0, a, np.float32(SLOPES[kind]) * a)
    return np.maximum(error, _LEAST).astype(np.float64)
