"""The mathematics of networks in plain NumPy and float64: the reference for graphs and C code.

`shardpress_kernels.network` lists the equations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from shardpress_kernels.activations import ACTIVATIONS
from shardpress_kernels.hostmath import MATH, activated, code_of, head_outputs, threshold
from shardpress_kernels.network import Head, Network, TargetLoss

Parameters = Mapping[str, np.ndarray]


class Targets(NamedTuple):
    """Targets of the rows of a minibatch."""

    values: np.ndarray  # (n_rows,), float32: number of the class, or -1; or a number, or NaN
    loss: TargetLoss


def scaled(rows: np.ndarray, scaling: Sequence[np.ndarray]) -> np.ndarray:
    """Return scaled rows, rounded to float32, as float64.

    The scaling is center and scale, in whose dtype rows are scaled, or empty.
    The C code that multiplies bytes as integers does not round scaled rows, so its results differ by this rounding.
    """
    if not scaling:
        return rows.astype(np.float32).astype(np.float64)
    center, scale = scaling
    return ((rows.astype(center.dtype) - center) * scale).astype(np.float32).astype(np.float64)


def masked(x: np.ndarray, noise: np.ndarray, corruption: float) -> np.ndarray:
    """Return scaled rows in which the entries with low bytes of noise, uint8, are 0."""
    return np.where(noise < threshold(corruption), 0, x)


def forward(network: Network, x: np.ndarray, parameters: Parameters) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the outputs of every layer and of every mirror for scaled rows.

    They are ``a_0`` to ``a_n``, from the rows to the features, and ``s_0`` to ``s_n``, from the reconstruction to the
    input of the last layer's mirror.
    """
    a = _encode(network, x, parameters)
    return a, _decode(network, a[-1], parameters)


def _encode(network: Network, x: np.ndarray, parameters: Parameters) -> list[np.ndarray]:
    a = [x]
    for (W, b_hidden, _), kind in zip(network.layers, network.activations, strict=True):
        z = a[-1] @ parameters[W] + parameters[b_hidden]
        a.append(activated(kind, z))
    return a


def _decode(
    network: Network, h: np.ndarray, parameters: Parameters, mask: np.ndarray | float = 1.0
) -> list[np.ndarray]:
    start = h
    if network.gain:
        start = (h - network.center) * parameters["gain"]
    s = [start * mask]
    mirrors = list(zip(network.layers, network.mirrors, strict=True))
    for (W, _, b_output), kind in reversed(mirrors):
        z = s[0] @ parameters[W].T + parameters[b_output]
        s.insert(0, activated(kind, z))
    return s


def code(network: Network, x: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Return the code of scaled rows: shape (n_rows, n_features)."""
    return _encode(network, x, parameters)[-1]


def features(network: Network, x: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Return the written features of scaled rows: shape (n_rows, n_outputs)."""
    return _encode(network, x, parameters)[network.output.n_layers]


def row_errors(
    network: Network, x: np.ndarray, parameters: Parameters, written: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean squared error of the reconstruction of each scaled row: shape (n_rows,).

    By default, rows are reconstructed from their own features, otherwise from the features `written`.
    """
    h = code(network, x, parameters) if written is None else code_of(network, written, parameters)
    return np.mean((_decode(network, h, parameters)[0] - x) ** 2, axis=1)


def head_errors(head: Head, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the derivatives of the losses with respect to the outputs of the head: shape (n_rows, n_outputs)."""
    targets = targets[:, None]
    if head.kind == "numbers":
        return np.where(np.isnan(targets), 0, z - targets)
    shares = np.exp(z - z.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    return (targets >= 0) * (shares - (targets == np.arange(head.n_outputs)))


def _first_features(kept: np.ndarray | None, n_features: int) -> np.ndarray | float:
    """Return a mask (n_rows, n_features) of the first `kept` (n_rows,) features of each row; 1 if all are kept."""
    if kept is None:
        return 1.0
    return (np.arange(n_features) < kept[:, None]).astype(np.float64)


def gradients(
    network: Network,
    x: np.ndarray,
    visible: np.ndarray,
    parameters: Parameters,
    targets: Targets | None = None,
    kept: np.ndarray | None = None,
) -> tuple[float, list[np.ndarray]]:
    """Return the mean squared error of scaled rows, and the gradients of the cost in the order of the parameters.

    The cost is the mean squared error. With a head, it also includes the weighted mean loss of the targets. The network
    reconstructs `x` from the rows `visible`: `x`, or `x` with hidden entries. If it is nested, the decoder gets the
    first `kept` (n_rows,) features of each row.
    """
    a = _encode(network, visible, parameters)
    mask = _first_features(kept, network.n_features)
    s = _decode(network, a[-1], parameters, mask)
    d = s[0] - x
    error = float(np.mean(d**2))
    c = 2 / x.size  # factor from the derivative of the mean
    d, found = _decoder_gradients(network, d, a[-1], s, parameters, mask)
    if network.head is not None and targets is not None:
        weight, scale = targets.loss
        z = head_outputs(a[-1], parameters, scale)
        errors = head_errors(network.head, z, targets.values) * (weight * scale / len(x) / c)
        found["W_head"] = a[-1].T @ errors
        found["b_head"] = errors.sum(axis=0)
        d = d + errors @ parameters["W_head"].T
    found |= _encoder_gradients(network, d, a, found, parameters)
    return error, [c * found[name] for name in network.shapes]


def _decoder_gradients(
    network: Network,
    d: np.ndarray,
    h: np.ndarray,
    s: Sequence[np.ndarray],
    parameters: Parameters,
    mask: np.ndarray | float,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Propagate derivatives `d` of the reconstruction back to the features.

    Also return the gradients of the mirrors' biases and of the gain, and the mirrors' part of the gradients of the
    weights.
    """
    found: dict[str, np.ndarray] = {}
    for i, ((W, _, b_output), kind) in enumerate(zip(network.layers, network.mirrors, strict=True)):
        d = d * _derivatives(kind, s[i])
        found[W] = d.T @ s[i + 1]
        found[b_output] = d.sum(axis=0)
        d = d @ parameters[W]
    d = d * mask
    if network.gain:
        found["gain"] = (d * (h - network.center)).sum(axis=0)
        d = d * parameters["gain"]
    return d, found


def _encoder_gradients(
    network: Network,
    d: np.ndarray,
    a: Sequence[np.ndarray],
    mirrored: Mapping[str, np.ndarray],
    parameters: Parameters,
) -> dict[str, np.ndarray]:
    """Return the gradients of the layers' biases and weights, from derivatives `d` of the features.

    They include the mirrors' part of the gradients of the weights, `mirrored`.
    """
    found: dict[str, np.ndarray] = {}
    for i, (W, b_hidden, _) in reversed(list(enumerate(network.layers))):
        d = d * _derivatives(network.activations[i], a[i + 1])
        found[W] = mirrored[W] + a[i].T @ d
        found[b_hidden] = d.sum(axis=0)
        d = d @ parameters[W].T
    return found


def _derivatives(kind: str, a: np.ndarray) -> np.ndarray:
    """Return the derivatives of an activation as a function of its outputs."""
    return np.asarray(ACTIVATIONS[kind].gradient(MATH, np.ones_like(a), a))
