"""Update rules: from gradients and parameters to what every training step changes.

Each rule is a function ``(gradients, parameters, learning_rate, momentum) -> OrderedDict``, whose keys are shared
variables (the parameters, and the rule's own state, named after the parameter it belongs to) and whose values are
their next values. `momentum` is the decay of the rule's running average, so one pair of numbers steers every rule.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kernels import backend

theano = backend.load()
tensor = theano.tensor

__all__ = ["ROLES", "RULES", "Updates", "adam", "adam_rate", "momentum", "nesterov", "rmsprop", "state_like"]

Updates = OrderedDict[Any, Any]

# Python's own 1 would promote a NumPy float32 beside it to float64.
_ONE = np.float32(1)
_BETA2 = np.float32(0.999)

ROLES = {"momentum": ("velocity",), "nesterov": ("velocity",), "adam": ("mean", "square"), "rmsprop": ("square",)}
"""The states that each rule keeps beside a parameter."""


def state_like(parameter: Any, role: str) -> Any:
    """A shared array of zeros beside `parameter`, on the same device, named after both."""
    shape = parameter.get_value(borrow=True).shape
    return theano.shared(np.zeros(shape, dtype=np.float32), name=f"{parameter.name}.{role}")


def adam_rate(learning_rate: Any, momentum: Any, updates: Updates) -> Any:
    """Adam's learning rate with the next step's bias corrections in it; adds the count of steps to `updates`."""
    step = theano.shared(np.float32(0), name="step")
    updates[step] = step + _ONE
    return learning_rate * tensor.sqrt(_ONE - _BETA2 ** updates[step]) / (_ONE - momentum ** updates[step])


def momentum(gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any, momentum: Any) -> Updates:
    """Classical momentum: ``v <- momentum v - learning_rate g ;  p <- p + v``.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    2013, equations 1 and 2.
    """
    updates = Updates()
    for gradient, parameter in zip(gradients, parameters, strict=True):
        velocity = state_like(parameter, "velocity")
        updates[velocity] = momentum * velocity - learning_rate * gradient
        updates[parameter] = parameter + updates[velocity]
    return updates


def nesterov(gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any, momentum: Any) -> Updates:
    """Nesterov momentum: ``v <- momentum v - learning_rate g ;  p <- p + momentum v - learning_rate g``.

    The parameters are those at the looked-ahead point, so that the gradient is taken where they stand. Source: Bengio,
    Boulanger-Lewandowski and Pascanu, "Advances in optimizing recurrent networks", 2013, equations 6 and 7.
    """
    updates = Updates()
    for gradient, parameter in zip(gradients, parameters, strict=True):
        velocity = state_like(parameter, "velocity")
        updates[velocity] = momentum * velocity - learning_rate * gradient
        updates[parameter] = parameter + momentum * updates[velocity] - learning_rate * gradient
    return updates


def adam(gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any, momentum: Any) -> Updates:
    """Adam with ``beta1 = momentum``, ``beta2 = 0.999``, ``epsilon = 1e-8``.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the order of computation given at the
    end of section 2, which takes the bias corrections into the learning rate.
    """
    epsilon = np.float32(1e-8)
    updates = Updates()
    rate = adam_rate(learning_rate, momentum, updates)
    for gradient, parameter in zip(gradients, parameters, strict=True):
        mean, square = state_like(parameter, "mean"), state_like(parameter, "square")
        updates[mean] = momentum * mean + (_ONE - momentum) * gradient
        updates[square] = _BETA2 * square + (_ONE - _BETA2) * gradient**2
        updates[parameter] = parameter - rate * updates[mean] / (tensor.sqrt(updates[square]) + epsilon)
    return updates


def rmsprop(gradients: Sequence[Any], parameters: Sequence[Any], learning_rate: Any, momentum: Any) -> Updates:
    """RMSProp with the running square's decay ``momentum``: ``p <- p - learning_rate g / sqrt(square + epsilon)``.

    Source: Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    epsilon = np.float32(1e-6)
    updates = Updates()
    for gradient, parameter in zip(gradients, parameters, strict=True):
        square = state_like(parameter, "square")
        updates[square] = momentum * square + (_ONE - momentum) * gradient**2
        updates[parameter] = parameter - learning_rate * gradient / tensor.sqrt(updates[square] + epsilon)
    return updates


RULES: dict[str, Callable[..., Updates]] = {rule.__name__: rule for rule in (momentum, nesterov, adam, rmsprop)}
