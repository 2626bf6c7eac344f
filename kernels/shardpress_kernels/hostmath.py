"""The parts of a network's mathematics that the pipeline computes in NumPy, in the dtype of their arguments."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from shardpress_kernels.activations import ACTIVATIONS, Math
from shardpress_kernels.network import Head, Network


def are_within(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return whether all values of each row are in a range: shape (n_rows,), bool. NaN is in no range.

    `low` and `high` (n_inputs,) are the range of each column. Rows are compared in the dtype of `low`.
    """
    with np.errstate(over="ignore"):  # a value that overflows float32 becomes Inf, which is outside
        values = rows.astype(low.dtype, copy=False)
    return np.asarray(((values >= low) & (values <= high)).all(axis=1))


def threshold(corruption: float) -> int:
    """Return how many of the 256 values of a noise byte hide an entry."""
    return round(256 * corruption)


def code_of(network: Network, written: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the code (n_rows, n_features) of written features (n_rows, n_outputs)."""
    h = written
    layers = list(zip(network.layers, network.activations, strict=True))
    for (W, b_hidden, _), kind in layers[network.output.n_layers :]:
        h = activated(kind, h @ parameters[W] + parameters[b_hidden])
    return h


def head_outputs(h: np.ndarray, parameters: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
    """Return the outputs (n_rows, n_outputs) of the head for features (n_rows, n_features)."""
    return scale * (h @ parameters["W_head"] + parameters["b_head"])


def target_losses(head: Head, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the loss of each row for outputs `z` of the head: shape (n_rows,), 0 for rows without a target."""
    if head.kind == "numbers":
        return np.where(np.isnan(targets), 0, (z[:, 0] - targets) ** 2 / 2)
    largest = z.max(axis=1)
    log_sums = largest + np.log(np.exp(z - largest[:, None]).sum(axis=1))
    has_target = targets >= 0
    classes = np.where(has_target, targets, 0).astype(np.int64)
    return np.where(has_target, log_sums - z[np.arange(len(z)), classes], 0)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


MATH = Math(np.where, np.tanh, _sigmoid)


def activated(kind: str, z: np.ndarray) -> np.ndarray:
    """Return the outputs of an activation for inputs `z` of any shape, in their dtype."""
    with np.errstate(over="ignore"):  # exp(-z) is Inf far below 0, where the sigmoid is 0
        return np.asarray(ACTIVATIONS[kind].value(MATH, z))
