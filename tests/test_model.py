"""The model: scaling that keeps digits, files that come back as they were, and a NumPy encoder to trust."""

import io
import math

import h5py
import numpy as np
import pytest

from pipeline.model import FORMAT, Model, load_model
from pipeline.scan.scaler import Scaler
from tests.support.helpers import refused

MIDNIGHT = 1_600_000_000  # seconds since 1970, a column far from zero


def scaler_of(rows):
    wide = np.asarray(rows, dtype=np.float64)
    return Scaler(wide.min(axis=0), wide.max(axis=0))


def model_of(scaler, n_features=3, seed=0):
    rng = np.random.default_rng(seed)
    n_inputs = len(scaler.minimum)
    shapes = {"W": (n_inputs, n_features), "b_hidden": (n_features,), "b_output": (n_inputs,)}
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Model(scaler, parameters, {"seed": seed, "words": "größer"})


@pytest.fixture
def model():
    return model_of(Scaler(np.array([0.0, -5.0, 7.0, 3.0]), np.array([1.0, 5.0, 7.0, 3.5])))


# -- encoding ----------------------------------------------------------------------------------------------------


def slow_encode(model, rows):
    """One feature at a time, in Python's own float64."""
    scaled = model.scaler.transform(rows)
    W, b = model.parameters["W"], model.parameters["b_hidden"]
    found = np.empty((len(rows), model.n_features))
    for i in range(len(rows)):
        for j in range(model.n_features):
            z = sum(float(scaled[i, k]) * float(W[k, j]) for k in range(model.n_inputs)) + float(b[j])
            found[i, j] = 1 / (1 + math.exp(-z))
    return found


@pytest.mark.process
def test_encode_is_the_formula(model):
    for n_rows in (0, 1, 7):
        rows = np.random.default_rng(1).normal(size=(n_rows, 4))
        found = model.encode(rows)
        assert (found.shape, found.dtype) == ((n_rows, 3), np.float64)
        np.testing.assert_allclose(found, slow_encode(model, rows), rtol=1e-12, err_msg=f"{n_rows} rows")


@pytest.mark.parametrize("offset", [0, 0.5, MIDNIGHT])
def test_the_folded_encoder_needs_nothing_but_numpy_and_gives_the_same(offset):
    rows = offset + 100 * np.random.default_rng(2).random((40, 5))
    rows[:, 3] = offset
    model = model_of(scaler_of(rows))
    with np.load(io.BytesIO(model.to_npz()), allow_pickle=False) as file:
        W, b = file["W"], file["b"]
    assert (W.dtype, b.dtype) == (np.float64, np.float64)
    # encode rounds scaled rows to float32, as a device does; a fold does not.
    np.testing.assert_allclose(1 / (1 + np.exp(-(rows @ W + b))), model.encode(rows), atol=1e-6)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_file_bit_for_bit(model, tmp_path):
    (tmp_path / "model.h5").write_bytes(model.to_hdf5())
    for path in (tmp_path, tmp_path / "model.h5", str(tmp_path)):
        found = load_model(path)
        assert found.about == model.about
        assert found.fingerprint == model.fingerprint
        assert (found.n_inputs, found.n_features) == (4, 3)
        for name, array in model.parameters.items():
            assert found.parameters[name].dtype == np.float32
            np.testing.assert_array_equal(found.parameters[name], array)
        np.testing.assert_array_equal(found.scaler.minimum, model.scaler.minimum)
        np.testing.assert_array_equal(found.scaler.maximum, model.scaler.maximum)


def test_the_fingerprint_knows_every_array_and_nothing_else(model):
    others = [model_of(Scaler(model.scaler.minimum - 1, model.scaler.maximum))]
    for name in model.parameters:
        parameters = {**model.parameters, name: np.nextafter(model.parameters[name], np.float32(9))}
        others.append(Model(model.scaler, parameters))
    assert len({other.fingerprint for other in [model, *others]}) == 5
    assert Model(model.scaler, model.parameters, {"other": "words"}).fingerprint == model.fingerprint


@pytest.fixture
def broken(model, tmp_path):
    """Write the model's file, changed: arrays by name (None takes one away), and attributes."""

    def write(changes, attributes=()):
        path = tmp_path / "model.h5"
        path.write_bytes(model.to_hdf5())
        with h5py.File(path, "a") as file:
            file.attrs.update(attributes)
            for name, value in changes.items():
                del file[name]
                if value is not None:
                    file[name] = value
        return path

    return write


@pytest.mark.parametrize("damage", ["missing", "shape", "dtype", "byte order", "nan", "inf", "strings"])
def test_a_model_with_a_broken_array_is_refused_by_its_name(broken, model, damage):
    arrays = {**model.parameters, "minimum": model.scaler.minimum, "maximum": model.scaler.maximum}
    assert set(arrays) == {"minimum", "maximum", "W", "b_hidden", "b_output"}
    for name, good in arrays.items():
        spoiled = good.copy()
        spoiled.flat[-1] = {"inf": np.inf}.get(damage, np.nan)
        changed = {
            "missing": None,
            "shape": good[None],
            "dtype": good.astype(np.float16),
            "byte order": good.astype(good.dtype.newbyteorder(">")),
            "nan": spoiled,
            "inf": spoiled,
            "strings": np.full(good.shape, b"1"),
        }[damage]
        with refused(65, "model.h5", name):
            load_model(broken({name: changed}))


@pytest.mark.parametrize(
    ("attributes", "phrase"),
    [
        ({"format": "shardpress-model/2"}, f"format 'shardpress-model/2', expected '{FORMAT}'"),
        ({"format": 1}, "format"),
        ({"about": "{not JSON"}, "cannot be read"),
    ],
)
def test_a_model_of_another_format_is_refused(broken, attributes, phrase):
    with refused(65, "model.h5", phrase):
        load_model(broken({}, attributes))


@pytest.mark.parametrize(
    ("changes", "attributes", "phrase"),
    [
        ({"W": h5py.Empty("f4")}, {}, "W"),
        ({"W": "text"}, {}, "W"),
        ({"W": np.dtype("f4")}, {}, "W"),
        ({}, {"about": 5}, "about"),
    ],
    ids=["empty", "text", "type", "about"],
)
def test_a_model_that_holds_something_else_than_arrays_is_refused(broken, changes, attributes, phrase):
    with refused(65, "model.h5", phrase):
        load_model(broken(changes, attributes))


class Trap:
    """Unpickling one fails the test."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def npz_with_a_pickle():
    buffer = io.BytesIO()
    np.savez(buffer, W=np.array([Trap()], dtype=object))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no HDF5", npz_with_a_pickle()], ids=["empty", "text", "pickle"])
def test_a_model_that_is_not_hdf5_is_refused_and_never_unpickled(tmp_path, content):
    path = tmp_path / "model.h5"
    path.write_bytes(content)
    with refused(65, str(path), "cannot be read"):
        load_model(path)


def test_a_model_that_is_cut_short_is_refused(tmp_path, model):
    content = model.to_hdf5()
    path = tmp_path / "model.h5"
    for eighths in range(8):
        path.write_bytes(content[: len(content) * eighths // 8])
        with refused(65, str(path), "cannot be read"):
            load_model(path)


@pytest.mark.parametrize("name", ["", "model.h5", "nowhere/model.h5"])
def test_a_model_that_is_not_there_is_refused_with_what_was_expected(tmp_path, name):
    with refused(66, str(tmp_path / name), "not there", "model.h5 or an output directory"):
        load_model(tmp_path / name)
