"""What update rules remember from step to step: the names of their states, and how adam counts."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np

from kernels import backend

theano = backend.load()

__all__ = ["BETA2", "ONE", "ROLES", "Updates", "adam_rate", "state_like"]

Updates = OrderedDict[Any, Any]

# Python's own 1 would promote a NumPy float32 beside it to float64.
ONE = np.float32(1)
BETA2 = np.float32(0.999)

ROLES = {"momentum": ("velocity",), "nesterov": ("velocity",), "adam": ("mean", "square"), "rmsprop": ("square",)}
"""The states that each rule of `kernels.updates` keeps beside a parameter."""


def state_like(parameter: Any, role: str) -> Any:
    """A shared array of zeros beside `parameter`, on the same device, named after both."""
    shape = parameter.get_value(borrow=True).shape
    return theano.shared(np.zeros(shape, dtype=np.float32), name=f"{parameter.name}.{role}")


def adam_rate(learning_rate: Any, momentum: Any, updates: Updates) -> Any:
    """Adam's learning rate with the next step's bias corrections in it; adds the count of steps to `updates`."""
    step = theano.shared(np.float32(0), name="step")
    updates[step] = step + ONE
    return learning_rate * theano.tensor.sqrt(ONE - BETA2 ** updates[step]) / (ONE - momentum ** updates[step])
