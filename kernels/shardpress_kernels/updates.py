"""Updates of Theano's shared variables in a training step, according to the rules of `shardpress_kernels.rules`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from shardpress_kernels import backend
from shardpress_kernels.rules import RULES

theano = backend.load()
tensor = theano.tensor

Updates = OrderedDict[Any, Any]
"""Shared variables and their next values. Theano warns about a plain dict."""

_ONE = np.float32(1)  # Python's 1 would convert a NumPy float32 to float64


def states_of(rule: str, parameter: Any) -> list[Any]:
    """Return a shared array of zeros for each state of the rule, named after the parameter and the state."""
    zeros = np.zeros(parameter.get_value(borrow=True).shape, dtype=np.float32)
    return [theano.shared(zeros, name=f"{parameter.name}.{state}") for state in RULES[rule].states]  # copies


def rate_of(rule: str, learning_rate: Any, updates: Updates) -> Any:
    """Return the rate of the next step. If the rule corrects the learning rate, add a count of steps to `updates`."""
    corrected_rate = RULES[rule].corrected_rate
    if corrected_rate is None:
        return learning_rate
    n_steps = theano.shared(np.float32(0), name="step")
    step = n_steps + _ONE
    updates[n_steps] = step
    return corrected_rate(tensor.sqrt, learning_rate, step)


def updates_of(rule: str, gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any) -> Updates:
    """Return the updates of the parameters and of the rule's states in a step."""
    updates = Updates()
    rate = rate_of(rule, learning_rate, updates)
    update = RULES[rule].update
    for gradient, parameter in zip(gradients, parameters, strict=True):
        states = states_of(rule, parameter)
        new_parameter, *new_states = update(parameter, gradient, rate, *states)
        updates.update(zip(states, new_states, strict=True))
        updates[parameter] = new_parameter
    return updates
