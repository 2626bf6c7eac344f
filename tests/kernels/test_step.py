"""Tests of training steps, with our Ops and with Theano's graph, against slow, simple NumPy, and against each other."""

from itertools import chain

import numpy as np
import pytest

from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.network import Head, Network, TargetLoss
from shardpress_kernels.rules import RULES
from shardpress_kernels.step import TrainingStep
from tests.support import reference
from tests.support.networks import numpy_steps, random_parameters
from tests.support.steps import take_step
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.compiler

LOSS = TargetLoss(weight=0.3, scale=2.5)


@pytest.mark.process
@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_with_every_option_equals_numpy(rng, rule):
    # Our Op adds the gradients of several blocks of rows. No rule must divide by the gradients of a dead unit, 0.
    head = Head("classes", 3) if rule in ("momentum", "adam") else Head("numbers", 1)
    network = Network((7, 40, 5), "relu", "sigmoid", gain=True, nested=True, head=head)
    x = rng.random((8, 300, 7), dtype=np.float32)
    targets = rng.integers(0, head.n_outputs, (8, 300)).astype(np.float32)
    targets[:, ::5] = -1 if head.kind == "classes" else np.nan
    kept = rng.integers(0, 6, (8, 300)).astype(np.float32)
    noise = rng.integers(0, 256, x.shape, np.uint8)
    autoencoder = Autoencoder(network)
    start = random_parameters(rng, network)
    start["b_hidden_1"][0] = -100
    start["b_output_2"][0] = -100
    autoencoder.set_parameters(start)
    step = TrainingStep(autoencoder, rule, np.dtype("f4"), corruption=0.25, loss=LOSS)
    corrupted = reference.masked(x.astype(np.float64), noise, 0.25)
    minibatches = zip(x.astype(np.float64), corrupted, strict=True)
    more = [(reference.Targets(targets[i], LOSS), kept[i]) for i in range(8)]
    expected, expected_costs = numpy_steps(network, start, minibatches, rule, 0.01, more)
    costs = [take_step(step, x[i], 0.01, True, noise[i], targets[i], kept[i]) for i in range(8)]
    assert_close(costs, expected_costs, "cpu", "cost")
    for name, array in autoencoder.parameters().items():
        assert_close(array, expected[name], "cpu", "parameters")


@pytest.mark.parametrize("calls", [[[0.3, 0.2, 0.1]], [[0.3], [0.2, 0.1]]], ids=str)
def test_steps_on_several_minibatches_equal_single_steps(rng, calls):
    network = Network((7, 3))
    start = random_parameters(rng, network)
    rows = rng.random((10, 7), dtype=np.float32)  # the last of three minibatches is shorter
    noise = rng.integers(0, 256, rows.shape, dtype=np.uint8)
    one_by_one, at_once = (Autoencoder(network) for _ in range(2))
    for autoencoder in (one_by_one, at_once):
        autoencoder.set_parameters(start)
    step = TrainingStep(one_by_one, "momentum", rows.dtype, corruption=0.5)
    for i, rate in enumerate(chain.from_iterable(calls)):
        batch = slice(4 * i, 4 * i + 4)
        take_step(step, rows[batch], rate, noise=noise[batch])
    step = TrainingStep(at_once, "momentum", rows.dtype, corruption=0.5)
    step.begin(rows, noise, 4)
    for rates in calls:
        step.take(rates)
    for name, array in at_once.parameters().items():
        np.testing.assert_array_equal(array, one_by_one.parameters()[name], err_msg=name)
