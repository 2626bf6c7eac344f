"""Updates of Theano's shared variables in a training step, according to the rules of `shardpress_kernels.rules`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpress_kernels import backend
from shardpress_kernels.rules import RULES

theano = backend.load()
tensor = theano.tensor

Updates = OrderedDict[Any, Any]
"""Shared variables and their next values. Theano warns about a plain dict."""

_ONE = np.float32(1)  # Python's 1 would convert a NumPy float32 to float64


@dataclass(frozen=True)
class Rule:
    """Updates of parameters by their gradients."""

    name: str  # a key of `shardpress_kernels.rules.RULES`
    momentum: float  # decay rate of the rule's running average
    # Before a step, every matrix is multiplied by 1 - `weight_decay` times the learning rate. Biases and gains do not
    # decay. The decay is decoupled from the gradients, so adam does not scale it. Source: Loshchilov and Hutter,
    # "Decoupled weight decay regularization", 2019, algorithm 2.
    weight_decay: float = 0.0


def states_of(rule: Rule, parameter: Any) -> list[Any]:
    """Return a shared array of zeros for each state of the rule, named after the parameter and the state."""
    zeros = np.zeros(parameter.get_value(borrow=True).shape, dtype=np.float32)
    return [theano.shared(zeros, name=f"{parameter.name}.{state}") for state in RULES[rule.name].states]  # copies


def rate_of(rule: Rule, learning_rate: Any, updates: Updates) -> Any:
    """Return the rate of the next step. If the rule corrects the learning rate, add a count of steps to `updates`."""
    corrected_rate = RULES[rule.name].corrected_rate
    if corrected_rate is None:
        return learning_rate
    n_steps = theano.shared(np.float32(0), name="step")
    step = n_steps + _ONE
    updates[n_steps] = step
    return corrected_rate(tensor.sqrt, learning_rate, np.float32(rule.momentum), step)


def updates_of(rule: Rule, gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any) -> Updates:
    """Return the updates of the parameters and of the rule's states in a step."""
    updates = Updates()
    rate = rate_of(rule, learning_rate, updates)
    decay = np.float32(rule.momentum)  # a Python float would make the results float64
    shrinkage = _ONE - learning_rate * np.float32(rule.weight_decay)
    update = RULES[rule.name].update
    for gradient, parameter in zip(gradients, parameters, strict=True):
        states = states_of(rule, parameter)
        start = parameter
        if rule.weight_decay and parameter.ndim == 2:
            start = parameter * shrinkage
        new_parameter, *new_states = update(start, gradient, rate, decay, *states)
        updates.update(zip(states, new_states, strict=True))
        updates[parameter] = new_parameter
    return updates
