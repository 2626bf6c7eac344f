"""ONNX operators that prepare, clean and scale rows, as `shardpress.model.preparation` and ``scaler`` do.

Each function adds operators to a graph, and returns the name of their result.
"""

from __future__ import annotations

import numpy as np

from shardpress.interop.onnxgraph import Graph
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation


def add_scaling(graph: Graph, model: Model, dtype: np.dtype) -> str:
    """Add cleaning and scaling of the rows. Return the name of the float32 result."""
    from onnx import TensorProto, helper

    scaler = model.scaler
    x = "rows"
    if model.preparation is not None:
        x = _add_preparation(graph, model.preparation, dtype, model.n_columns)
    if scaler.fill is not None:
        is_missing = graph.add("IsNaN", x)
        x = graph.add("Where", is_missing, scaler.fill.astype(dtype), x)
        if scaler.indicators is not None:
            chosen = graph.add("Gather", is_missing, scaler.indicators, axis=1)
            indicators = graph.add("Cast", chosen, to=helper.np_dtype_to_tensor_dtype(dtype))
            x = graph.add("Concat", x, indicators, axis=1)
    if scaler.clips:
        x = graph.add("Max", x, scaler.minimum.astype(dtype))
        x = graph.add("Min", x, scaler.maximum.astype(dtype))
    x = graph.add("Sub", x, scaler.shift.astype(dtype))
    x = graph.add("Mul", x, scaler.scale.astype(dtype))
    if dtype == np.float32:
        return x
    return graph.add("Cast", x, to=TensorProto.FLOAT)


def _add_preparation(graph: Graph, preparation: Preparation, dtype: np.dtype, n_columns: int) -> str:
    x = "rows"
    if preparation.row_scale is not None:
        x = _add_row_scaling(graph, preparation, dtype, n_columns)
    if preparation.transform == "log1p":
        return _add_logarithm(graph, x, dtype)
    return x


def _add_logarithm(graph: Graph, x: str, dtype: np.dtype) -> str:
    """Add sign(x) log(1 + abs(x)).

    The sum u = 1 + abs(x) is rounded, so that small values would lose digits. log(u) / (u - 1) hardly changes with u,
    and is multiplied by abs(x). Source: Goldberg, "What every computer scientist should know about floating-point
    arithmetic", 1991, theorem 4.
    """
    one = np.array(1, dtype)
    size = graph.add("Abs", x)
    increased = graph.add("Add", size, one)
    difference = graph.add("Sub", increased, one)
    ratio = graph.add("Div", graph.add("Log", increased), difference)
    is_tiny = graph.add("Equal", difference, np.array(0, dtype))
    logarithm = graph.add("Mul", size, graph.add("Where", is_tiny, one, ratio))
    return graph.add("Mul", graph.add("Sign", x), logarithm)


# -- row scaling ---------------------------------------------------------------------------------------------------


def _add_row_scaling(graph: Graph, preparation: Preparation, dtype: np.dtype, n_columns: int) -> str:
    """Add the division of each row by its size."""
    if preparation.row_scale == "median":
        size = _add_median(graph, dtype, n_columns)
    else:
        size = _add_size(graph, preparation.row_scale, dtype)
    factor = graph.add("Div", np.array(preparation.target, dtype), size)
    is_positive = graph.add("Greater", size, np.array(0, dtype))
    is_finite = graph.add("Less", size, np.array(np.inf, dtype))
    is_factor_finite = graph.add("Less", factor, np.array(np.inf, dtype))
    is_usable = graph.add("And", graph.add("And", is_positive, is_finite), is_factor_finite)
    return graph.add("Mul", "rows", graph.add("Where", is_usable, factor, np.array(1, dtype)))


def _add_size(graph: Graph, row_scale: str | None, dtype: np.dtype) -> str:
    """Add the total, norm or maximum (n_rows, 1) of the absolute values of each row."""
    present = graph.add("Where", graph.add("IsNaN", "rows"), np.array(0, dtype), "rows")
    absolute = graph.add("Abs", present)
    if row_scale == "max":
        return graph.add("ReduceMax", absolute, axes=[1])
    if row_scale == "norm":
        return graph.add("ReduceL2", absolute, axes=[1])
    return graph.add("ReduceSum", absolute, np.array([1], np.int64))


def _add_median(graph: Graph, dtype: np.dtype, n_columns: int) -> str:
    """Add the absolute value of the median (n_rows, 1) of each row.

    The median is the mean of the two middle values, which are the same value if the number of values is odd. NaN is
    ignored: it is sorted to the end. The median of a row of NaN is infinite, so that the row is not divided.
    """
    from onnx import TensorProto

    one = np.array(1, np.int64)
    two = np.array(2, np.int64)
    is_missing = graph.add("IsNaN", "rows")
    comparable = graph.add("Where", is_missing, np.array(np.inf, dtype), "rows")
    in_order = graph.add_first("TopK", comparable, np.array([n_columns], np.int64), axis=1, largest=0)
    is_present = graph.add("Cast", graph.add("Not", is_missing), to=TensorProto.INT64)
    n_present = graph.add("ReduceSum", is_present, np.array([1], np.int64))
    n_before_last = graph.add("Max", graph.add("Sub", n_present, one), np.array(0, np.int64))
    lower = graph.add("Div", n_before_last, two)
    upper = graph.add("Min", graph.add("Div", n_present, two), np.array(n_columns - 1, np.int64))
    halves = []
    for position in (lower, upper):
        middle = graph.add("GatherElements", in_order, position, axis=1)
        halves.append(graph.add("Mul", middle, np.array(0.5, dtype)))
    return graph.add("Abs", graph.add("Add", *halves))
