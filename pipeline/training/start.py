"""Initial parameters of a network: random, or such that it computes the principal components of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kernels.activations import ACTIVATIONS
from kernels.network import Network
from kernels.reference import activated

if TYPE_CHECKING:
    from pipeline.training.components import Components

__all__ = ["has_room", "start_of"]

Arrays = dict[str, np.ndarray]

# Standard deviation of the input of a unit that is not linear, along the direction of the unit. It is so small that a
# sigmoid is nearly linear (2 % off at two of them), and so large that steps of one rate can move weights and gains.
_NEARLY_LINEAR = 0.25

# Size of the random weights of hidden units that components do not need, relative to the usual size.
_REST = 1.0


def start_of(
    network: Network, rng: np.random.Generator, mean: np.ndarray | None, components: Components | None = None
) -> Arrays:
    """Return initial parameters with the names and shapes of the network, float64.

    Parameters
    ----------
    mean : ndarray of shape (n_inputs,), or None
        Mean of the scaled rows. With the initial biases the mean row is at the middle of each unit's activation, and is
        reconstructed exactly. Otherwise wide rows would saturate every unit before it has learned anything. Without a
        mean all biases are 0, as in the reference.
    components : Components, optional
        One component for each feature, if the network has room for them (`has_room`). Apart from the curvature of
        sigmoids, the network then reconstructs rows as their principal components do.
    """
    if components is None:
        weights = [_random(network, rng, layer) for layer in range(network.n_layers)]
        return _completed(network, weights, mean, np.ones(network.n_features))
    code, scales = _code(network, rng, components.deviations)
    weights = _chained(network, rng, components.components, code)
    return _completed(network, weights, components.mean, scales)


def has_room(network: Network) -> bool:
    """Return whether each hidden layer has a unit for each component and another one for its negative."""
    return all(width >= 2 * network.n_features for width in network.widths[1:-1])


def _completed(network: Network, weights: list[np.ndarray], mean: np.ndarray | None, scales: np.ndarray) -> Arrays:
    """Return all parameters: the weights, biases that fit them, and a gain that undoes the `scales` (n_features,)."""
    parameters = {name: np.zeros(shape) for name, shape in network.shapes.items()}
    for (W, _, _), array in zip(network.layers, weights, strict=True):
        parameters[W] = array
    if network.gain:
        parameters["gain"] = 1 / (ACTIVATIONS[network.code].steepness * scales**2)
    if mean is not None:
        _center(network, parameters, weights, mean)
    return parameters


def _center(network: Network, parameters: Arrays, weights: list[np.ndarray], mean: np.ndarray) -> None:
    """Set the biases so that the mean row (n_inputs,) is at the middle of activations and is reconstructed exactly."""
    _, b_hidden, b_output = network.layers[0]
    _, _, b_last = network.layers[-1]
    center = 0 if network.gain else network.center
    parameters[b_hidden] = -mean @ weights[0]
    parameters[b_last] = -weights[-1].sum(axis=1) * center
    _undo_middles(network, parameters, weights)
    parameters[b_output] = mean + parameters[b_output]


def _undo_middles(network: Network, parameters: Arrays, weights: list[np.ndarray]) -> None:
    """Subtract from the biases what hidden units at the middle of their activation add to the next layer, both ways."""
    middle = ACTIVATIONS[network.activation].middle
    if middle == 0:
        return
    last = network.n_layers - 1
    for i, (_, b_hidden, b_output) in enumerate(network.layers):
        if i > 0:
            parameters[b_hidden] = parameters[b_hidden] - middle * weights[i].sum(axis=0)
        if i < last:
            parameters[b_output] = parameters[b_output] - middle * weights[i].sum(axis=1)


def _random(network: Network, rng: np.random.Generator, layer: int) -> np.ndarray:
    """Return weights of a layer, drawn from a normal distribution around 0."""
    n, m = network.widths[layer : layer + 2]
    weights = rng.standard_normal((n, m))  # in float64: float32 would draw other numbers
    activation = ACTIVATIONS[network.activations[layer]]
    return np.asarray(activation.scale_weights(weights, n, m))


def _code(network: Network, rng: np.random.Generator, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix (n_features, n_features) from components to features, and the lengths of its columns.

    Linear features are the components. For other activations the components are rotated at random, so that each feature
    has about the same share of the variance. Otherwise their sizes, and those of the gains, would differ a hundredfold.
    """
    k = network.n_features
    activation = ACTIVATIONS[network.code]
    if activation.slope == 1:
        return np.eye(k), np.ones(k)
    turn = np.linalg.qr(rng.standard_normal((k, k)))[0]
    turned = np.sqrt(np.square(deviations) @ np.square(turn))
    lengths = np.divide(_NEARLY_LINEAR, turned, out=np.ones(k), where=turned > 0)
    scales = lengths
    if not network.gain:  # then the lengths themselves have to undo the steepness, on the way in and back
        scales = np.minimum(lengths / activation.steepness, 2.0)
    return turn * scales, scales


def _chained(network: Network, rng: np.random.Generator, components: np.ndarray, code: np.ndarray) -> list[np.ndarray]:
    """Return weights with which every layer passes the components on, up to the code.

    A rectifier lets one half of the numbers through, but ``f(c) - f(-c) = (1 + slope) c``; other activations have such
    a factor for small numbers. So there is a unit for each component and another one for its negative. Hidden layers
    after the first pass them on unchanged, on the way back as well. The weights of further units are random. They have
    no effect until the weights of the last layer, which are 0 for them, have grown.
    """
    cores = _cores(network, components, code)
    return [_filled(core, _REST * _random(network, rng, layer), layer) for layer, core in enumerate(cores)]


def _cores(network: Network, components: np.ndarray, code: np.ndarray) -> list[np.ndarray]:
    """Return the weights between the units that hold components, layer by layer."""
    if network.n_layers == 1:
        return [components @ code]
    k = network.n_features
    first = np.hstack([components, -components])
    middle = [np.eye(2 * k)] * (network.n_layers - 2)
    last = np.vstack([code, -code]) / _pair_factor(network)
    return [first, *middle, last]


def _pair_factor(network: Network) -> float:
    """Return the factor by which pairs of units change a number of usual size in all hidden layers."""
    pair = np.array([_NEARLY_LINEAR, -_NEARLY_LINEAR])
    for _ in range(network.n_layers - 1):
        pair = activated(network.activation, pair)
    return float(pair[0] - pair[1]) / _NEARLY_LINEAR


def _filled(core: np.ndarray, rest: np.ndarray, layer: int) -> np.ndarray:
    """Return the weights of a layer: `core` between the first units, `rest` between the others."""
    n, m = core.shape
    found = np.zeros_like(rest)
    found[:n, :m] = core
    first = n if layer else 0  # all columns of the input hold components
    found[first:, m:] = rest[first:, m:]
    return found
