"""Networks with various options, random parameters, and a NumPy training loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from shardpress_kernels.network import Network
from tests.support import reference

DECAY = 0.9  # decay of the running averages of all rules

# Settings that reproduce the networks, the initialization and the scaling of earlier versions.
ONE_LAYER: dict[str, Any] = {
    **{"hidden": (), "code_activation": "sigmoid", "decoder_gain": False},
    **{"corruption": 0.0, "start": "random", "replicas": 1, "scale": "range"},
}

# All networks have 7 columns and 3 features.
NETWORKS = {
    "sigmoid": Network((7, 3)),
    "linear": Network((7, 3), code="linear"),
    "gain": Network((7, 3), gain=True),
    "relu": Network((7, 6, 3)),
    "leaky": Network((7, 6, 3), "leaky-relu", "linear"),
    "three": Network((7, 8, 5, 3), "leaky-relu", "sigmoid", gain=True),
    "all linear": Network((7, 5, 4, 3), "relu", "linear", gain=True),
}


def random_parameters(rng: np.random.Generator, network: Network) -> dict[str, np.ndarray]:
    """Return random float32 parameters of both signs."""
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in network.shapes.items()}


def numpy_steps(
    network: Network,
    parameters: Mapping[str, np.ndarray],
    minibatches: Iterable[tuple[np.ndarray, np.ndarray]],
    rule: str,
    rate: float,
    more: Sequence[tuple[reference.Targets | None, np.ndarray | None]] = (),
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Take float64 steps on scaled rows and corrupted copies. Return the parameters and the cost before each step.

    `more` contains for each minibatch the targets of a head, or None, and for a nested network the number of the first
    features of each row that the decoder gets, or None.
    """
    p = {name: array.astype(np.float64) for name, array in parameters.items()}
    state = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in p.items()}
    costs = []
    for count, (x, corrupted) in enumerate(minibatches, start=1):
        targets, kept = more[count - 1] if more else (None, None)
        cost, gradients = reference.gradients(network, x, corrupted, p, targets, kept)
        costs.append(cost)
        for (name, array), gradient in zip(p.items(), gradients, strict=True):
            numpy_update(rule, count, rate, array, gradient, *state[name])
    return p, costs


def numpy_update(
    rule: str, count: int, rate: float, p: np.ndarray, g: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    """Take one step of a rule in place. `first` is a velocity or adam's mean, and `second` is a mean of squares."""
    if rule in ("momentum", "nesterov"):
        first[:] = DECAY * first - rate * g
        p += first if rule == "momentum" else DECAY * first - rate * g
    elif rule == "adam":
        first[:] = DECAY * first + (1 - DECAY) * g
        second[:] = 0.999 * second + (1 - 0.999) * g**2
        p -= rate * np.sqrt(1 - 0.999**count) / (1 - DECAY**count) * first / (np.sqrt(second) + 1e-8)
    else:
        second[:] = DECAY * second + (1 - DECAY) * g**2
        p -= rate * g / np.sqrt(second + 1e-6)
