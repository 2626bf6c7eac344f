"""Tests of the encoder for ONNX runtimes, compared with the model on random rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from shardpress.interop.export import export
from shardpress.interop.onnx import encoder_onnx
from shardpress.model import Model
from shardpress.preparation import Preparation
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.helpers import refused

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


def run(model: Model, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(encoder_onnx(model), providers=["CPUExecutionProvider"])
    (rows_input,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[rows_input.type]
    (found,) = session.run(["features"], {"rows": rows.astype(dtype)})
    return np.asarray(found)


@each("network", NETWORKS)
def test_onnx_runtime_gives_the_features_of_the_model(network: Network) -> None:
    for rows in (
        np.random.default_rng(1).integers(0, 256, (50, 4)).astype(np.uint8),
        MIDNIGHT + 100 * np.random.default_rng(1).random((50, 4)),
        np.ones((50, 4)) * np.linspace(0, 1, 50)[:, None] * [1, 0, 2, 3],  # a constant column
    ):
        model = model_of(network, rows)
        for n in (0, 1, 50):
            found = run(model, rows[:n])
            assert (found.shape, found.dtype) == ((n, model.n_features), np.float32)
            np.testing.assert_allclose(found, model.encode(rows[:n]), rtol=1e-5, atol=1e-5)


@each("network", NETWORKS)
def test_onnx_encoder_imputes_and_clips(network: Network) -> None:
    rows = MIDNIGHT + 100 * np.random.default_rng(1).standard_normal((200, 4))
    low, high = np.quantile(rows, (0.1, 0.9), axis=0)
    rows[np.random.default_rng(2).random(rows.shape) < 0.1] = np.nan
    model = replace(model_of(network, np.ones((2, 4))), scaler=Scaler(low, high, (low + high) / 2, clips=True))
    np.testing.assert_allclose(run(model, rows), model.encode(rows), rtol=1e-5, atol=1e-5)


@each("network", [Network((6, 3)), Network((6, 8, 3), "relu", "linear")])
def test_onnx_encoder_appends_indicators(network: Network) -> None:
    rows = 100 * np.random.default_rng(1).standard_normal((200, 4))
    low, high = np.quantile(rows, (0.1, 0.9), axis=0)
    rows[np.random.default_rng(2).random(rows.shape) < 0.1] = np.nan
    for clips in (False, True):
        scaler = Scaler(low, high, (low + high) / 2, clips).with_indicators(np.array([1, 3]))
        model = replace(model_of(network, np.ones((2, 6))), scaler=scaler)
        np.testing.assert_allclose(run(model, rows), model.encode(rows), rtol=1e-5, atol=1e-5)


@each("network", NETWORKS)
def test_onnx_encoder_applies_another_scaling(network: Network) -> None:
    rows = 100 * np.random.default_rng(1).standard_normal((200, 4))
    model = model_of(network, rows)
    model = replace(model, scaler=replace(model.scaler, center=rows.mean(axis=0), factor=np.array([1, 0.1, 0, 0.02])))
    np.testing.assert_allclose(run(model, rows), model.encode(rows), rtol=1e-5, atol=1e-5)


def test_onnx_encoder_prepares_rows() -> None:
    for n_columns in (1, 4, 5):
        rows = np.random.default_rng(1).gamma(0.5, 20, (200, n_columns)) * [1, -1, 1, 1, 1][:n_columns]
        rows[3] = 0
        for row_scale in (None, "total", "norm", "max", "median"):
            for transform in (None, "log1p"):
                preparation = Preparation(row_scale, transform)
                model = model_of(Network((n_columns, 3)), preparation.apply(rows))
                model = replace(model, preparation=preparation)
                np.testing.assert_allclose(run(model, rows), model.encode(rows), rtol=1e-5, atol=1e-5)


@each("row_scale", ["total", "norm", "max", "median"])
def test_onnx_encoder_scales_rows_with_missing_values(row_scale: str) -> None:
    rows = np.random.default_rng(1).standard_normal((200, 6))
    rows[np.random.default_rng(2).random(rows.shape) < 0.3] = np.nan
    rows[7] = np.nan
    rows[8, 1:] = np.nan
    preparation = Preparation(row_scale)
    low, high = np.nanquantile(preparation.apply(rows), (0, 1), axis=0)
    model = model_of(Network((6, 3)), np.ones((2, 6)))
    model = replace(model, scaler=Scaler(low, high, (low + high) / 2), preparation=preparation)
    np.testing.assert_allclose(run(model, rows), model.encode(rows), rtol=1e-5, atol=1e-5)


def test_onnx_file_names_its_model() -> None:
    model = model_of(NETWORKS[0], np.eye(4))
    loaded = onnx.load_model_from_string(encoder_onnx(model))
    assert {each.key: each.value for each in loaded.metadata_props} == {"fingerprint": model.fingerprint}
    assert loaded.producer_name == "shardpress"


def test_missing_onnx_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with refused(69, "pip install 'shardpress[onnx]'"):
        export("a run", "onnx")
