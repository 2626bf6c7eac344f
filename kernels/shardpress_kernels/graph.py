"""Graphs of Theano that compute a network, from its description, its variables by name, and symbolic rows.

Tests compare them with the same mathematics in NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shardpress_kernels import backend
from shardpress_kernels.activations import ACTIVATIONS, Math
from shardpress_kernels.hostmath import threshold
from shardpress_kernels.network import Head, Network

theano = backend.load()
tensor = theano.tensor

_Variables = Mapping[str, Any]

MATH = Math(tensor.switch, tensor.tanh, tensor.nnet.sigmoid)


class TargetVariables(NamedTuple):
    """Variables of the targets of a minibatch, float32."""

    values: Any  # vector: numbers of classes, or -1; or numbers, or NaN
    factor: Any  # half the number of columns, times the weight of the mean loss and the scale
    scale: Any  # scale of the outputs


def _forward(network: Network, x: Any, variables: _Variables, n_before: int = 0) -> list[Any]:
    """Return the inputs of the layers after the first `n_before`, followed by the output of each; the last is the code.

    Without layers before, the inputs are scaled rows.
    """
    a = [x]
    layers = list(zip(network.layers, network.activations, strict=True))
    for (W, b_hidden, _), kind in layers[n_before:]:
        z = tensor.dot(a[-1], variables[W]) + variables[b_hidden]
        a.append(ACTIVATIONS[kind].value(MATH, z))
    return a


def _code(network: Network, x: Any, variables: _Variables) -> Any:
    """Return the features of symbolic scaled rows."""
    return _forward(network, x, variables)[-1]


def features(network: Network, x: Any, variables: _Variables) -> Any:
    """Return the written features of symbolic scaled rows."""
    return _forward(network, x, variables)[network.output.n_layers]


def _reconstruction(network: Network, h: Any, variables: _Variables) -> Any:
    """Return the scaled rows that the decoder computes from symbolic features."""
    return _decode(network, h, variables)[0]


def row_errors(network: Network, x: Any, variables: _Variables, written: Any = None) -> Any:
    """Return the mean squared error of the reconstruction of each symbolic scaled row.

    By default, rows are reconstructed from their own features, otherwise from the symbolic features `written`.
    """
    h = _code(network, x, variables)
    if written is not None:
        h = _forward(network, written, variables, network.output.n_layers)[-1]
    return _row_means((_reconstruction(network, h, variables) - x) ** 2)


def masked(x: Any, noise: Any, corruption: float) -> Any:
    """Return symbolic scaled rows in which the entries with low bytes of noise, uint8, are 0.

    Source: Vincent, Larochelle, Bengio and Manzagol, "Extracting and composing robust features with denoising
    autoencoders", 2008, section 2.3.
    """
    return tensor.switch(noise < np.int16(threshold(corruption)), np.float32(0), x)


def error_and_gradients(
    network: Network,
    x: Any,
    visible: Any,
    variables: _Variables,
    n_rows: Any = None,
    targets: TargetVariables | None = None,
    kept: Any = None,
) -> tuple[Any, list[Any]]:
    """Return the symbolic mean squared error of scaled rows, and the gradients of the cost by parameter.

    The cost is the mean squared error. With a head, it also includes the weighted mean loss of the targets. The network
    sees the rows `visible`: `x`, or `x` with hidden entries. If it is nested, the decoder gets the first `kept`
    features of each row.

    The gradients are written out, because Theano would compute the sums for the biases in float64. The factor
    ``c = 2 / (number of entries)`` is kept out of the matrices, so that the products can apply it. One layer of
    sigmoids, for example, has::

        dy = y - x                          dh = (dy . W) * h (1 - h)
        dW = c (visible^T . dh + dy^T . h)
        db_hidden = c (sum of dh over rows)
        db_output = c (sum of dy over rows)
    """
    a = _forward(network, visible, variables)
    mask = None
    if kept is not None:
        positions = np.arange(network.n_features, dtype=np.float32)
        mask = tensor.switch(positions < kept.dimshuffle(0, "x"), np.float32(1), np.float32(0))
    s = _decode(network, a[-1], variables, mask)
    d = s[0] - x
    # The mean is taken over columns and then over rows. A single float32 sum over all entries would lose digits.
    error = tensor.mean(_row_means(d**2), acc_dtype="float32")
    d, of_mirrors = _decoder_gradients(network, d, a[-1], s, variables, mask)
    of_head: dict[str, Any] = {}
    if n_rows is None:
        n_rows = x.shape[0].astype("float32")
    c = np.float32(2 / network.n_inputs) / n_rows
    if network.head is not None and targets is not None:
        errors = targets.factor * _head_errors(network.head, a[-1], targets, variables)
        # With c outside of this product, Theano would compute shapes on the host.
        of_head = {"W_head": tensor.dot(a[-1].T, c * errors), "b_head": _sum_rows(c * errors)}
        d = d + tensor.dot(errors, variables["W_head"].T)
    sums = of_mirrors | _encoder_gradients(network, d, a, of_mirrors, variables)
    gradients = {name: c * total for name, total in sums.items()} | of_head
    return error, [gradients[name] for name in network.shapes]


def _head_errors(head: Head, h: Any, targets: TargetVariables, variables: _Variables) -> Any:
    """Return the derivatives of the losses with respect to the outputs of the head, for symbolic features."""
    z = targets.scale * (tensor.dot(h, variables["W_head"]) + variables["b_head"])
    values = targets.values.dimshuffle(0, "x")
    if head.kind == "numbers":
        return tensor.switch(tensor.isnan(values), np.float32(0), z - values)
    shares = tensor.nnet.softmax(z)
    classes = np.arange(head.n_outputs, dtype=np.float32)
    is_class = tensor.switch(tensor.eq(values, classes), np.float32(1), np.float32(0))
    return tensor.switch(values >= np.float32(0), shares - is_class, np.float32(0))


def _decoder_gradients(
    network: Network, d: Any, h: Any, s: Sequence[Any], variables: _Variables, mask: Any
) -> tuple[Any, dict[str, Any]]:
    """Propagate derivatives `d` of the reconstruction back to the features.

    Also return the gradients of the mirrors' biases and of the gain, and the mirrors' part of the gradients of the
    weights.
    """
    gradients: dict[str, Any] = {}
    for i, ((W, _, b_output), kind) in enumerate(zip(network.layers, network.mirrors, strict=True)):
        d = ACTIVATIONS[kind].gradient(MATH, d, s[i])
        gradients[W] = tensor.dot(d.T, s[i + 1])
        gradients[b_output] = _sum_rows(d)
        d = tensor.dot(d, variables[W])
    if mask is not None:
        d = d * mask
    if network.gain:
        gradients["gain"] = _sum_rows(d * (h - np.float32(network.center)))
        d = d * variables["gain"]
    return d, gradients


def _encoder_gradients(
    network: Network, d: Any, a: Sequence[Any], mirrored: Mapping[str, Any], variables: _Variables
) -> dict[str, Any]:
    """Return the gradients of the layers' biases and weights, from derivatives `d` of the features.

    They include the mirrors' part of the gradients of the weights, `mirrored`.
    """
    gradients: dict[str, Any] = {}
    for i, (W, b_hidden, _) in reversed(list(enumerate(network.layers))):
        d = ACTIVATIONS[network.activations[i]].gradient(MATH, d, a[i + 1])
        gradients[W] = tensor.dot(a[i].T, d) + mirrored[W]
        gradients[b_hidden] = _sum_rows(d)
        d = tensor.dot(d, variables[W].T)
    return gradients


def _decode(network: Network, h: Any, variables: _Variables, mask: Any = None) -> list[Any]:
    """Return the outputs of all mirrors for symbolic features, from the reconstruction to the last mirror's input."""
    start = h
    if network.gain:
        start = (h - np.float32(network.center)) * variables["gain"]
    if mask is not None:
        start = start * mask
    s = [start]
    mirrors = list(zip(network.layers, network.mirrors, strict=True))
    for (W, _, b_output), kind in reversed(mirrors):
        z = tensor.dot(s[0], variables[W].T) + variables[b_output]
        s.insert(0, ACTIVATIONS[kind].value(MATH, z))
    return s


def _row_means(matrix: Any) -> Any:
    return tensor.mean(matrix, axis=1, acc_dtype="float32")


def _sum_rows(matrix: Any) -> Any:
    return tensor.sum(matrix, axis=0, acc_dtype="float32")
