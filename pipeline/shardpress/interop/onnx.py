"""Export of an encoder to ONNX. The graph computes features from unscaled rows, as stored in the shards.

The computation is the same as on a device. Rows are cleaned and scaled in a dtype that can hold the ranges of the
columns, and the layers are computed in float32.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from shardpress.base.errors import DataError, DeviceError
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation
from shardpress.result.alignment import LinearMap
from shardpress.result.records import plain
from shardpress_kernels.activations import ACTIVATIONS

# These versions are from 2022, and all later runtimes support them.
_OPSET = 17
_IR_VERSION = 8
# Largest value of a column times its scale, for which rounding to float32 changes a scaled value by at most 5e-7.
_LARGEST = 8.0


class _Graph:
    """An ONNX graph under construction: its nodes in the order of computation, and its constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, named: str | None = None, **attributes: Any) -> str:
        """Add an operator on constants (arrays) and names of earlier results, and return the name of its result."""
        from onnx import helper

        name = named or f"{op}_{len(self.nodes)}"
        names = [item if isinstance(item, str) else self._add_constant(item) for item in inputs]
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def add_first(self, op: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Add an operator with two results. Return the name of the first one; the second one is not used."""
        name = self.add(op, *inputs, **attributes)
        self.nodes[-1].output.append(f"{name}_unused")
        return name

    def _add_constant(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        constant = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        self.constants.append(constant)
        return str(constant.name)


def import_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"{error}. ONNX files need the package onnx. Install it: pip install 'shardpress[onnx]'."
        ) from error


def input_dtype(model: Model) -> np.dtype:
    """Return the dtype of the input of `encoder_onnx`.

    The dtype is float32 if the rounding of rows to float32 hardly changes the features. Otherwise it is float64: if
    rows are prepared in float64, if float32 does not hold the ranges of the columns exactly, or if columns are far from
    zero, compared with the width of their range.
    """
    scaler = model.scaler
    if model.preparation is not None:
        return np.dtype(np.float64)
    shift, scale = scaler.arrays(np.dtype(np.float32))
    largest = np.maximum(np.abs(scaler.minimum), np.abs(scaler.maximum))
    return np.dtype(np.float64) if (largest * scale > _LARGEST).any() else shift.dtype


def encoder_onnx(model: Model, to_other: LinearMap | None = None, source: str | None = None) -> bytes:
    """Return the content of ``encoder.onnx``. Raise `DataError` if its input would round whole numbers above 2^53.

    The input ``rows`` has the shape (n_rows, n_columns) and the dtype `input_dtype`. The output ``features`` has the
    shape (n_rows, n_features) and the dtype float32. The metadata contain the fingerprint of the model, the name and
    condition of the extra that trained the features (``target``), the fingerprint of the other encoder (``as_of``), and
    ``exported_from``.
    """
    if model.offset is not None:
        raise DataError(
            "the model was trained on whole numbers above 2^53, which the input of an ONNX file would round. Encode "
            "such rows with `shardpress run --model`."
        )
    from onnx import checker, helper

    content = helper.make_model(
        _encoder_graph(model, to_other),
        producer_name="shardpress",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    properties = {"fingerprint": model.fingerprint}
    if model.target is not None:
        properties["target"] = json.dumps(plain(model.target))
    if to_other is not None:
        properties["as_of"] = to_other.encoder_to
    if source is not None:
        properties["exported_from"] = source
    helper.set_model_props(content, properties)
    checker.check_model(content, full_check=True)
    return bytes(content.SerializeToString())


def _encoder_graph(model: Model, to_other: LinearMap | None) -> Any:
    from onnx import helper

    graph = _Graph()
    dtype = input_dtype(model)
    scaled = _add_scaling(graph, model, dtype)
    features = _add_layers(graph, model, scaled, "features" if to_other is None else None)
    n_features = model.n_features
    if to_other is not None:
        W = to_other.W.astype(np.float32)
        features = graph.add("Gemm", features, W, to_other.b.astype(np.float32), named="features")
        n_features = W.shape[1]
    rows_info = _tensor_info("rows", dtype, model.n_columns)
    features_info = _tensor_info(features, np.dtype(np.float32), n_features)
    return helper.make_graph(graph.nodes, "encoder", [rows_info], [features_info], graph.constants)


def _tensor_info(name: str, dtype: np.dtype, width: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), ["n_rows", width])


def _add_layers(graph: _Graph, model: Model, x: str, last_name: str | None) -> str:
    layers = model.network.feature_layers
    for i, (weights, bias, kind) in enumerate(layers, 1):
        name = last_name if i == len(layers) else None
        W = np.asarray(model.parameters[weights], np.float32)
        b = np.asarray(model.parameters[bias], np.float32)
        activation = ACTIVATIONS[kind]
        x = graph.add("Gemm", x, W, b, named=name if activation.onnx is None else None)
        if activation.onnx is not None:
            x = graph.add(activation.onnx, x, named=name, **activation.onnx_attributes)
    return x


# -- preparation, cleaning and scaling of rows ------------------------------------------------------------------------


def _add_scaling(graph: _Graph, model: Model, dtype: np.dtype) -> str:
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


def _add_preparation(graph: _Graph, preparation: Preparation, dtype: np.dtype, n_columns: int) -> str:
    x = "rows"
    if preparation.row_scale is not None:
        x = _add_row_scaling(graph, preparation, dtype, n_columns)
    if preparation.transform == "log1p":
        return _add_logarithm(graph, x, dtype)
    return x


def _add_logarithm(graph: _Graph, x: str, dtype: np.dtype) -> str:
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


def _add_row_scaling(graph: _Graph, preparation: Preparation, dtype: np.dtype, n_columns: int) -> str:
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


def _add_size(graph: _Graph, row_scale: str | None, dtype: np.dtype) -> str:
    """Add the total, norm or maximum (n_rows, 1) of the absolute values of each row."""
    present = graph.add("Where", graph.add("IsNaN", "rows"), np.array(0, dtype), "rows")
    absolute = graph.add("Abs", present)
    if row_scale == "max":
        return graph.add("ReduceMax", absolute, axes=[1])
    if row_scale == "norm":
        return graph.add("ReduceL2", absolute, axes=[1])
    return graph.add("ReduceSum", absolute, np.array([1], np.int64))


def _add_median(graph: _Graph, dtype: np.dtype, n_columns: int) -> str:
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
