"""What every network computes, in plain NumPy and float64: the reference for graphs and C code.

Parameters come by name, or in the order of the network's `shapes`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kernels.activations import ACTIVATIONS, Math
from kernels.network import Network

__all__ = ["MATH", "activated", "code", "forward", "gradients", "lie_in", "masked", "row_errors", "scaled", "threshold"]

Parameters = Mapping[str, np.ndarray] | Sequence[np.ndarray]


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


def threshold(corruption: float) -> int:
    """Of the 256 values of a byte of noise, how many hide the entry that it belongs to."""
    return round(256 * corruption)


def masked(x: np.ndarray, noise: np.ndarray, corruption: float) -> np.ndarray:
    """Scaled rows (n_rows, n_inputs) of which the entries with low bytes of noise are 0.

    Source: Vincent, Larochelle, Bengio and Manzagol, "Extracting and composing robust features with denoising
    autoencoders", 2008, section 2.3.
    """
    return np.where(noise < threshold(corruption), 0, x)


def forward(network: Network, x: np.ndarray, parameters: Parameters) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Every layer's output of scaled rows: ``a_0`` to ``a_n`` on the way in, ``s_0`` to ``s_n`` on the way back."""
    given = _named(network, parameters)
    a = [x]
    for (W, b_hidden, _), kind in zip(network.layers, network.activations, strict=True):
        a.append(activated(kind, a[-1] @ given[W] + given[b_hidden]))
    s = [(a[-1] - network.center) * given["gain"] if network.gain else a[-1]]
    for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
        s.insert(0, activated(kind, s[0] @ given[W].T + given[b_output]))
    return a, s


def code(network: Network, x: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Features (n_rows, n_features) of scaled rows."""
    return forward(network, x, parameters)[0][-1]


def row_errors(network: Network, x: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Mean squared errors (n_rows,) of the reconstructions of scaled rows."""
    return np.mean((forward(network, x, parameters)[1][0] - x) ** 2, axis=1)


def gradients(
    network: Network, x: np.ndarray, seen: np.ndarray, parameters: Parameters
) -> tuple[float, list[np.ndarray]]:
    """The cost of scaled rows, of which the network sees `seen`, and its gradients in the order of the parameters."""
    given = _named(network, parameters)
    a, s = forward(network, seen, given)
    d = s[0] - x
    cost = float(np.mean(d**2))
    found: dict[str, np.ndarray] = {}
    for i, ((W, _, b_output), kind) in enumerate(zip(network.layers, network.mirrors, strict=True)):
        d = d * _derivatives(kind, s[i])
        found |= {W: d.T @ s[i + 1], b_output: d.sum(axis=0)}
        d = d @ given[W]
    if network.gain:
        found["gain"] = (d * (a[-1] - network.center)).sum(axis=0)
        d = d * given["gain"]
    for i, (W, b_hidden, _) in reversed(list(enumerate(network.layers))):
        d = d * _derivatives(network.activations[i], a[i + 1])
        found |= {W: found[W] + a[i].T @ d, b_hidden: d.sum(axis=0)}
        d = d @ given[W].T
    c = 2 / x.size  # of the mean's derivative
    return cost, [c * found[name] for name in network.shapes]


def _named(network: Network, parameters: Parameters) -> Mapping[str, np.ndarray]:
    if isinstance(parameters, Mapping):
        return parameters
    return dict(zip(network.shapes, parameters, strict=True))


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


MATH = Math(np.where, np.exp, np.log1p, np.tanh, _sigmoid)


def activated(kind: str, z: np.ndarray) -> np.ndarray:
    """Outputs of an activation for inputs `z` of any shape, in their dtype."""
    with np.errstate(over="ignore"):  # exp(-z) is Inf far below 0, where the sigmoid is 0
        return np.asarray(ACTIVATIONS[kind].value(MATH, z))


def _derivatives(kind: str, a: np.ndarray) -> np.ndarray:
    """Derivatives of an activation, by its outputs."""
    return np.asarray(ACTIVATIONS[kind].gradient(MATH, np.ones_like(a), a))
