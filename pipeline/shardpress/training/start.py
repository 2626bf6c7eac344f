"""Initial parameters of a network: random, or set so that it computes the principal components of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shardpress_kernels.activations import ACTIVATIONS
from shardpress_kernels.hostmath import activated
from shardpress_kernels.network import Network

if TYPE_CHECKING:
    from shardpress.training.components import Components

_Arrays = dict[str, np.ndarray]

# Standard deviation of the input of a nonlinear unit along its direction. It is small enough that a sigmoid is nearly
# linear (2 % off at two deviations), and large enough that steps of one rate change both weights and gains.
_NEARLY_LINEAR = 0.25

# Size of the random weights of surplus hidden units, relative to the usual size.
_REST = 1.0
# Bits of the largest entry of a rounded array. The rounded components of images are orthonormal within 0.0001.
_SHORT = 12


def start_of(
    network: Network, rng: np.random.Generator, mean: np.ndarray | None, components: Components | None = None
) -> _Arrays:
    """Return initial parameters with the names and shapes of the network, float64.

    Parameters
    ----------
    mean : ndarray of shape (n_inputs,), or None
        Mean of the scaled rows. With the initial biases the mean row is at the middle of each unit's activation, and is
        reconstructed exactly. Without these biases, wide rows would saturate every unit before it has learned anything.
        If the mean is None, all biases are 0, as in the reference.
    components : Components, optional
        One component for each feature, if the network has room for them (`has_room`). Apart from the curvature of
        sigmoids, the network then reconstructs rows as their principal components do.
    """
    if components is None:
        weights = [_random_weights(network, rng, layer) for layer in range(network.n_layers)]
        return _all_parameters(network, weights, mean, np.ones(network.n_features))
    code, scales = _code_matrix(network, rng, _rounded(components.deviations))
    weights = _component_weights(network, rng, _rounded(components.components), code)
    return _all_parameters(network, weights, components.mean, scales)


def _rounded(array: np.ndarray) -> np.ndarray:
    """Round numbers to `_SHORT` bits of the largest one.

    Versions of NumPy's BLAS, and numbers of its threads, give components that differ in the last bits. Rounding makes
    them equal, except for the rare number that lies halfway between two rounded ones.
    """
    _, exponent = np.frexp(np.abs(array).max())
    unit = np.ldexp(1.0, exponent - _SHORT)
    return np.asarray(np.round(array / unit) * unit + 0.0)  # 0.0 instead of -0.0


def has_room(network: Network) -> bool:
    """Return whether each hidden layer has a unit for each component and another one for its negative."""
    return all(width >= 2 * network.n_features for width in network.widths[1:-1])


def _all_parameters(
    network: Network, weights: list[np.ndarray], mean: np.ndarray | None, scales: np.ndarray
) -> _Arrays:
    """Return all parameters: the weights, biases that fit them, and a gain that undoes the `scales` (n_features,)."""
    parameters = {name: np.zeros(shape) for name, shape in network.shapes.items()}
    for (W, _, _), array in zip(network.layers, weights, strict=True):
        parameters[W] = array
    if network.gain:
        parameters["gain"] = 1 / (ACTIVATIONS[network.code].steepness * scales**2)
    if mean is not None:
        _center(network, parameters, weights, mean)
    return parameters


def _center(network: Network, parameters: _Arrays, weights: list[np.ndarray], mean: np.ndarray) -> None:
    """Set the biases so that the mean row (n_inputs,) is at the middle of activations and is reconstructed exactly."""
    _, b_hidden, b_output = network.layers[0]
    _, _, b_last = network.layers[-1]
    center = 0 if network.gain else network.center
    parameters[b_hidden] = -mean @ weights[0]
    parameters[b_last] = -weights[-1].sum(axis=1) * center
    _undo_middles(network, parameters, weights)
    parameters[b_output] = mean + parameters[b_output]


def _undo_middles(network: Network, parameters: _Arrays, weights: list[np.ndarray]) -> None:
    """Subtract the contributions of hidden units at the middle of their activation from encoder and decoder biases."""
    middle = ACTIVATIONS[network.activation].middle
    if middle == 0:
        return
    last = network.n_layers - 1
    for i, (_, b_hidden, b_output) in enumerate(network.layers):
        if i > 0:
            parameters[b_hidden] = parameters[b_hidden] - middle * weights[i].sum(axis=0)
        if i < last:
            parameters[b_output] = parameters[b_output] - middle * weights[i].sum(axis=1)


def _random_weights(network: Network, rng: np.random.Generator, layer: int) -> np.ndarray:
    n, m = network.widths[layer : layer + 2]
    weights = rng.standard_normal((n, m))  # in float64, since float32 would draw different numbers
    activation = ACTIVATIONS[network.activations[layer]]
    return np.asarray(activation.scale_weights(weights, n, m))


def _code_matrix(network: Network, rng: np.random.Generator, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix (n_features, n_features) from components to features, and the lengths of its columns.

    Linear features are the components. For other activations the components are rotated at random, so that each feature
    has about the same share of the variance. Otherwise the sizes of features and gains would differ a hundredfold.
    """
    k = network.n_features
    activation = ACTIVATIONS[network.code]
    if activation.slope == 1:
        return np.eye(k), np.ones(k)
    rotation = _rounded(np.linalg.qr(rng.standard_normal((k, k)))[0])
    rotated = np.sqrt(np.square(deviations) @ np.square(rotation))
    lengths = np.divide(_NEARLY_LINEAR, rotated, out=np.ones(k), where=rotated > 0)
    scales = lengths
    if not network.gain:  # then the lengths must undo the steepness, in the encoder and in the decoder
        scales = np.minimum(lengths / activation.steepness, 2.0)
    return rotation * scales, scales


def _component_weights(
    network: Network, rng: np.random.Generator, components: np.ndarray, code: np.ndarray
) -> list[np.ndarray]:
    """Return weights that pass the components through every layer to the code.

    A rectifier passes only positive numbers, but ``f(c) - f(-c) = (1 + slope) c``. Other activations have such a factor
    for small numbers. Therefore each component has one unit, and its negative has another one. Later hidden layers and
    the decoder pass both on unchanged. The weights of further units are random. They have no effect until the weights
    of the last layer, which are 0 for them, have grown.
    """
    cores = _cores(network, components, code)
    return [
        _fill_weights(core, _REST * _random_weights(network, rng, layer), layer) for layer, core in enumerate(cores)
    ]


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
    """Return the factor by which all hidden layers together scale a number of usual size in a pair of units."""
    pair = np.array([_NEARLY_LINEAR, -_NEARLY_LINEAR])
    for _ in range(network.n_layers - 1):
        pair = activated(network.activation, pair)
    return float(pair[0] - pair[1]) / _NEARLY_LINEAR


def _fill_weights(core: np.ndarray, rest: np.ndarray, layer: int) -> np.ndarray:
    """Return the weights of a layer: `core` between the first units, `rest` between the remaining units."""
    n, m = core.shape
    weights = np.zeros_like(rest)
    weights[:n, :m] = core
    first = n if layer else 0  # all columns of the input hold components
    weights[first:, m:] = rest[first:, m:]
    return weights
