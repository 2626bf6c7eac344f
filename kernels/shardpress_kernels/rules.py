"""Records of the update rules, which the graph, the C code and the settings use.

`shardpress_kernels.updates` applies the rules to variables of Theano; `shardpress_kernels.ops` applies them to NumPy
arrays and in C. CONTRIBUTING.md says how to add a rule. Nothing here loads Theano or NumPy, so that settings can read
the table quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DECAY = 0.9
"""Decay rate of the running averages of all rules."""


@dataclass(frozen=True)
class UpdateRule:
    """One update rule.

    Attributes
    ----------
    name : str
        Value of the setting, and name of the rule in checkpoints.
    learning_rate : float
        Default of the setting; docs/performance.md lists the measurements.
    states : tuple of str
        Names of the arrays that the rule keeps for each parameter, at most two. They start at 0.
    update : callable
        ``update(p, g, rate, *states)`` returns the next values of a parameter and of its states, given the gradient
        `g`. All arguments are float32, from NumPy or Theano; constants in the code are `_float32`, which keeps the
        results float32.
    c : str
        `update` as C statements for the element ``i`` of ``p``, ``g`` and the states, float32. A sum of two products is
        written as ``fused(a, b, c)``, which is ``a * b + c``. `DECAY` is a macro.
    corrected_rate : callable or None
        ``corrected_rate(sqrt, learning_rate, step)`` returns the rate of a step, counted from 1. None if the rate is
        the learning rate.
    is_scale_free : bool
        Whether updates hardly depend on the scale of the gradients.
    """

    name: str
    learning_rate: float
    states: tuple[str, ...]
    update: Callable[..., tuple[Any, ...]]
    c: str
    corrected_rate: Callable[..., Any] | None = None
    is_scale_free: bool = False


def _float32(value: float) -> Any:
    """Return a float32. A Python number combined with a NumPy float32 would give a float64."""
    import numpy as np

    return np.float32(value)


def _momentum(p: Any, g: Any, rate: Any, velocity: Any) -> tuple[Any, ...]:
    """Apply classical momentum: ``v <- decay v - rate g ;  p <- p + v``.

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    2013, equations 1 and 2.
    """
    decay = _float32(DECAY)
    velocity = decay * velocity - rate * g
    return p + velocity, velocity


def _nesterov(p: Any, g: Any, rate: Any, velocity: Any) -> tuple[Any, ...]:
    """Apply Nesterov momentum: ``v <- decay v - rate g ;  p <- p + decay v - rate g``.

    The stored parameters are the parameters at the look-ahead point, where the gradient is computed. Source: Bengio,
    Boulanger-Lewandowski and Pascanu, "Advances in optimizing recurrent networks", 2013, equations 6 and 7.
    """
    decay = _float32(DECAY)
    velocity = decay * velocity - rate * g
    return p + decay * velocity - rate * g, velocity


_BETA2 = 0.999


def _adam(p: Any, g: Any, rate: Any, mean: Any, square: Any) -> tuple[Any, ...]:
    """Apply Adam with ``beta1 = decay``, ``beta2 = 0.999``, ``epsilon = 1e-8``; `_adam_rate` corrects the bias.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization", 2015, in the order of computation given at the
    end of section 2, where the learning rate includes the bias corrections.
    """
    decay = _float32(DECAY)
    beta2 = _float32(_BETA2)
    mean = decay * mean + (_float32(1) - decay) * g
    square = beta2 * square + (_float32(1) - beta2) * g**2
    return p - rate * mean / (_root(square) + _float32(1e-8)), mean, square


def _adam_rate(sqrt: Callable[[Any], Any], learning_rate: Any, step: Any) -> Any:
    decay = _float32(DECAY)
    beta2 = _float32(_BETA2)
    return learning_rate * sqrt(_float32(1) - beta2**step) / (_float32(1) - decay**step)


def _rmsprop(p: Any, g: Any, rate: Any, square: Any) -> tuple[Any, ...]:
    """Apply RMSProp with the running square's decay: ``p <- p - rate g / sqrt(square + epsilon)``, ``epsilon = 1e-6``.

    Source: Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.
    """
    decay = _float32(DECAY)
    square = decay * square + (_float32(1) - decay) * g**2
    # Without epsilon, the update of a weight whose gradients are all 0 would be 0 / 0.
    return p - rate * g / _root(square + _float32(1e-6)), square


def _root(x: Any) -> Any:
    """Return square roots; only this form works for both NumPy arrays and variables of Theano."""
    return x ** _float32(0.5)


_RECORDS = (
    UpdateRule(
        name="momentum",
        learning_rate=0.1,
        states=("velocity",),
        update=_momentum,
        c="""
            velocity[i] = fused(DECAY, velocity[i], -rate * g[i]);
            p[i] += velocity[i];
        """,
    ),
    UpdateRule(
        name="nesterov",
        learning_rate=0.1,
        states=("velocity",),
        update=_nesterov,
        c="""
            velocity[i] = fused(DECAY, velocity[i], -rate * g[i]);
            p[i] += fused(DECAY, velocity[i], -rate * g[i]);
        """,
    ),
    UpdateRule(
        name="adam",
        learning_rate=0.001,
        states=("mean", "square"),
        update=_adam,
        c="""
            const float beta2 = 0.999f;
            mean[i] = fused(DECAY, mean[i], (1.0f - DECAY) * g[i]);
            square[i] = fused(beta2, square[i], (1.0f - beta2) * (g[i] * g[i]));
            p[i] -= rate * mean[i] / (__builtin_sqrtf(square[i]) + 1e-8f);
        """,
        corrected_rate=_adam_rate,
        is_scale_free=True,
    ),
    UpdateRule(
        name="rmsprop",
        learning_rate=0.001,
        states=("square",),
        update=_rmsprop,
        c="""
            square[i] = fused(DECAY, square[i], (1.0f - DECAY) * (g[i] * g[i]));
            p[i] -= rate * g[i] / __builtin_sqrtf(square[i] + 1e-6f);
        """,
        is_scale_free=True,
    ),
)

RULES = {record.name: record for record in _RECORDS}
"""All update rules by name."""
