"""How far features may lie from what float64 makes of the same rows: what float32 rounds away, and no more."""

from __future__ import annotations

import numpy as np

from kernels.network import SLOPES
from pipeline.model import Model

__all__ = ["rounding"]

_EPS = 2.0**-24  # of float32: how far a number may be rounded, as a share of it
_SAFETY = 4.0  # see `rounding`
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
    with np.errstate(over="ignore", invalid="ignore"):
        a = model.scaler.transform(rows).astype(np.float64)
        error = _SAFETY * _EPS * (np.abs(a) + 1)
        for (weights, bias, _), kind in zip(network.layers, network.activations, strict=True):
            W, b = (model.parameters[name].astype(np.float64) for name in (weights, bias))
            z, sizes = a @ W + b, np.abs(W) + np.abs(W).mean(axis=0)
            own = _SAFETY * _EPS * np.sqrt(len(W)) * (np.abs(a) @ sizes + np.abs(b))
            error = np.sqrt(error**2 @ W**2 + own**2)
            if kind == "sigmoid":
                error = error / 4 + _SIGMOID  # a quarter is the steepest that it gets
            a = np.where(z > 0, z, SLOPES[kind] * z) if kind in SLOPES else z  # behind sigmoids nothing follows
    return np.asarray(error)
