"""Records of the activations.

Graph, C code, NumPy reference, ONNX export, initialization of weights, and settings all read this table.
CONTRIBUTING.md says how to add one. Nothing here loads Theano or NumPy, so that settings can read the table quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Math:
    """Functions of arrays, either NumPy's (`shardpress_kernels.hostmath`) or Theano's (`shardpress_kernels.graph`)."""

    where: Callable[..., Any]
    tanh: Callable[..., Any]
    sigmoid: Callable[..., Any]


@dataclass(frozen=True)
class Activation:
    """One activation.

    Training keeps only the outputs of units. Therefore the derivative must be a function of the output, which is
    possible for every increasing function.

    Attributes
    ----------
    name : str
        Value of the setting, and of the attribute in model files.
    is_hidden, is_code : bool
        Whether hidden layers, or the features, can use the activation.
    value : callable
        ``value(m, z)`` returns the outputs for inputs `z`, using the functions of a `Math`. Its constants are floats.
    gradient : callable
        ``gradient(m, d, a)`` returns `d`, a derivative of the cost with respect to outputs `a`, times the derivative of
        the activation.
    c_value : str
        `value` as a C expression of the vector ``z``. It can call the functions of ``native/activations.h``.
    c_gradient : str
        `gradient` as a C expression of the vectors ``gradient`` and ``out``.
    onnx : str or None
        Operator of ONNX; None if the activation needs no operator.
    onnx_attributes : mapping
        Attributes of the operator.
    scale_weights : callable
        ``scale_weights(w, n, m)`` returns random weights of a layer from `n` to `m` units, given weights `w` with a
        standard deviation of 1.
    middle : float
        Output for the input 0.
    steepness : float
        Derivative at 0; at a kink, the mean of both sides.
    largest_slope : float
        Largest derivative.
    n_roundings : int
        Bound on the error of an output in float32, for all implementations, in units of its rounding.
    slope : float or None
        Derivative below 0 of a function that is ``z`` above 0; None for other functions.
    limits : tuple of two floats, or None
        Outputs for the inputs -Inf and Inf if both are finite.
    """

    name: str
    is_hidden: bool
    is_code: bool
    value: Callable[[Math, Any], Any]
    gradient: Callable[[Math, Any, Any], Any]
    c_value: str
    c_gradient: str
    onnx: str | None
    scale_weights: Callable[[Any, int, int], Any]
    middle: float
    steepness: float
    largest_slope: float
    onnx_attributes: Mapping[str, Any] = field(default_factory=dict)
    n_roundings: int = 0
    slope: float | None = None
    limits: tuple[float, float] | None = None


def _scale_by_larger_side(w: Any, n: int, m: int, factor: float = 1.0) -> Any:
    """Scale weights by the larger side of a layer, because its mirror in the decoder uses the same weights.

    A layer and its mirror then keep the size of a row. `factor` is the inverse of the fraction of the variance that the
    activation passes on. Source: He et al., "Delving deep into rectifiers", 2015, equations 10 and 15.
    """
    return w * math.sqrt(factor / max(n, m))


def _scale_by_both_sides(w: Any, n: int, m: int) -> Any:
    """Scale weights as in the reference model.

    Source: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
    section 4.2.
    """
    return w / math.sqrt(n + m)


def _rectifier(name: str, slope: float) -> Activation:
    """Return a hidden activation that is ``slope * z`` below 0 and ``z`` above."""
    return Activation(
        name=name,
        is_hidden=True,
        is_code=False,
        # This comparison propagates NaN.
        value=lambda m, z: m.where(z < 0.0, slope * z, z),
        # The switch selects a number. If it selected between d and slope * d, Theano would compute two products.
        gradient=lambda m, d, a: d * m.where(a > 0.0, 1.0, slope),
        c_value=f"choose(z > 0.0f, z, z * {slope}f)",
        c_gradient=f"choose(out > 0.0f, gradient, gradient * {slope}f)",
        onnx="LeakyRelu",
        onnx_attributes={"alpha": slope},
        scale_weights=lambda w, n, m: _scale_by_larger_side(w, n, m, 2 / (1 + slope**2)),
        middle=0.0,
        steepness=(1 + slope) / 2,
        largest_slope=1.0,
        slope=slope,
    )


_SIGMOID = Activation(
    name="sigmoid",
    is_hidden=False,
    is_code=True,
    value=lambda m, z: m.sigmoid(z),
    gradient=lambda m, d, a: d * a * (1.0 - a),
    c_value="sigmoid(z)",
    c_gradient="gradient * out * (1.0f - out)",
    onnx="Sigmoid",
    scale_weights=_scale_by_both_sides,
    middle=0.5,
    steepness=0.25,
    largest_slope=0.25,
    n_roundings=16,  # an upper bound for our polynomials and for the exponentials of libraries
    limits=(0.0, 1.0),
)

_LINEAR = Activation(
    name="linear",
    is_hidden=False,
    is_code=True,
    value=lambda m, z: z,
    gradient=lambda m, d, a: d,
    c_value="z",
    c_gradient="gradient",
    onnx=None,
    scale_weights=_scale_by_larger_side,
    middle=0.0,
    steepness=1.0,
    largest_slope=1.0,
    slope=1.0,
)

_RECORDS = (
    _rectifier("relu", 0.0),
    _rectifier("leaky-relu", 0.1),
    _SIGMOID,
    _LINEAR,
)

ACTIVATIONS = {record.name: record for record in _RECORDS}
"""All activations by name."""

HIDDEN = tuple(record.name for record in _RECORDS if record.is_hidden)
"""Names of the activations that hidden layers can have."""

CODES = tuple(record.name for record in _RECORDS if record.is_code)
"""Names of the activations that the features can have."""
