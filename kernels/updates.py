"""Update rules: from gradients and parameters to what every training step changes.

Each rule is a function ``(p, g, rate, decay, *states) -> p, *states`` of one parameter, its gradient and the states
that the rule keeps beside it, and gives their next values. `decay` is that of the rule's running average, momentum in
the settings, so one pair of numbers steers every rule. The CPU's own Op has the same rules, in ``native/updates.h``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import backend

theano = backend.load()
tensor = theano.tensor

__all__ = [
    "ROLES",
    "RULES",
    "Rule",
    "Updates",
    "adam",
    "momentum",
    "nesterov",
    "rate_of",
    "rmsprop",
    "states_of",
    "updates_of",
]

Updates = OrderedDict[Any, Any]
"""Shared variables, and their next values; Theano warns of a dict without an order."""

# Python's own 1 would promote a NumPy float32 beside it to float64.
_ONE = np.float32(1)
_BETA2 = np.float32(0.999)
_HALF = np.float32(0.5)  # arrays and Theano's variables have no root in common but this power, of which it makes one


def momentum(p: Any, g: Any, rate: Any, decay: Any, velocity: Any) -> tuple[Any, ...]:
    """Classical momentum: ``v <- decay v - rate g ;  p <- p + v``.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    2013, equations 1 and 2.
    """
    velocity = decay * velocity - rate * g
    return p + velocity, velocity


def nesterov(p: Any, g: Any, rate: Any, decay: Any, velocity: Any) -> tuple[Any, ...]:
    """Nesterov momentum: ``v <- decay v - rate g ;  p <- p + decay v - rate g``.

    The parameters are those at the looked-ahead point, so that the gradient is taken where they stand. Source: Bengio,
    Boulanger-Lewandowski and Pascanu, "Advances in optimizing recurrent networks", 2013, equations 6 and 7.
    """
    velocity = decay * velocity - rate * g
    return p + decay * velocity - rate * g, velocity


def adam(p: Any, g: Any, rate: Any, decay: Any, mean: Any, square: Any) -> tuple[Any, ...]:
    """Adam with ``beta1 = decay``, ``beta2 = 0.999``, ``epsilon = 1e-8``; `rate_of` has the bias corrections.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the order of computation given at the
    end of section 2, which takes the bias corrections into the learning rate.
    """
    mean = decay * mean + (_ONE - decay) * g
    square = _BETA2 * square + (_ONE - _BETA2) * g**2
    return p - rate * mean / (square**_HALF + np.float32(1e-8)), mean, square


def rmsprop(p: Any, g: Any, rate: Any, decay: Any, square: Any) -> tuple[Any, ...]:
    """RMSProp with the running square's decay: ``p <- p - rate g / sqrt(square + epsilon)``, ``epsilon = 1e-6``.

    Source: Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    square = decay * square + (_ONE - decay) * g**2
    # Without epsilon a weight that no row touches would become 0 / 0.
    return p - rate * g / (square + np.float32(1e-6)) ** _HALF, square


RULES: dict[str, Callable[..., tuple[Any, ...]]] = {rule.__name__: rule for rule in (momentum, nesterov, adam, rmsprop)}

ROLES = {"momentum": ("velocity",), "nesterov": ("velocity",), "adam": ("mean", "square"), "rmsprop": ("square",)}
"""The states that each rule keeps beside a parameter."""


@dataclass(frozen=True)
class Rule:
    """How parameters follow their gradients.

    Attributes
    ----------
    name : str
        A key of `RULES`.
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
    """Shared arrays of zeros, one for each role, on the parameter's device, named after both."""
    zeros = np.zeros(parameter.get_value(borrow=True).shape, dtype=np.float32)
    # Each is a copy, and a device's own where one is active.
    return [theano.shared(zeros, name=f"{parameter.name}.{role}") for role in ROLES[rule.name]]


def rate_of(rule: Rule, learning_rate: Any, updates: Updates) -> Any:
    """The rate of the next step: adam's has its bias corrections in it, and adds a count of steps to `updates`."""
    if rule.name != "adam":
        return learning_rate
    step = theano.shared(np.float32(0), name="step")
    updates[step] = step + _ONE
    decay = np.float32(rule.momentum)
    return learning_rate * tensor.sqrt(_ONE - _BETA2 ** updates[step]) / (_ONE - decay ** updates[step])


def updates_of(rule: Rule, gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any) -> Updates:
    """What a step by a rule changes: the parameters, and the rule's own states."""
    updates = Updates()
    rate = rate_of(rule, learning_rate, updates)
    decay = np.float32(rule.momentum)  # or the whole rule would be computed in float64
    kept = _ONE - learning_rate * np.float32(rule.weight_decay)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        states = states_of(rule, parameter)
        start = parameter * kept if rule.weight_decay and parameter.ndim == 2 else parameter
        following, *those_of_states = RULES[rule.name](start, gradient, rate, decay, *states)
        updates.update(zip(states, those_of_states, strict=True))
        updates[parameter] = following
    return updates
