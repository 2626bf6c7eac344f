"""The encoder for ONNX runtimes: rows as they lie in the shards in, features out.

The graph does what a device does: rows are cleaned and scaled in the dtype that holds the columns' ranges, and the
layers are computed in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kernels.network import SLOPES
from pipeline.errors import DataError, DeviceError
from pipeline.model import Model

__all__ = ["encoder_onnx", "input_dtype"]

_OPSET, _IR = 17, 8  # of 2022, which every runtime since then knows


def input_dtype(model: Model) -> np.dtype:
    """What rows have to be for `encoder_onnx`: float32 where that holds the columns' ranges exactly, else float64."""
    return model.scaler.arrays(np.dtype(np.float32))[0].dtype


def encoder_onnx(model: Model) -> bytes:
    """The bytes of ``encoder.onnx``.

    Its input is ``rows`` (n_rows, n_inputs) of `input_dtype`, as the file says, its output ``features`` (n_rows,
    n_features), float32. The model's fingerprint is among its metadata.

    Raises
    ------
    DeviceError
        Where the package ``onnx`` is not installed.
    DataError
        For a model of whole numbers above 2^53, which its input would round.
    """
    if model.offset is not None:
        raise DataError(
            "the model was trained on whole numbers above 2^53, which the input of an ONNX file would round. Encode "
            "such rows with `shardpress run --model`."
        )
    try:
        from onnx import checker, helper
    except ImportError as error:
        raise DeviceError(f"{error}, expected the package onnx. Install it: pip install 'shardpress[onnx]'.") from error
    graph = _Graph()
    dtype = input_dtype(model)
    last = _layers(graph, model, _scaled(graph, model, dtype))
    ends = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ["n_rows", width])
        for name, kind, width in (("rows", dtype, model.n_inputs), (last, np.float32, model.n_features))
    ]
    whole = helper.make_graph(graph.nodes, "encoder", ends[:1], ends[1:], graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    made = helper.make_model(whole, producer_name="shardpress", opset_imports=opsets, ir_version=_IR)
    helper.set_model_props(made, {"fingerprint": model.fingerprint})
    checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString())


class _Graph:
    """Nodes in the order of the computation, and the constants that they take."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *inputs: str | np.ndarray, named: str | None = None, **attributes: Any) -> str:
        """Apply an operator to results, by name, and to constants; the name of what comes out."""
        from onnx import helper

        name = named or f"{op}_{len(self.nodes)}"
        names = [each if isinstance(each, str) else self._constant(each) for each in inputs]
        self.nodes.append(helper.make_node(op, names, [name], **attributes))
        return name

    def _constant(self, array: np.ndarray) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(array, f"constant_{len(self.constants)}"))
        return str(self.constants[-1].name)


def _scaled(graph: _Graph, model: Model, dtype: np.dtype) -> str:
    """Rows, cleaned and scaled: float32."""
    from onnx import TensorProto

    scaler, x = model.scaler, "rows"
    minimum, scale = (array.astype(dtype) for array in (scaler.minimum, scaler.scale))
    if scaler.fill is not None:
        x = graph.add("Where", graph.add("IsNaN", x), scaler.fill.astype(dtype), x)
    if scaler.clips:
        x = graph.add("Min", graph.add("Max", x, minimum), scaler.maximum.astype(dtype))
    x = graph.add("Mul", graph.add("Sub", x, minimum), scale)
    return x if dtype == np.float32 else graph.add("Cast", x, to=TensorProto.FLOAT)


def _layers(graph: _Graph, model: Model, x: str) -> str:
    """The code of scaled rows."""
    network = model.network
    for i, ((W, b_hidden, _), kind) in enumerate(zip(network.layers, network.activations, strict=True), 1):
        named = "features" if i == network.n_layers else None
        weights, bias = (np.asarray(model.parameters[name], np.float32) for name in (W, b_hidden))
        x = graph.add("Gemm", x, weights, bias, named=named if kind == "linear" else None)
        if kind == "sigmoid":
            x = graph.add("Sigmoid", x, named=named)
        elif kind in SLOPES:
            x = graph.add("LeakyRelu", x, named=named, alpha=SLOPES[kind])
    return x
