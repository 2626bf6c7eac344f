"""Tests of training steps, with our Ops and with Theano's graph, against slow, simple NumPy, and against each other."""

import numpy as np
import pytest

from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.rules import RULES
from shardpress_kernels.upload import n_minibatches_at_once
from tests.support import reference
from tests.support.cases import each
from tests.support.models import (
    N_INPUTS,
    NETWORK,
    assert_same_arrays,
    random_autoencoder,
    random_rows,
    scaler_of,
    step_of,
)
from tests.support.networks import NETWORKS, numpy_steps
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler


def train_some(autoencoder, step, minibatches, with_cost=lambda number: False):
    """Return parameters and state after a step on each minibatch."""
    for number, minibatch in enumerate(minibatches):
        take_step(step, minibatch, 0.1, with_cost(number))
    return autoencoder.parameters() | step.state()


@pytest.mark.process
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_every_option_equals_numpy(rng, rule):
    # Our Op adds the gradients of several blocks of rows. No rule must divide by the gradients of a dead unit, 0.
    network = Network((N_INPUTS, 40, 5), "relu", "sigmoid", gain=True)
    x = rng.random((8, 300, N_INPUTS), dtype=np.float32)
    noise = rng.integers(0, 256, x.shape, np.uint8)
    autoencoder = random_autoencoder(rng, network)
    start = autoencoder.parameters()
    start["b_hidden_1"][0] = -100
    start["b_output_2"][0] = -100
    autoencoder.set_parameters(start)
    step = step_of(autoencoder, rule, corruption=0.25)
    corrupted = reference.masked(x.astype(np.float64), noise, 0.25)
    minibatches = zip(x.astype(np.float64), corrupted, strict=True)
    expected, expected_costs = numpy_steps(network, start, minibatches, rule, 0.01)
    costs = [take_step(step, rows, 0.01, with_cost=True, noise=own) for rows, own in zip(x, noise, strict=True)]
    assert_close(costs, expected_costs, "cpu", "float32", "cost")
    for name, array in autoencoder.parameters().items():
        assert_close(array, expected[name], "cpu", "float32", "parameters")


def test_steps_on_several_minibatches_equal_single_steps(rng):
    rows = random_rows(rng, 10, np.dtype("f4"))
    noise = rng.integers(0, 256, (10, N_INPUTS), dtype=np.uint8)
    rates = [0.3, 0.2, 0.1]
    found = []
    for n_taken in ((1, 1, 1), (3,), (1, 2)):
        autoencoder = random_autoencoder(np.random.default_rng(5))
        step = step_of(autoencoder, corruption=0.5)
        step.begin(rows, noise, 4)
        n_done = 0
        for n in n_taken:
            assert (step.take(rates[n_done : n_done + n], with_cost=n_done == 0) is None) == (n_done > 0)
            n_done += n
        found.append(autoencoder.parameters())
    autoencoder = random_autoencoder(np.random.default_rng(5))
    step = step_of(autoencoder, corruption=0.5)
    for i, rate in enumerate(rates):
        take_step(step, rows[4 * i : 4 * i + 4], rate, noise=noise[4 * i : 4 * i + 4])
    for parameters in found:
        assert_same_arrays(parameters, autoencoder.parameters())


def test_minibatches_at_once_are_limited_by_size_and_time(rng):
    # The limit is half a second of work at 64 GFLOP/s. Slower devices are not used for training.
    step = step_of(random_autoencoder(rng), corruption=0.5)
    assert step.n_at_once(1) == 1, "the CPU takes a minibatch while it is in the cache"
    flops_per_row = 6 * NETWORK.n_weights
    for batch_size in (8, 2**16, 2**20, 2**24, 2**40):
        n = n_minibatches_at_once(batch_size, step.row_bytes, flops_per_row)
        assert n == 1 or n * batch_size * max(step.row_bytes / 2**24, flops_per_row / 2**35) <= 1
    assert 1 < n_minibatches_at_once(128, step.row_bytes, 6 * 784 * 4096) < 32


@pytest.mark.process
@each("dtype", ["u1", "f8"])
def test_resident_and_streamed_rows_train_the_same_bits(rng, dtype):
    rows = random_rows(rng, 300, np.dtype(dtype))
    center, scale = scaler_of(rows).arrays(rows.dtype)
    minibatches = [rng.permutation(300)[:64] for _ in range(9)] + [np.array([299], dtype=np.int64)]
    noise = [rng.integers(0, 256, (len(numbers), N_INPUTS), dtype=np.uint8) for numbers in minibatches]
    results = []
    for resident in (None, rows.copy()):
        autoencoder = random_autoencoder(np.random.default_rng(5), NETWORKS["gain"], center, scale)
        step = step_of(autoencoder, "adam", dtype, resident, corruption=0.25)
        for numbers, own in zip(minibatches, noise, strict=True):
            take_step(step, rows[numbers] if resident is None else numbers, 0.01, noise=own)
        results.append(autoencoder.parameters() | step.state())
    assert_same_arrays(*results)


def test_computing_the_cost_does_not_change_training(rng):
    minibatches = rng.random((12, 64, N_INPUTS), dtype=np.float32)
    results = []
    for with_cost in (lambda _: False, lambda _: True, lambda number: number % 3 == 0):
        autoencoder = random_autoencoder(np.random.default_rng(5))
        results.append(train_some(autoencoder, step_of(autoencoder), minibatches, with_cost))
    assert_same_arrays(results[1], results[0])
    assert_same_arrays(results[2], results[0])


def test_training_resumed_from_saved_copies_is_the_same(rng):
    minibatches = rng.random((10, 16, N_INPUTS), dtype=np.float32)
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder)
    train_some(autoencoder, step, minibatches[:5])
    saved_parameters = autoencoder.parameters()
    saved_state = step.state()
    expected = train_some(autoencoder, step, minibatches[5:])

    resumed = Autoencoder(NETWORK)
    resumed.set_parameters(saved_parameters)
    step = step_of(resumed)
    step.set_state(saved_state)
    assert_same_arrays(train_some(resumed, step, minibatches[5:]), expected)


def test_state_of_another_rule_is_refused(rng):
    adam = step_of(random_autoencoder(rng), "adam")
    with pytest.raises(ValueError, match=r"W\.mean.*W\.velocity"):
        step_of(random_autoencoder(rng)).set_state(adam.state())
