"""Tests of encoders that map their features to those of another model: estimator, ONNX and ``encoder.npz``."""

from __future__ import annotations

import pickle
from pathlib import Path

import dask.array as da
import numpy as np
import onnx
import onnxruntime
import pytest

from shardpress.alignment import LinearMap
from shardpress.commands.table import main
from shardpress.interop.estimator import TiedAutoencoder
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.helpers import refused
from tests.support.hostilemodels import model_of

N_OTHER = 5
NETWORKS = [Network((4, 3), code="linear", gain=True), Network((4, 6, 2)), Network((4, 6, 3), output_layer="hidden")]
ROWS = np.random.default_rng(2).normal(size=(20, 4)).astype(np.float32)


class Files:
    """A model file and the file of a map from its features."""

    def __init__(self, folder: Path, network: Network = NETWORKS[0]) -> None:
        self.model = model_of(network)
        self.path = folder / "model.h5"
        self.path.write_bytes(self.model.to_hdf5())
        rng = np.random.default_rng(1)
        W = rng.normal(size=(self.model.n_features, N_OTHER))
        self.map = LinearMap(W, rng.normal(size=N_OTHER), self.model.fingerprint, "f" * 64)
        self.map_path = folder / "map.npz"
        self.map_path.write_bytes(self.map.to_npz())

    def export(self, form: str) -> Path:
        """Export the encoder with the map, and return the path of the file."""
        path = self.path.with_name(f"encoder.{form}")
        flags = ["--to", form, "--output", str(path), "--as-of", str(self.map_path)]
        assert main(["export", str(self.path), *flags]) == 0
        return path

    def expected(self) -> np.ndarray:
        """Return the mapped features in float64."""
        return np.asarray(self.model.encode(ROWS).astype(np.float64) @ self.map.W + self.map.b)


@pytest.mark.compiler
def test_the_estimator_maps_its_features(tmp_path: Path) -> None:
    files = Files(tmp_path, NETWORKS[2])
    estimator = TiedAutoencoder.from_run(files.path, as_of=files.map_path)
    found = estimator.transform(ROWS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, files.expected(), rtol=1e-4, atol=1e-4)
    lazy = estimator.transform(da.from_array(ROWS, chunks=(7, 4)))
    np.testing.assert_array_equal(lazy.compute(), found)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).transform(ROWS), found)
    assert len(estimator.get_feature_names_out()) == N_OTHER
    with pytest.raises(ValueError, match="as_of"):
        estimator.inverse_transform(np.zeros((2, N_OTHER)))
    files.map_path.write_bytes(LinearMap(files.map.W, files.map.b, "0" * 64, "f" * 64).to_npz())
    with refused(65, "0000"):
        TiedAutoencoder.from_run(files.path, as_of=files.map_path)


@pytest.mark.process
@each("network", NETWORKS)
def test_the_onnx_encoder_includes_the_map(network: Network, tmp_path: Path) -> None:
    files = Files(tmp_path, network)
    path = files.export("onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[session.get_inputs()[0].type]
    (found,) = session.run(["features"], {"rows": ROWS.astype(dtype)})
    np.testing.assert_allclose(found, files.expected(), rtol=1e-4, atol=1e-4)
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert properties["fingerprint"] == files.model.fingerprint
    assert properties["as_of"] == files.map.encoder_to


@pytest.mark.process
def test_the_numpy_encoder_includes_the_map(tmp_path: Path) -> None:
    """After a sigmoid, it names its activations, so that programs that expect slopes fail instead of being wrong."""
    files = Files(tmp_path)
    path = files.export("npz")
    with np.load(path, allow_pickle=False) as encoder:
        h = np.clip(ROWS, encoder["low"], encoder["high"])  # as in the README, for linear layers
        for i, _ in enumerate(encoder["slopes"], 1):
            h = h @ encoder[f"W_{i}"] + encoder[f"b_{i}"]
        np.testing.assert_allclose(h, files.expected(), rtol=1e-6)
        assert encoder["encoder"] == files.model.fingerprint
    path = Files(tmp_path, NETWORKS[1]).export("npz")
    with np.load(path, allow_pickle=False) as encoder:
        assert encoder["activations"].tolist()[-2:] == ["sigmoid", "linear"]
        assert "slopes" not in encoder
