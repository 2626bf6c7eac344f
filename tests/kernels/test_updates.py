"""Tests of update rules against slow, simple NumPy loops over given gradients."""

import numpy as np
import pytest

from shardpress_kernels.rules import RULES
from shardpress_kernels.updates import theano, updates_of
from tests.support.cases import each
from tests.support.tolerances import assert_close

N_STEPS = 10
DECAY = float(np.float32(0.9))
RATES = [0.1] * 5 + [0.02] * 5

BETA2 = float(np.float32(0.999))  # the relative error of 1 - 0.999 in float32 is 1e-5

# State that each rule keeps for each parameter, and state that it keeps only once.
STATE = {"momentum": ["velocity"], "nesterov": ["velocity"], "adam": ["mean", "square"], "rmsprop": ["square"]}
ONCE = {"adam": ["step"]}


def momentum_loop(p, gradients, rates, decay):
    """Apply classical momentum: ``v <- momentum * v - learning_rate * d cost / d p ;  p <- p + v``."""
    v = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        for i in np.ndindex(p.shape):
            v[i] = decay * v[i] - rate * g[i]
            p[i] = p[i] + v[i]
    return {"p": p, "p.velocity": v}


def nesterov_loop(p, gradients, rates, decay):
    """Apply Bengio et al. 2013: momentum, then one more step along the new velocity."""
    v = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        for i in np.ndindex(p.shape):
            v[i] = decay * v[i] - rate * g[i]
            p[i] = p[i] + decay * v[i] - rate * g[i]
    return {"p": p, "p.velocity": v}


def adam_loop(p, gradients, rates, decay):
    """Apply algorithm 1 of Kingma and Ba 2015, with epsilon moved as at the end of their section 2."""
    m = np.zeros_like(p)
    s = np.zeros_like(p)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        for i in np.ndindex(p.shape):
            m[i] = decay * m[i] + (1 - decay) * g[i]
            s[i] = BETA2 * s[i] + (1 - BETA2) * g[i] ** 2
            p[i] = p[i] - rate * np.sqrt(1 - BETA2**t) / (1 - decay**t) * m[i] / (np.sqrt(s[i]) + 1e-8)
    return {"p": p, "p.mean": m, "p.square": s, "step": np.array(N_STEPS)}


def rmsprop_loop(p, gradients, rates, decay):
    """Apply Tieleman and Hinton 2012: divide by the root of a running mean of the squared gradient."""
    s = np.zeros_like(p)
    for g, rate in zip(gradients, rates, strict=True):
        for i in np.ndindex(p.shape):
            s[i] = decay * s[i] + (1 - decay) * g[i] ** 2
            p[i] = p[i] - rate * g[i] / np.sqrt(s[i] + 1e-6)
    return {"p": p, "p.square": s}


LOOPS = {"momentum": momentum_loop, "nesterov": nesterov_loop, "adam": adam_loop, "rmsprop": rmsprop_loop}


def shared_parameter(start, name="p"):
    return theano.shared(np.array(start, dtype=np.float32), name=name)


def states(step):
    """Return every variable that a rule updates, by name."""
    return {variable.name: variable for variable in step}


def test_every_rule_has_a_loop_and_a_state():
    assert set(RULES) == set(LOOPS) == set(STATE)


@pytest.mark.process
@pytest.mark.compiler
@each("rule", RULES)
def test_rule_equals_a_numpy_loop_over_ten_steps(rule):
    rng = np.random.default_rng(1)
    start = rng.normal(size=(3, 2))
    gradients = rng.normal(size=(N_STEPS, 3, 2)).astype(np.float32)
    gradients[:, 0, 0] = 0  # the gradient of a weight that no row affects; no rule must divide by this 0
    start = start.astype(np.float32)
    parameter = shared_parameter(start)
    gradient = theano.tensor.fmatrix()
    rate = theano.tensor.fscalar()
    step = updates_of(rule, [gradient], [parameter], rate)
    function = theano.function([gradient, rate], [], updates=step)
    for g, r in zip(gradients, RATES, strict=True):
        function(g, np.float32(r))
    expected = LOOPS[rule](start.astype(np.float64), gradients.astype(np.float64), RATES, DECAY)
    assert set(states(step)) == set(expected)
    for name, variable in states(step).items():
        assert_close(variable.get_value(), expected[name], "cpu", "float32", "parameters")


@each("rule", RULES)
def test_state_is_float32_zeros_named_by_parameter_and_role(rule):
    parameters = [shared_parameter(np.ones((3, 2)), "first.W"), shared_parameter(np.ones(2), "first.b_hidden")]
    step = updates_of(rule, parameters, parameters, np.float32(0.1))
    state = {name: variable for name, variable in states(step).items() if variable not in parameters}
    shapes = {f"{p.name}.{role}": p.get_value().shape for p in parameters for role in STATE[rule]}
    shapes |= dict.fromkeys(ONCE.get(rule, []), ())
    assert {name: variable.get_value().shape for name, variable in state.items()} == shapes
    assert all(variable.dtype == "float32" and not variable.get_value().any() for variable in state.values())


@each("rule", RULES)
def test_rules_compute_nothing_in_float64(rule):
    parameter = shared_parameter(np.ones(2))
    rate = theano.tensor.fscalar()
    step = updates_of(rule, [theano.tensor.fvector()], [parameter], rate)
    assert {value.dtype for value in step.values()} == {"float32"}
    ancestors = theano.gof.graph.ancestors(list(step.values()))
    assert "float64" not in {variable.dtype for variable in ancestors}
