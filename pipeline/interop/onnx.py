"""Export of an encoder to ONNX. The graph computes features from unscaled rows, as stored in the shards.

The computation is the same as on a device. Rows are cleaned and scaled in a dtype that can hold the ranges of the
columns, and the layers are computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activations import ACTIVATIONS
from pipeline.errors import DataError, DeviceError
from pipeline.model import Model
from pipeline.preparation import Preparation

__all__ = ["encoder_onnx", "input_dtype"]

# These versions are from 2022, and all later runtimes support them.
_OPSET = 17
_IR_VERSION = 8


def input_dtype(model: Model) -> np.dtype:
    """Return the dtype of the input of `encoder_onnx`.

    The dtype is float32 if it can hold the ranges of the columns exactly. Otherwise it is float64.
    """
    shift, _ = model.scaler.arrays(np.dtype(np.float32))
    return shift.dtype


def encoder_onnx(model: Model) -> bytes:
    """Return the content of ``encoder.onnx``.

    The input ``rows`` has the shape (n_rows, n_columns) and the dtype `input_dtype`. The output ``features`` has the
    shape (n_rows, n_features) and the dtype float32. The metadata contain the fingerprint of the model.

    Raises
    ------
    DeviceError
        If the package ``onnx`` is not installed.
    DataError
        If the model was trained on whole numbers above 2^53, which the ONNX input would round, if it divides rows by
        their median, or if it replaces values by ranks.
    """
    if model.offset is not None:
        raise DataError(
            "the model was trained on whole numbers above 2^53, which the input of an ONNX file would round. Encode "
            "such rows with `shardpress run --model`."
        )
    if model.preparation is not None and model.preparation.row_scale == "median":
        raise DataError(
            "the model divides rows by their median, for which ONNX has no operator. Train with another --row-scale, "
            "or encode such rows with `shardpress run --model`."
        )
    if model.scaler.tables is not None:
        raise DataError(
            "the model replaces values by their ranks, for which ONNX has no operator. Train with another --transform, "
            "or encode such rows with `shardpress run --model`."
        )
    try:
        from onnx import checker, helper
    except ImportError as error:
        raise DeviceError(
            f"{error}. The export needs the package onnx. Install it: pip install 'shardpress[onnx]'."
        ) from error
    found = helper.make_model(
        _encoder_graph(model),
        producer_name="shardpress",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    helper.set_model_props(found, {"fingerprint": model.fingerprint})
    checker.check_model(found, full_check=True)
    return bytes(found.SerializeToString())


def _encoder_graph(model: Model) -> Any:
    from onnx import helper

    graph = _Graph()
    dtype = input_dtype(model)
    scaled = _add_scaling(graph, model, dtype)
    features = _add_layers(graph, model, scaled)
    rows_info = _tensor_info("rows", dtype, model.n_columns)
    features_info = _tensor_info(features, np.dtype(np.float32), model.n_features)
    return helper.make_graph(graph.nodes, "encoder", [rows_info], [features_info], graph.constants)


def _tensor_info(name: str, dtype: np.dtype, width: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), ["n_rows", width])


class _Graph:
    """Graph under construction: its nodes in the order of computation, and its constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, named: str | None = None, **attributes: Any) -> str:
        """Add an operator, and return the name of its result.

        Inputs are constants (arrays) or the names of earlier results.
        """
        from onnx import helper

        name = named or f"{op}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self._add_constant(each) for each in inputs]
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def _add_constant(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        constant = numpy_helper.from_array(array, f"constant_{len(self.constants)}")
        self.constants.append(constant)
        return str(constant.name)


def _add_scaling(graph: _Graph, model: Model, dtype: np.dtype) -> str:
    """Add cleaning and scaling of the rows. Return the name of the float32 result."""
    from onnx import TensorProto, helper

    scaler = model.scaler
    x = "rows"
    if model.preparation is not None:
        x = _add_preparation(graph, model.preparation, dtype)
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


def _add_preparation(graph: _Graph, preparation: Preparation, dtype: np.dtype) -> str:
    """Add row scaling and the transformation of values. Return the name of the result."""
    x = "rows"
    one = np.array(1, dtype)
    if preparation.row_scale is not None:
        present = graph.add("Where", graph.add("IsNaN", x), np.array(0, dtype), x)
        absolute = graph.add("Abs", present)
        size = _add_size(graph, preparation.row_scale, absolute)
        factor = graph.add("Div", np.array(preparation.target, dtype), size)
        is_positive = graph.add("Greater", size, np.array(0, dtype))
        is_finite = graph.add("Less", size, np.array(np.inf, dtype))
        is_usable = graph.add("And", is_positive, is_finite)
        x = graph.add("Mul", x, graph.add("Where", is_usable, factor, one))
    if preparation.transform == "log1p":
        increased = graph.add("Add", graph.add("Abs", x), one)
        x = graph.add("Mul", graph.add("Sign", x), graph.add("Log", increased))
    return x


def _add_size(graph: _Graph, row_scale: str, absolute: str) -> str:
    """Add the size (n_rows, 1) of each row, from its absolute values. Return the name of the result."""
    if row_scale == "max":
        return graph.add("ReduceMax", absolute, axes=[1])
    if row_scale == "norm":
        return graph.add("ReduceL2", absolute, axes=[1])
    return graph.add("ReduceSum", absolute, np.array([1], np.int64))


def _add_layers(graph: _Graph, model: Model, x: str) -> str:
    """Add the layers of the encoder. Return the name of the result, which is ``features``."""
    network = model.network
    for i, ((weights, bias, _), kind) in enumerate(zip(network.layers, network.activations, strict=True), 1):
        name = "features" if i == network.n_layers else None
        W = np.asarray(model.parameters[weights], np.float32)
        b = np.asarray(model.parameters[bias], np.float32)
        activation = ACTIVATIONS[kind]
        x = graph.add("Gemm", x, W, b, named=name if activation.onnx is None else None)
        if activation.onnx is not None:
            x = graph.add(activation.onnx, x, named=name, **activation.onnx_attributes)
    return x
