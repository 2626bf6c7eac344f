"""Export of an encoder to ONNX. The graph computes features from unscaled rows, as stored in the shards.

The computation is the same as on a device. Rows are cleaned and scaled in a dtype that can hold the ranges of the
columns, and the layers are computed in float32.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from shardpress.base.errors import DataError, DeviceError
from shardpress.interop.onnxgraph import Graph
from shardpress.interop.onnxrows import add_scaling
from shardpress.model.encoder import Model
from shardpress.result.alignment import LinearMap
from shardpress.result.records import plain
from shardpress_kernels.activations import ACTIVATIONS

# These versions are from 2022, and all later runtimes support them.
_OPSET = 17
_IR_VERSION = 8
# Largest value of a column times its scale, for which rounding to float32 changes a scaled value by at most 5e-7.
_LARGEST = 8.0


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

    found = helper.make_model(
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
    helper.set_model_props(found, properties)
    checker.check_model(found, full_check=True)
    return bytes(found.SerializeToString())


def _encoder_graph(model: Model, to_other: LinearMap | None) -> Any:
    from onnx import helper

    graph = Graph()
    dtype = input_dtype(model)
    scaled = add_scaling(graph, model, dtype)
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


def _add_layers(graph: Graph, model: Model, x: str, last_name: str | None) -> str:
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
