"""Tests of the encoder for ONNX runtimes, compared with the model on random rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnxruntime

from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.preparation import Preparation
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.cases import case

MIDNIGHT = 1_600_000_000  # seconds since 1970, a column far from zero
NETWORKS = [
    Network((4, 3)),
    Network((4, 3), code="linear", gain=True),
    Network((4, 6, 3), "relu", "linear"),
    Network((4, 6, 5, 2), "leaky-relu", "sigmoid", gain=True),
    Network((4, 6, 3), "leaky-relu", output_layer="hidden"),
]


def model_of(network: Network, rows: np.ndarray) -> Model:
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
    wide = rows.astype(np.float64)
    return Model(Scaler(wide.min(axis=0), wide.max(axis=0)), network, parameters)


def check(model: Model, rows: np.ndarray) -> None:
    """Compare the features of an ONNX runtime with those of the model, for various numbers of rows."""
    session = onnxruntime.InferenceSession(encoder_onnx(model), providers=["CPUExecutionProvider"])
    (rows_input,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[rows_input.type]
    for n in (0, 1, len(rows)):
        (found,) = session.run(["features"], {"rows": rows[:n].astype(dtype)})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.encode(rows[:n]), rtol=1e-5, atol=1e-5)


def with_gaps(rows: np.ndarray) -> np.ndarray:
    return np.where(np.random.default_rng(2).random(rows.shape) < 0.2, np.nan, rows)


def scalings(network: Network) -> Iterator[tuple[str, Model, np.ndarray]]:
    """Yield models with every kind of scaling of the columns, and rows for them."""
    rng = np.random.default_rng(1)
    bytes_ = rng.integers(0, 256, (50, 4)).astype(np.uint8)
    yield "bytes", model_of(network, bytes_), bytes_
    far = MIDNIGHT + 100 * rng.standard_normal((200, 4))
    yield "far from zero", model_of(network, far), far
    constant = np.ones((50, 4)) * np.linspace(0, 1, 50)[:, None] * [1, 0, 2, 3]
    yield "constant column", model_of(network, constant), constant
    low, high = np.quantile(far, (0.1, 0.9), axis=0)
    cleaning = Scaler(low, high, (low + high) / 2, clips=True)
    yield "gaps and clipping", replace(model_of(network, far), scaler=cleaning), with_gaps(far)
    near = 100 * rng.standard_normal((200, 4))
    plain = model_of(network, near)
    standardized = replace(plain.scaler, center=near.mean(axis=0), factor=np.array([1, 0.1, 0, 0.02]))
    yield "standard deviations", replace(plain, scaler=standardized), near
    if network.n_layers == 1:
        scaler = Scaler(*np.quantile(near, (0.1, 0.9), axis=0), np.zeros(4), True).with_indicators(np.array([1, 3]))
        wider = model_of(replace(network, widths=(6, network.n_features)), np.ones((2, 6)))
        yield "indicators", replace(wider, scaler=scaler), with_gaps(near)


def test_onnx_runtime_gives_the_features_of_the_model() -> None:
    for network in NETWORKS:
        for name, model, rows in scalings(network):
            with case(network, name):
                check(model, rows)


def test_onnx_encoder_prepares_rows() -> None:
    for n_columns in (1, 5):
        rows = np.random.default_rng(1).gamma(0.5, 20, (200, n_columns)) * [1, -1, 1, 1, 1][:n_columns]
        rows[3] = 0
        for row_scale in (None, "total", "norm", "max", "median"):
            for transform in (None, "log1p"):
                preparation = Preparation(row_scale, transform)
                model = model_of(Network((n_columns, 3)), preparation.apply(rows))
                with case(n_columns, row_scale, transform):
                    check(replace(model, preparation=preparation), rows)
                    filling = replace(model.scaler, fill=model.scaler.minimum)
                    check(replace(model, preparation=preparation, scaler=filling), with_gaps(rows))
