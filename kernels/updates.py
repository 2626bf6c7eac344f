"""Updates of Theano's shared variables by the rules of `kernels.rules`: what every training step changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import backend
from kernels.rules import RULES

theano = backend.load()
tensor = theano.tensor

__all__ = ["Rule", "Updates", "rate_of", "states_of", "updates_of"]

Updates = OrderedDict[Any, Any]
"""Shared variables, and their next values; Theano warns of a dict without an order."""

_ONE = np.float32(1)  # Python's own 1 would promote a NumPy float32 beside it to float64


@dataclass(frozen=True)
class Rule:
    """How parameters follow their gradients.

    Attributes
    ----------
    name : str
        A key of `kernels.rules.RULES`.
    momentum : float
        The decay of the rule's running average.
    weight_decay : float
        Before a step, every matrix shrinks by this much, times the learning rate, of its size; biases and gains do
        not. Decoupled from the gradients, it is the same pull for each weight, whatever adam makes of its gradient.
        Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019, algorithm 2.
    """

    name: str
    momentum: float
    weight_decay: float = 0.0


def states_of(rule: Rule, parameter: Any) -> list[Any]:
    """Shared arrays of zeros, one for each state of the rule, on the parameter's device, named after both."""
    zeros = np.zeros(parameter.get_value(borrow=True).shape, dtype=np.float32)
    # Each is a copy, and a device's own where one is active.
    return [theano.shared(zeros, name=f"{parameter.name}.{state}") for state in RULES[rule.name].states]


def rate_of(rule: Rule, learning_rate: Any, updates: Updates) -> Any:
    """The rate of the next step. If the rule corrects the learning rate, a count of steps is added to `updates`."""
    corrected_rate = RULES[rule.name].corrected_rate
    if corrected_rate is None:
        return learning_rate
    step = theano.shared(np.float32(0), name="step")
    updates[step] = step + _ONE
    return corrected_rate(tensor.sqrt, learning_rate, np.float32(rule.momentum), updates[step])


def updates_of(rule: Rule, gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any) -> Updates:
    """What a step by a rule changes: the parameters, and the rule's own states."""
    updates = Updates()
    rate = rate_of(rule, learning_rate, updates)
    decay = np.float32(rule.momentum)  # or the whole rule would be computed in float64
    kept = _ONE - learning_rate * np.float32(rule.weight_decay)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        states = states_of(rule, parameter)
        start = parameter * kept if rule.weight_decay and parameter.ndim == 2 else parameter
        following, *those_of_states = RULES[rule.name].update(start, gradient, rate, decay, *states)
        updates.update(zip(states, those_of_states, strict=True))
        updates[parameter] = following
    return updates
