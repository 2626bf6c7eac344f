"""Tests of exported encoders, alone and with a map of their features to those of another model."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import onnx
import onnxruntime
import pytest

from shardpress.commands.registry import main
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.interop.onnx import encoder_onnx
from shardpress.model.encoder import Model
from shardpress.model.preparation import Preparation
from shardpress.model.scaler import Scaler
from shardpress.result.alignment import LinearMap
from shardpress_kernels.network import Network
from tests.support.cases import case
from tests.support.helpers import refused
from tests.support.hostilemodels import model_of

N_OTHER = 5
NETWORKS = [
    Network((4, 3)),
    Network((4, 3), code="linear", gain=True),
    Network((4, 6, 3), "relu", "linear"),
    Network((4, 6, 5, 2), "leaky-relu", "sigmoid", gain=True),
    Network((4, 6, 3), "leaky-relu", output_layer="hidden"),
]
ROWS = np.random.default_rng(2).normal(size=(20, 4)).astype(np.float32)


def of_onnx(encoder: bytes, rows: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(encoder, providers=["CPUExecutionProvider"])
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[session.get_inputs()[0].type]
    (found,) = session.run(["features"], {"rows": rows.astype(dtype)})
    return np.asarray(found)


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
            model = Model(scaler, network, model_of(network).parameters, preparation=preparation)
            for n in (0, 1, 200):
                with case(network, row_scale, n):
                    found = of_onnx(encoder_onnx(model), rows_with_gaps[:n])
                    assert found.dtype == np.float32
                    np.testing.assert_allclose(found, model.encode(rows_with_gaps[:n]), rtol=1e-5, atol=1e-5)


class Mapped:
    """The file of a model, the file of a map from its features, and the mapped features of `ROWS` in float64."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.model = model_of(network)
        self.path = folder / "model.h5"
        self.path.write_bytes(self.model.to_hdf5())
        rng = np.random.default_rng(1)
        W = rng.normal(size=(self.model.n_features, N_OTHER))
        self.map = LinearMap(W, rng.normal(size=N_OTHER), self.model.fingerprint, "f" * 64)
        self.map_path = folder / "map.npz"
        self.map_path.write_bytes(self.map.to_npz())
        self.features = self.model.encode(ROWS).astype(np.float64) @ W + self.map.b


@pytest.mark.compiler
def test_the_estimator_maps_its_features(tmp_path: Path) -> None:
    mapped = Mapped(tmp_path, NETWORKS[-1])
    estimator = TiedAutoencoder.from_run(mapped.path, as_of=mapped.map_path)
    found = estimator.transform(ROWS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mapped.features, rtol=1e-4, atol=1e-4)
    lazy = estimator.transform(da.from_array(ROWS, chunks=(7, 4)))
    np.testing.assert_array_equal(lazy.compute(), found)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).transform(ROWS), found)
    assert len(estimator.get_feature_names_out()) == N_OTHER
    with pytest.raises(ValueError, match="as_of"):
        estimator.inverse_transform(np.zeros((2, N_OTHER)))
    mapped.map_path.write_bytes(LinearMap(mapped.map.W, mapped.map.b, "0" * 64, "f" * 64).to_npz())
    with refused(65, "0000"):
        TiedAutoencoder.from_run(mapped.path, as_of=mapped.map_path)


@pytest.mark.process
def test_the_exported_encoders_include_the_map(tmp_path: Path) -> None:
    """After a sigmoid, ``encoder.npz`` has no slopes, so that programs that expect them fail instead of being wrong."""
    for network in NETWORKS:
        mapped = Mapped(tmp_path, network)
        with case(network):
            for form in ("onnx", "npz"):
                flags = ["--to", form, "--output", str(tmp_path / form), "--as-of", str(mapped.map_path)]
                assert main(["export", str(mapped.path), *flags]) == 0
            encoder = (tmp_path / "onnx").read_bytes()
            np.testing.assert_allclose(of_onnx(encoder, ROWS), mapped.features, rtol=1e-4, atol=1e-4)
            properties = {each.key: each.value for each in onnx.load_from_string(encoder).metadata_props}
            assert properties["fingerprint"] == mapped.model.fingerprint
            assert properties["as_of"] == mapped.map.encoder_to
            with np.load(tmp_path / "npz", allow_pickle=False) as arrays:
                assert arrays["encoder"] == mapped.model.fingerprint
                assert ("slopes" in arrays) == ("sigmoid" not in {kind for _, _, kind in network.feature_layers})
                if network == NETWORKS[1]:
                    h = np.clip(ROWS, arrays["low"], arrays["high"])  # as in the README, for linear layers
                    for i in (1, 2):
                        h = h @ arrays[f"W_{i}"] + arrays[f"b_{i}"]
                    np.testing.assert_allclose(h, mapped.features, rtol=1e-6)
