"""Tests of averaging replicas, against loops over single numbers."""

from fractions import Fraction

import numpy as np
import pytest

from shardpress.training.averaging import Average, Weights, outer_step

SHAPES = {"W": (3, 2), "b": (2,)}


def random_arrays(rng, shapes=SHAPES):
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def states(rng, counts):
    return [
        Weights(random_arrays(rng), {**random_arrays(rng, {"W.mean": (3, 2)}), "step": np.asarray(n, np.float32)})
        for n in counts
    ]


def averaged(states, weights):
    average = Average()
    for state, n_rows in zip(states, weights, strict=True):
        average.add(state, n_rows)
    assert average.n_rows == sum(weights)
    return average.mean()


def test_replicas_are_averaged_by_their_rows():
    """The largest number of steps is kept."""
    rng = np.random.default_rng(0)
    found = states(rng, [7, 9, 8, 5])
    weights = [64, 128, 100, 0]
    mean = averaged(found, weights)
    assert mean.rule["step"] == 9
    for kind, name in (("parameters", "W"), ("parameters", "b"), ("rule", "W.mean")):
        arrays = [getattr(state, kind)[name] for state in found]
        for place in np.ndindex(arrays[0].shape):
            exact = sum(n * Fraction(float(array[place])) for n, array in zip(weights, arrays, strict=True)) / sum(
                weights
            )
            assert abs(getattr(mean, kind)[name][place] - float(exact)) <= np.spacing(np.float32(abs(exact)))
        assert getattr(mean, kind)[name].dtype == np.float32


@pytest.mark.parametrize(("n_replicas", "m"), [(2, 0.65), (8, 0.9)])
def test_outer_steps_equal_nesterov_momentum(n_replicas, m):
    """The mean change is the gradient: ``b <- m b + g ;  p <- p - 0.7 (g + m b)`` with ``g = p - mean``.

    A steady move is amplified by ``0.7 / (1 - m)``: by the number of replicas, but at most sevenfold.
    """
    rng = np.random.default_rng(2)
    (state,) = states(rng, [5])
    velocity = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    p = np.array(state.parameters["b"], np.float64)
    b = np.zeros(2)
    for _ in range(4):
        (mean,) = states(rng, [6])
        g = p - mean.parameters["b"]
        b = m * b + g
        p = p - 0.7 * (g + m * b)
        state, velocity = outer_step(state, mean, velocity, n_replicas)
        np.testing.assert_allclose(state.parameters["b"], p, rtol=1e-6, atol=1e-6)
        assert state.rule is mean.rule
        assert {array.dtype for array in (*velocity.values(), *state.parameters.values())} == {np.dtype(np.float32)}
