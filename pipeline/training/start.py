"""Where a network's parameters start: at random, or where it is the principal components of its rows."""

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

# The input of a unit that is not linear has this standard deviation: so small that a sigmoid is nearly linear (2 % off
# at two of them), and so large that weights and gains are of a size that steps of one rate can move.
_NEARLY_LINEAR = 0.25

# Of hidden units beyond those that the components need, beside random weights of the usual size.
_REST = 1.0


def start_of(
    network: Network, rng: np.random.Generator, mean: np.ndarray | None, components: Components | None = None
) -> Arrays:
    """Parameters by the names and of the shapes that the network gives them, float64.

    Parameters
    ----------
    mean : ndarray of shape (n_inputs,), or None
        The scaled rows' mean. The biases then start so that the mean row meets every unit at the middle of its
        activation, and is its own reconstruction: wide rows would otherwise saturate every unit before it has learned
        anything. Without it all biases are 0, as in the reference.
    components : Components, optional
        As many as there are features, for a network that has room for them. What it makes of a row at the start is then
        what they make of it, but for the bend of sigmoids.
    """
    if components is None:
        weights = [_random(network, rng, layer) for layer in range(network.n_layers)]
        return _completed(network, weights, mean, np.ones(network.n_features))
    code, scales = _code(network, rng, components.deviations)
    return _completed(network, _chained(network, rng, components.components, code), components.mean, scales)


def has_room(network: Network) -> bool:
    """Whether the hidden layers have a unit for each component, and one for its negative."""
    return all(width >= 2 * network.n_features for width in network.widths[1:-1])


def _completed(network: Network, weights: list[np.ndarray], mean: np.ndarray | None, scales: np.ndarray) -> Arrays:
    """The weights, biases to them, and the gain that undoes the scales (n_features,) of the features."""
    found = {name: np.zeros(shape) for name, shape in network.shapes.items()}
    found |= {W: array for (W, _, _), array in zip(network.layers, weights, strict=True)}
    if network.gain:
        found["gain"] = 1 / (ACTIVATIONS[network.code].steepness * scales**2)
    if mean is not None:
        (_, b_hidden, b_output), (_, _, b_last) = network.layers[0], network.layers[-1]
        found[b_hidden] = -mean @ weights[0]
        found[b_last] = -weights[-1].sum(axis=1) * (0 if network.gain else network.center)
        _undo_middles(network, weights, found)
        found[b_output] = mean + found[b_output]
    return found


def _undo_middles(network: Network, weights: list[np.ndarray], found: Arrays) -> None:
    """Subtract from biases what hidden units at the middle of their activation hand on, on either way."""
    middle = ACTIVATIONS[network.activation].middle
    if middle == 0:
        return
    last = network.n_layers - 1
    for i, (_, b_hidden, b_output) in enumerate(network.layers):
        if i > 0:
            found[b_hidden] = found[b_hidden] - middle * weights[i].sum(axis=0)
        if i < last:
            found[b_output] = found[b_output] - middle * weights[i].sum(axis=1)


def _random(network: Network, rng: np.random.Generator, layer: int) -> np.ndarray:
    """Weights of a layer, drawn from a normal distribution around 0."""
    n, m = network.widths[layer : layer + 2]
    weights = rng.standard_normal((n, m))  # in float64: float32 would draw other numbers
    activation = ACTIVATIONS[network.activations[layer]]
    return np.asarray(activation.scale_weights(weights, n, m))


def _code(network: Network, rng: np.random.Generator, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What makes features of components: a matrix (n_features, n_features) with columns of these lengths (n_features,).

    Of linear features each is a component. Before other codes the components are turned at random, so that each feature
    has about the same share of the variance: their sizes, and those of the gains, would else differ a hundredfold.
    """
    k = network.n_features
    activation = ACTIVATIONS[network.code]
    if activation.slope == 1:
        return np.eye(k), np.ones(k)
    turn = np.linalg.qr(rng.standard_normal((k, k)))[0]
    turned = np.sqrt(np.square(deviations) @ np.square(turn))
    lengths = np.divide(_NEARLY_LINEAR, turned, out=np.ones(k), where=turned > 0)
    # Without a gain it is the length itself that has to undo the steepness, on the way in and back.
    scales = lengths if network.gain else np.minimum(lengths / activation.steepness, 2.0)
    return turn * scales, scales


def _chained(network: Network, rng: np.random.Generator, components: np.ndarray, code: np.ndarray) -> list[np.ndarray]:
    """Weights by which every layer hands on the components, up to the code.

    A rectifier lets half of a number through, but ``f(c) - f(-c) = (1 + slope) c``; other activations have such a
    factor for small numbers. So the components and their negatives have a unit each, which hidden layers behind the
    first hand on as they are, on the way back as well. Further units are random, and count only when the last layer's
    weights, 0 for them, have grown.
    """
    k = network.n_features
    pairs = [np.hstack([components, -components]), *[np.eye(2 * k)] * (network.n_layers - 2)]
    cores = [*pairs, np.vstack([code, -code]) / _pair_factor(network)] if network.n_layers > 1 else [components @ code]
    return [_filled(core, _REST * _random(network, rng, layer), layer) for layer, core in enumerate(cores)]


def _pair_factor(network: Network) -> float:
    """Return the factor by which pairs of units hand on a number of usual size through all hidden layers."""
    pair = np.array([_NEARLY_LINEAR, -_NEARLY_LINEAR])
    for _ in range(network.n_layers - 1):
        pair = activated(network.activation, pair)
    return float(pair[0] - pair[1]) / _NEARLY_LINEAR


def _filled(core: np.ndarray, rest: np.ndarray, layer: int) -> np.ndarray:
    """A layer's weights: `core` for the first units that it leads from and to, `rest` between the others."""
    n, m = core.shape
    found = np.zeros_like(rest)
    found[:n, :m] = core
    first = n if layer else 0  # the columns have no units of their own
    found[first:, m:] = rest[first:, m:]
    return found
