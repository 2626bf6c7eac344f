"""A network as Theano's graph: plain functions of its description, its variables by name, and symbolic rows.

`kernels.reference` has the same mathematics in NumPy, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernels import backend
from kernels.activations import ACTIVATIONS, Math
from kernels.network import Network
from kernels.reference import threshold

theano = backend.load()
tensor = theano.tensor

__all__ = ["MATH", "code", "cost_and_gradients", "forward", "masked", "reconstruction", "row_errors"]

Variables = Mapping[str, Any]

MATH = Math(tensor.switch, tensor.exp, tensor.log1p, tensor.tanh, tensor.nnet.sigmoid)


def forward(network: Network, x: Any, variables: Variables) -> list[Any]:
    """Every layer's output on the way in of symbolic scaled rows, from these on to the features."""
    a = [x]
    for (W, b_hidden, _), kind in zip(network.layers, network.activations, strict=True):
        z = tensor.dot(a[-1], variables[W]) + variables[b_hidden]
        a.append(ACTIVATIONS[kind].value(MATH, z))
    return a


def code(network: Network, x: Any, variables: Variables) -> Any:
    """Features of symbolic scaled rows."""
    return forward(network, x, variables)[-1]


def reconstruction(network: Network, h: Any, variables: Variables) -> Any:
    """Scaled rows that symbolic features stand for."""
    return _back(network, h, variables)[0]


def row_errors(network: Network, x: Any, variables: Variables) -> Any:
    """Mean squared error of each symbolic scaled row's reconstruction."""
    return _row_means((reconstruction(network, code(network, x, variables), variables) - x) ** 2)


def masked(x: Any, noise: Any, corruption: float) -> Any:
    """Scaled rows of which the entries with low bytes of noise are 0."""
    return tensor.switch(noise < np.int16(threshold(corruption)), np.float32(0), x)


def cost_and_gradients(
    network: Network, x: Any, seen: Any, variables: Variables, n_rows: Any = None
) -> tuple[Any, list[Any]]:
    """Symbolic cost of scaled rows, of which the network sees `seen`, and its gradients in the order of the parameters.

    `n_rows` is how many there are, float32, where they need not be asked.

    Written out, since Theano's own would sum the biases' gradients in float64. With c = 2 / (number of entries) kept
    out of the matrices, so that the products take it up as their factor, one layer of sigmoids for example has::

        dy = y - x                          dh = (dy . W) * h (1 - h)
        dW = c (seen^T . dh + dy^T . h)
        db_hidden = c (sum of dh over rows)
        db_output = c (sum of dy over rows)
    """
    a = forward(network, seen, variables)
    s = _back(network, a[-1], variables)
    d = s[0] - x
    # In two steps, over columns and then over rows: a single float32 sum of every entry loses digits.
    cost = tensor.mean(_row_means(d**2), acc_dtype="float32")
    found: dict[str, Any] = {}
    for i, ((W, _, b_output), kind) in enumerate(zip(network.layers, network.mirrors, strict=True)):
        d = ACTIVATIONS[kind].gradient(MATH, d, s[i])
        found |= {W: tensor.dot(d.T, s[i + 1]), b_output: _sum_rows(d)}
        d = tensor.dot(d, variables[W])
    if network.gain:
        found["gain"] = _sum_rows(d * (a[-1] - np.float32(network.center)))
        d = d * variables["gain"]
    for i, (W, b_hidden, _) in reversed(list(enumerate(network.layers))):
        d = ACTIVATIONS[network.activations[i]].gradient(MATH, d, a[i + 1])
        found |= {W: tensor.dot(a[i].T, d) + found[W], b_hidden: _sum_rows(d)}
        d = tensor.dot(d, variables[W].T)
    c = np.float32(2 / network.n_inputs) / (x.shape[0].astype("float32") if n_rows is None else n_rows)
    return cost, [c * found[name] for name in network.shapes]


def _back(network: Network, h: Any, variables: Variables) -> list[Any]:
    """What each layer's mirror makes of symbolic features, from the reconstruction on to what enters the last layer."""
    s = [(h - np.float32(network.center)) * variables["gain"] if network.gain else h]
    for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
        z = tensor.dot(s[0], variables[W].T) + variables[b_output]
        s.insert(0, ACTIVATIONS[kind].value(MATH, z))
    return s


def _row_means(matrix: Any) -> Any:
    return tensor.mean(matrix, axis=1, acc_dtype="float32")


def _sum_rows(matrix: Any) -> Any:
    return tensor.sum(matrix, axis=0, acc_dtype="float32")
