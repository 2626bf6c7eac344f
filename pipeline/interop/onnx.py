"""Export of an encoder to ONNX. The input of the graph is unscaled rows, as in the shards; the output is features.

The graph computes the same as a device: rows are cleaned and scaled in the dtype that holds the columns' ranges, and
the layers are computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.activations import ACTIVATIONS
from pipeline.errors import DataError, DeviceError
from pipeline.model import Model

__all__ = ["encoder_onnx", "input_dtype"]

# Versions from 2022, which all later runtimes support.
_OPSET = 17
_IR_VERSION = 8


def input_dtype(model: Model) -> np.dtype:
    """Return the dtype of rows for `encoder_onnx`: float64 unless float32 holds the columns' ranges exactly."""
    minimum, _ = model.scaler.arrays(np.dtype(np.float32))
    return minimum.dtype


def encoder_onnx(model: Model) -> bytes:
    """Return the content of ``encoder.onnx``.

    The input is ``rows`` (n_rows, n_inputs) of `input_dtype`; the output is ``features`` (n_rows, n_features), float32.
    The metadata contain the model's fingerprint.

    Raises
    ------
    DeviceError
        If the package ``onnx`` is not installed.
    DataError
        For a model of whole numbers above 2^53, which the ONNX input would round.
    """
    if model.offset is not None:
        raise DataError(
            "the model was trained on whole numbers above 2^53, which the input of an ONNX file would round. Encode "
            "such rows with `shardpress run --model`."
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
    rows_info = _tensor_info("rows", dtype, model.n_inputs)
    features_info = _tensor_info(features, np.dtype(np.float32), model.n_features)
    return helper.make_graph(graph.nodes, "encoder", [rows_info], [features_info], graph.constants)


def _tensor_info(name: str, dtype: np.dtype, width: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), ["n_rows", width])


class _Graph:
    """Nodes in the order of the computation, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, named: str | None = None, **attributes: Any) -> str:
        """Apply an operator to constants (arrays) and to earlier results (names); return the name of the result."""
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
    """Add cleaning and scaling of the rows; return the name of the result, float32."""
    from onnx import TensorProto

    scaler = model.scaler
    minimum = scaler.minimum.astype(dtype)
    x = "rows"
    if scaler.fill is not None:
        is_missing = graph.add("IsNaN", x)
        x = graph.add("Where", is_missing, scaler.fill.astype(dtype), x)
    if scaler.clips:
        x = graph.add("Max", x, minimum)
        x = graph.add("Min", x, scaler.maximum.astype(dtype))
    x = graph.add("Sub", x, minimum)
    x = graph.add("Mul", x, scaler.scale.astype(dtype))
    if dtype == np.float32:
        return x
    return graph.add("Cast", x, to=TensorProto.FLOAT)


def _add_layers(graph: _Graph, model: Model, x: str) -> str:
    """Add the layers of the encoder; return the name of the result, which is ``features``."""
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
