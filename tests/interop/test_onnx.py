"""Tests of the encoder for ONNX runtimes, compared with the model on random rows."""

from __future__ import annotations

import numpy as np
import onnxruntime

from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.preparation import Preparation
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.cases import case

NETWORKS = [
    Network((4, 3)),
    Network((4, 3), code="linear", gain=True),
    Network((4, 6, 3), "relu", "linear"),
    Network((4, 6, 5, 2), "leaky-relu", "sigmoid", gain=True),
    Network((4, 6, 3), "leaky-relu", output_layer="hidden"),
]


def check(model: Model, rows: np.ndarray) -> None:
    """Compare the features of an ONNX runtime with those of the model, for various numbers of rows."""
    session = onnxruntime.InferenceSession(encoder_onnx(model), providers=["CPUExecutionProvider"])
    (rows_input,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[rows_input.type]
    for n in (0, 1, len(rows)):
        (found,) = session.run(["features"], {"rows": rows[:n].astype(dtype)})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.encode(rows[:n]), rtol=1e-5, atol=1e-5)


def test_onnx_runtime_gives_the_features_of_the_model() -> None:
    """Rows have a constant column, a column far from zero, and missing values."""
    rng = np.random.default_rng(1)
    rows = rng.gamma(0.5, 20, (200, 4)) * [1, -1, 0, 1] + [0, 0, 2, 1e4]
    rows_with_gaps = np.where(rng.random(rows.shape) < 0.2, np.nan, rows)
    for row_scale, transform in ((None, None), ("total", "log1p"), ("norm", None), ("max", None), ("median", None)):
        preparation = Preparation(row_scale, transform)
        low, high = np.quantile(preparation.apply(rows), (0.1, 0.9), axis=0)
        scaler = Scaler(low, high, fill=low, clips=True)
        for network in NETWORKS:
            parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
            model = Model(scaler, network, parameters, preparation=preparation)
            with case(network, row_scale):
                check(model, rows_with_gaps)
