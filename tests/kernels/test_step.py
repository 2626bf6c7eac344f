"""Tests of training steps against slow, simple NumPy loops, and against each other.

Sample: training with and without the cost is compared for two of four update rules; with TEST_CASES=all for each rule.
"""

import numpy as np
import pytest

from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Network
from shardpress_kernels.rules import RULES
from shardpress_kernels.upload import n_minibatches_at_once
from tests.support import reference
from tests.support.cases import each, sample
from tests.support.models import (
    N_FEATURES,
    N_INPUTS,
    NETWORK,
    assert_same_arrays,
    float64,
    oracle_cost,
    oracle_gradients,
    oracle_scaled,
    random_autoencoder,
    random_rows,
    scaler_of,
    scaling_of,
    step_of,
)
from tests.support.networks import NETWORKS, numpy_steps
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = [pytest.mark.usefixtures("path"), pytest.mark.compiler]

WIDE = Network((30, 8))


@pytest.mark.process
def test_momentum_steps_equal_a_numpy_loop(rng):
    rows = random_rows(rng, 24, np.dtype("u1"))
    center, scale = scaling_of(rows, "float32")
    autoencoder = random_autoencoder(rng, center=center, scale=scale)
    p = float64(autoencoder.parameters())
    v = {name: np.zeros_like(array) for name, array in p.items()}
    step = step_of(autoencoder, dtype="u1")
    for number in range(20):
        minibatch = rows[rng.permutation(24)[:8]]
        rate = 0.1 if number < 10 else 0.05
        x = oracle_scaled(minibatch, center, scale).astype(np.float64)
        cost = take_step(step, minibatch, rate, with_cost=True)
        assert_close(cost, oracle_cost(p, x), "cpu", "float32", "cost")
        for name, gradient in oracle_gradients(p, x).items():
            v[name] = 0.9 * v[name] - rate * gradient
            p[name] = p[name] + v[name]
    for name, array in autoencoder.parameters().items():
        assert_close(array, p[name], "cpu", "float32", "parameters")
        assert_close(step.state()[f"{name}.velocity"], v[name], "cpu", "float32", "parameters")


@each("corruption", [0.0, 0.5])
def test_steps_on_several_minibatches_equal_single_steps(rng, corruption):
    # The CPU requests one minibatch at a time, because this minibatch is still in the cache.
    rows = random_rows(rng, 10, np.dtype("f4"))
    noise = rng.integers(0, 256, (10, N_INPUTS), dtype=np.uint8)
    start = random_autoencoder(rng).parameters()
    rates = [0.3, 0.2, 0.1]
    found = []

    def new_step():
        autoencoder = random_autoencoder(rng)
        autoencoder.set_parameters(start)
        return autoencoder, step_of(autoencoder, dtype="f4", corruption=corruption)

    for n_taken in ((1, 1, 1), (3,), (1, 2)):
        autoencoder, step = new_step()
        n_done = 0
        assert step.n_at_once(4) == 1
        step.begin(rows, noise if corruption else None, 4)
        for n in n_taken:
            assert (step.take(rates[n_done : n_done + n], with_cost=n_done == 0) is None) == (n_done > 0)
            n_done += n
        found.append(autoencoder.parameters())
    autoencoder, step = new_step()
    for i, rate in enumerate(rates):
        numbers = slice(4 * i, 4 * i + 4)
        take_step(step, rows[numbers], rate, noise=noise[numbers] if corruption else None)
    for parameters in found:
        assert_same_arrays(parameters, autoencoder.parameters())


def test_minibatches_at_once_are_limited_by_size_and_time(rng):
    # The limit is half a second of work at 64 GFLOP/s. Slower devices are not used for training.
    step = step_of(random_autoencoder(rng), dtype="f4", corruption=0.5)
    assert step.n_at_once(1) == 1, "on the CPU"
    assert step.row_bytes == 5 * N_INPUTS
    flops_per_row = 6 * NETWORK.n_weights
    assert n_minibatches_at_once(8, step.row_bytes, flops_per_row) == 32
    for batch_size in (2**16, 2**20, 2**24, 2**40):
        n = n_minibatches_at_once(batch_size, step.row_bytes, flops_per_row)
        assert n == 1 or n * batch_size * step.row_bytes <= 2**24
        assert n == 1 or n * batch_size * flops_per_row <= 2**35
    assert 1 < n_minibatches_at_once(128, step.row_bytes, 6 * 784 * 4096) < 32


def test_minibatches_at_once_depend_on_the_network(rng):
    step = step_of(random_autoencoder(rng, Network((N_INPUTS, 2**16))))
    step._feed.max_minibatches = 32  # the value for a device
    assert step.n_at_once(1000) == 2**35 // (6 * N_INPUTS * 2**16) // 1000 == 12


def train_some(autoencoder, step, minibatches, with_cost=lambda number: False):
    """Return parameters and state after a step on each minibatch."""
    for number, minibatch in enumerate(minibatches):
        take_step(step, minibatch, 0.1, with_cost(number))
    return autoencoder.parameters() | step.state()


