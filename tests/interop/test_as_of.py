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
from shardpress.errors import DataError
from shardpress.interop.estimator import TiedAutoencoder
from shardpress.model import Model
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.hostilemodels import model_of

N_OTHER = 5
NETWORKS = [Network((4, 3), code="linear", gain=True), Network((4, 6, 2)), Network((4, 6, 3), output_layer="hidden")]


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

    def expected(self, rows: np.ndarray) -> np.ndarray:
        """Return the mapped features in float64."""
        return np.asarray(self.model.encode(rows).astype(np.float64) @ self.map.W + self.map.b)


def rows_for(model: Model) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(20, model.n_columns)).astype(np.float32)


def numpy_features(encoder: np.lib.npyio.NpzFile, rows: np.ndarray) -> np.ndarray:
    """Return the features that the README's loop computes for a linear last layer."""
    h = np.clip(rows, encoder["low"], encoder["high"])
    for i, slope in enumerate(encoder["slopes"], 1):
        z = h @ encoder[f"W_{i}"] + encoder[f"b_{i}"]
        h = np.where(z < 0, slope * z, z)
    assert not encoder["is_sigmoid"]
    return np.asarray(h)


@pytest.mark.compiler
@each("network", NETWORKS)
def test_the_estimator_maps_its_features(network: Network, tmp_path: Path) -> None:
    files = Files(tmp_path, network)
    rows = rows_for(files.model)
    estimator = TiedAutoencoder.from_run(files.path, as_of=files.map_path)
    found = estimator.transform(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, files.expected(rows), rtol=1e-4, atol=1e-4)
    lazy = estimator.transform(da.from_array(rows, chunks=(7, 4)))
    np.testing.assert_array_equal(lazy.compute(), found)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(estimator)).transform(rows), found)
    assert len(estimator.get_feature_names_out()) == N_OTHER


@pytest.mark.process
def test_mapped_features_cannot_be_inverted(tmp_path: Path) -> None:
    files = Files(tmp_path)
    estimator = TiedAutoencoder.from_run(files.path, as_of=files.map_path)
    with pytest.raises(ValueError, match="as_of"):
        estimator.inverse_transform(np.zeros((2, N_OTHER)))


@pytest.mark.process
def test_a_map_of_another_model_is_refused(tmp_path: Path) -> None:
    files = Files(tmp_path)
    other = LinearMap(files.map.W, files.map.b, "0" * 64, "f" * 64)
    files.map_path.write_bytes(other.to_npz())
    with pytest.raises(DataError, match="0000"):
        TiedAutoencoder.from_run(files.path, as_of=files.map_path)
    assert main(["export", str(files.path), "--to", "npz", "--as-of", str(files.map_path)]) == 65


@pytest.mark.process
@each("network", NETWORKS)
def test_the_onnx_encoder_includes_the_map(network: Network, tmp_path: Path) -> None:
    files = Files(tmp_path, network)
    path = tmp_path / "encoder.onnx"
    assert main(["export", str(files.path), "--to", "onnx", "--output", str(path), "--as-of", str(files.map_path)]) == 0
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    rows = rows_for(files.model)
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[session.get_inputs()[0].type]
    (found,) = session.run(["features"], {"rows": rows.astype(dtype)})
    np.testing.assert_allclose(found, files.expected(rows), rtol=1e-4, atol=1e-4)
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert properties["fingerprint"] == files.model.fingerprint
    assert properties["as_of"] == files.map.encoder_to


@pytest.mark.process
def test_the_numpy_encoder_includes_the_map(tmp_path: Path) -> None:
    files = Files(tmp_path)
    path = tmp_path / "encoder.npz"
    assert main(["export", str(files.path), "--to", "npz", "--output", str(path), "--as-of", str(files.map_path)]) == 0
    rows = rows_for(files.model)
    with np.load(path, allow_pickle=False) as encoder:
        np.testing.assert_allclose(numpy_features(encoder, rows), files.expected(rows), rtol=1e-6)
        assert encoder["encoder"] == files.model.fingerprint


@pytest.mark.process
def test_a_numpy_encoder_after_a_sigmoid_names_its_activations(tmp_path: Path) -> None:
    """Programs that expect slopes fail instead of applying the sigmoid after the map."""
    files = Files(tmp_path, NETWORKS[1])
    path = tmp_path / "encoder.npz"
    assert main(["export", str(files.path), "--to", "npz", "--output", str(path), "--as-of", str(files.map_path)]) == 0
    with np.load(path, allow_pickle=False) as encoder:
        assert encoder["activations"].tolist()[-2:] == ["sigmoid", "linear"]
        assert "slopes" not in encoder
