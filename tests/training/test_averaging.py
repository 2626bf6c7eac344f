"""Tests of averaging replicas, against loops over single numbers."""

from fractions import Fraction

import numpy as np

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


def test_outer_steps_equal_nesterov_momentum():
    """The mean change is the gradient: ``b <- 0.9 b + g ;  p <- p - 0.7 (g + 0.9 b)`` with ``g = p - mean``."""
    rng = np.random.default_rng(2)
    (state,) = states(rng, [5])
    velocity = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    p = np.array(state.parameters["b"], np.float64)
    b = np.zeros(2)
    for _ in range(4):
        (mean,) = states(rng, [6])
        g = p - mean.parameters["b"]
        b = 0.9 * b + g
        p = p - 0.7 * (g + 0.9 * b)
        state, velocity = outer_step(state, mean, velocity, 8)
        np.testing.assert_allclose(state.parameters["b"], p, rtol=1e-6, atol=1e-6)
        assert state.rule is mean.rule
        assert {array.dtype for array in (*velocity.values(), *state.parameters.values())} == {np.dtype(np.float32)}


def test_a_steady_move_is_amplified_at_most_sevenfold():
    """Each of many rounds changes the parameters by 0.01; the last change shows the amplification."""
    for n_replicas, expected in [(2, 2), (3, 3), (4, 4), (6, 6), (7, 7), (8, 7), (100, 7)]:
        state = Weights({"b": np.zeros(2, np.float32)}, {})
        velocity = {"b": np.zeros(2, np.float32)}
        for _ in range(200):
            before = state
            mean = Weights({"b": before.parameters["b"] + np.float32(0.01)}, {})
            state, velocity = outer_step(before, mean, velocity, n_replicas)
        step_size = (state.parameters["b"] - before.parameters["b"]) / 0.01
        np.testing.assert_allclose(step_size, expected, rtol=1e-3)