@pytest.mark.process
@each("dtype", ["u1", "f4", "f8"])
def test_resident_and_streamed_rows_train_the_same_bits(rng, dtype):
    rows = random_rows(rng, 300, np.dtype(dtype), 30)
    center, scale = scaler_of(rows).arrays(rows.dtype)
    numbers = [rng.permutation(300)[:64] for _ in range(12)] + [np.array([299], dtype=np.int64)]
    results = []
    for resident in (None, rows.copy()):
        autoencoder = random_autoencoder(np.random.default_rng(5), WIDE, center, scale)
        step = step_of(autoencoder, dtype=dtype, resident=resident)
        minibatches = numbers if resident is not None else [rows[n] for n in numbers]
        results.append(train_some(autoencoder, step, minibatches))
    assert_same_arrays(*results)


@pytest.mark.process
@each("rule", RULES)
def test_every_rule_with_every_option_equals_numpy(rng, rule):
    network = NETWORKS["three"]
    corruption = 0.25
    x = rng.random((8, 16, N_INPUTS), dtype=np.float32)
    noise = rng.integers(0, 256, (8, 16, N_INPUTS), np.uint8)
    autoencoder = random_autoencoder(rng, network)
    step = step_of(autoencoder, rule, corruption=corruption)
    corrupted = reference.masked(x.astype(np.float64), noise, corruption)
    expected, expected_costs = numpy_steps(
        network, autoencoder.parameters(), zip(x.astype(np.float64), corrupted, strict=True), rule, 0.01
    )
    costs = [take_step(step, rows, 0.01, with_cost=True, noise=own) for rows, own in zip(x, noise, strict=True)]
    assert_close(costs, expected_costs, "cpu", "float32", "cost")
    for name, array in autoencoder.parameters().items():
        assert_close(array, expected[name], "cpu", "float32", "parameters")


@pytest.mark.process
def test_resident_and_streamed_rows_are_corrupted_equally(rng):
    rows = random_rows(rng, 300, np.dtype("u1"))
    network = NETWORKS["three"]
    center, scale = scaler_of(rows).arrays(rows.dtype)
    numbers = rng.integers(0, 300, (9, 64))
    noise = rng.integers(0, 256, (9, 64, N_INPUTS), dtype=np.uint8)
    results = []
    for resident in (None, rows.copy()):
        autoencoder = random_autoencoder(np.random.default_rng(5), network, center, scale)
        step = step_of(autoencoder, "adam", "u1", resident, corruption=0.25)
        for chosen, own in zip(numbers, noise, strict=True):
            take_step(step, rows[chosen] if resident is None else chosen, 0.01, noise=own)
        results.append(autoencoder.parameters() | step.state())
    assert_same_arrays(*results)


@each("corruption, noise", [(0.25, None), (0.0, np.zeros((4, N_INPUTS), np.uint8))])
def test_noise_is_required_exactly_with_corruption(rng, corruption, noise):
    step = step_of(random_autoencoder(rng), corruption=corruption)
    with pytest.raises(ValueError, match="noise"):
        take_step(step, np.zeros((4, N_INPUTS), np.float32), 0.1, noise=noise)


@each("rule", sample(RULES, 2))
def test_computing_the_cost_does_not_change_training(rng, rule):
    minibatches = rng.random((12, 64, 30), dtype=np.float32)
    results = []
    for with_cost in (lambda _: False, lambda _: True, lambda number: number % 3 == 0):
        autoencoder = random_autoencoder(np.random.default_rng(5), WIDE)
        results.append(train_some(autoencoder, step_of(autoencoder, rule), minibatches, with_cost))
    assert_same_arrays(results[1], results[0])
    assert_same_arrays(results[2], results[0])


def test_cost_is_a_float_if_requested_and_none_otherwise(rng):
    step = step_of(random_autoencoder(rng))
    minibatch = rng.random((4, N_INPUTS), dtype=np.float32)
    assert isinstance(take_step(step, minibatch, 0.1, with_cost=True), float)
    assert take_step(step, minibatch, 0.1) is None


@each("rule", RULES)
def test_training_resumed_from_saved_state_is_the_same(rng, rule):
    minibatches = rng.random((10, 16, N_INPUTS), dtype=np.float32)
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder, rule)
    train_some(autoencoder, step, minibatches[:5])
    saved_parameters = autoencoder.parameters()
    saved_state = step.state()
    expected = train_some(autoencoder, step, minibatches[5:])

    resumed = Autoencoder(NETWORK)
    resumed.set_parameters(saved_parameters)
    step = step_of(resumed, rule)
    step.set_state(saved_state)
    assert_same_arrays(train_some(resumed, step, minibatches[5:]), expected)


def test_saved_arrays_are_copies(rng):
    autoencoder = random_autoencoder(rng)
    step = step_of(autoencoder)
    state = autoencoder.parameters() | step.state()
    before = {name: array.copy() for name, array in state.items()}
    train_some(autoencoder, step, rng.random((3, 4, N_INPUTS), dtype=np.float32))
    assert_same_arrays(state, before)


def test_state_of_another_rule_is_refused(rng):
    step = step_of(random_autoencoder(rng))
    with pytest.raises(ValueError, match=r"\['W.mean'\].*\['W.velocity', 'b_hidden.velocity'"):
        step.set_state({"W.mean": np.zeros((N_INPUTS, N_FEATURES))})


def test_step_compiles_one_function_with_cost_and_one_without(rng, compiled):
    step = step_of(random_autoencoder(rng))
    assert compiled == []
    for with_cost in (False, False, True, True, False):
        take_step(step, np.ones((2, N_INPUTS), np.float32), 0.1, with_cost)
    assert len(compiled) == 2
