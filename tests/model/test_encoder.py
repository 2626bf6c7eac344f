"""Tests of the model: scaling loses no digits, files are restored exactly, and encoders equal simple formulas."""

import re
from dataclasses import replace

import h5py
import numpy as np
import pytest

from shardpress.hdf5.columns import Columns
from shardpress.model.about import About
from shardpress.model.preparation import Preparation
from shardpress.model.scaler import Scaler
from shardpress.result.finished import read_model_file
from shardpress_kernels.network import Network
from tests.support import hostilemodels, reference
from tests.support.cases import each
from tests.support.helpers import refused
from tests.support.interpreters import REPOSITORY

NETWORKS = [
    Network((4, 3)),
    Network((4, 3), code="linear", gain=True),
    Network((4, 6, 5, 2), "relu", gain=True, output_layer="hidden"),
    Network((4, 6, 5, 2), "leaky-relu", "sigmoid", gain=True),
]
FIRST = NETWORKS[0]
DEEP = NETWORKS[-1]
TIMESTAMP = 1_600_000_000  # seconds since 1970, a column far from zero


def scaler_of(rows):
    wide = np.asarray(rows, dtype=np.float64)
    return Scaler(wide.min(axis=0), wide.max(axis=0))


SCALER = Scaler(np.array([0.0, -5.0, 7.0, 3.0]), np.array([1.0, 5.0, 7.0, 3.5]))


def model_of(network, scaler=SCALER):
    return replace(hostilemodels.model_of(network), scaler=scaler, about=About(device="größer"))


def saved(folder, model, arrays=None, attributes=None):
    """Write a model, with other arrays and attributes if they are given. The value None removes an array."""
    path = folder / "model.h5"
    path.write_bytes(model.to_hdf5())

    def change(group):
        group.attrs.update(attributes or {})
        for name, value in (arrays or {}).items():
            group.pop(name, None)
            if value is not None:
                group[name] = value

    return hostilemodels.forge(path, change)


# -- encoding ----------------------------------------------------------------------------------------------------


def encoded_as_shown(tmp_path, rows):
    """Return features of rows, computed by the Python code of the README from ``encoder.npz`` in a folder."""
    page = (REPOSITORY / "README.md").read_text()
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "encoder.npz" in block]
    found = {"rows": rows}
    exec(lines.replace("features/", f"{tmp_path}/"), found)
    return found["h"]


def cases_of_scaling():
    """Yield scalers with rows, and the rows as float64 after imputation and clipping."""
    rng = np.random.default_rng(2)
    for offset in (0, 0.5, TIMESTAMP):
        rows = offset + 100 * rng.random((40, 4))
        rows[:, 3] = offset
        yield scaler_of(rows), rows, rows
    yield (
        replace(SCALER, center=rng.normal(size=4), factor=np.array([1, 0.1, 0, 0.5])),
        rows / TIMESTAMP,
        rows / TIMESTAMP,
    )
    scaler, rows = cleaning()
    yield scaler, rows, np.clip(np.where(np.isnan(rows), scaler.fill, rows), scaler.minimum, scaler.maximum)


def cleaning():
    """Return a scaler that imputes and clips, and rows with missing values and outliers."""
    rows = TIMESTAMP + 100 * np.random.default_rng(0).standard_normal((200, 4))
    low, high = np.quantile(rows, (0.1, 0.9), axis=0)
    rows[np.random.default_rng(1).random(rows.shape) < 0.1] = np.nan
    return Scaler(low, high, np.nanmedian(rows, axis=0).clip(low, high), clips=True), rows


@each("network", NETWORKS)
def test_the_folded_encoder_needs_only_numpy(tmp_path, network):
    """The encoder and the decoder of a model, and the code of the README, equal the reference."""
    for scaler, rows, cleaned in cases_of_scaling():
        model = model_of(network, scaler)
        x = replace(scaler, fill=None).transform(cleaned).astype(np.float64)
        a, s = reference.forward(network, x, model.parameters)
        features = model.encode(rows)
        assert (features.shape, features.dtype) == ((len(rows), model.n_features), np.float64)
        np.testing.assert_allclose(features, a[network.output.n_layers], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(model.decode(features), s[0], rtol=1e-6, atol=1e-12)
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        # `encode` rounds scaled rows to float32, like a device. Folded weights avoid this rounding.
        np.testing.assert_allclose(encoded_as_shown(tmp_path, rows.reshape(-1, 2, 2)), features, atol=1e-5)
    assert model.encode(np.empty((0, 4))).shape == (0, model.n_features)


def test_first_features_are_those_of_the_whole_model():
    rows = np.random.default_rng(1).normal(size=(9, 4))
    for network in (Network((4, 3), code="linear"), Network((4, 6, 5, 3), "relu", "linear", gain=True)):
        model = replace(model_of(network), about=About({"nested": True}))
        features = model.encode(rows)
        for n in (1, 2, 3):
            first = model.with_first_features(n)
            assert (first.n_features, first.is_nested) == (n, True)
            np.testing.assert_allclose(first.encode(rows), features[:, :n])
            without_others = np.where(np.arange(3) < n, features, 0)
            np.testing.assert_allclose(first.decode(features[:, :n]), model.decode(without_others))
        assert model.with_first_features(3).fingerprint == model.fingerprint != first.with_first_features(1).fingerprint
        for n in (0, 4):
            with refused(65, "n_features"):
                model.with_first_features(n)
        with refused(65, "--nested"):
            model_of(network).with_first_features(2)


PREPARATIONS = (Preparation("total"), Preparation("max", "log1p"), Preparation(None, "log1p"))


def test_the_code_of_the_readme_fails_instead_of_giving_wrong_features(tmp_path):
    scaler, rows = cleaning()
    with_indicators = model_of(Network((6, 3)), scaler.with_indicators(np.array([1, 3])))
    for model in (
        with_indicators,
        *(replace(model_of(FIRST), preparation=preparation) for preparation in PREPARATIONS),
    ):
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        with pytest.raises((KeyError, ValueError)):
            encoded_as_shown(tmp_path, rows)


# -- files -------------------------------------------------------------------------------------------------------


def test_what_changes_features_is_stored_and_fingerprinted(tmp_path):
    _, rows = cleaning()
    fill = np.nanmedian(rows, axis=0)
    scaler = Scaler(fill - 100, fill + 100)
    model = model_of(DEEP, scaler)
    wide = model_of(replace(DEEP, widths=(6, *DEEP.widths[1:])), replace(scaler, fill=fill))
    scalers = [
        replace(scaler, fill=fill),
        replace(scaler, fill=fill, clips=True),
        replace(scaler, minimum=fill - 101),
        replace(scaler, center=fill, factor=np.ones(4)),
    ]
    models = [
        model,
        *(replace(model, scaler=each) for each in scalers),
        *(replace(wide, scaler=wide.scaler.with_indicators(np.array(each))) for each in ([1, 3], [0, 3])),
        *(replace(model, preparation=each) for each in PREPARATIONS),
        replace(model, network=replace(DEEP, output_layer="hidden")),
        replace(model, network=replace(DEEP, code="linear")),
        *(
            replace(model, parameters={**model.parameters, name: np.nextafter(values, np.float32(9))})
            for name, values in model.parameters.items()
        ),
    ]
    assert len({each.fingerprint for each in models}) == len(models)
    for each_model in models:
        found = read_model_file(saved(tmp_path, each_model))
        assert (found.network, found.preparation) == (each_model.network, each_model.preparation)
        assert (found.fingerprint, found.about) == (each_model.fingerprint, each_model.about)
        np.testing.assert_array_equal(found.encode(rows), each_model.encode(rows))
    assert replace(model, about=About(device="other")).fingerprint == model.fingerprint


def test_names_of_columns_are_stored_but_do_not_change_the_fingerprint(tmp_path):
    model = model_of(FIRST)
    columns = Columns(tuple("abcd"), "var/_index", np.arange(4) / 3, "mz")
    named = replace(model, columns=columns)
    assert named.fingerprint == model.fingerprint
    found = read_model_file(saved(tmp_path, named))
    assert (found.columns.names, found.columns.names_from) == (columns.names, columns.names_from)
    np.testing.assert_array_equal(found.columns.values, columns.values)
    assert not read_model_file(saved(tmp_path, model)).columns.is_known


@each(
    "name, value",
    [
        ("W_1", None),
        ("W_1", np.zeros((1, 6, 4), np.float32)),
        ("b_hidden_2", np.zeros(3, ">f4")),
        ("b_output_1", np.full(6, np.nan, np.float32)),
        ("maximum", h5py.Empty("f8")),
        ("fill", np.full(4, np.nan)),
        ("fill", None),
        ("clips", np.zeros(4)),
        ("indicators", np.array([3, 1])),
        ("indicators", np.array([1, 4])),
        ("indicators", np.array([1, 2], np.int32)),
        ("about", np.frombuffer(b'{"training": {"history": 3}}', np.uint8)),
        ("about", np.frombuffer(b"\xff", np.uint8)),
        ("about", 3.0),
        ("columns", np.frombuffer(b"{", np.uint8)),
        ("columns", np.frombuffer(Columns(("a",) * 5).to_json(), np.uint8)),
        ("attribute fingerprint", "0" * 64),
        ("attribute widths", [4]),
        ("attribute widths", [4, 2**60]),
        ("attribute widths", h5py.Empty("i8")),
        ("attribute gain", 1),
        ("attribute activation", "nonsense"),
        ("attribute row_scale", "eval"),
    ],
)
def test_invalid_facts_of_a_model_are_refused(tmp_path, name, value):
    scaler = Scaler(np.zeros(4), np.ones(4), np.zeros(4), center=np.zeros(4), factor=np.ones(4), clips=True)
    model = model_of(Network((6, 4, 3), "relu"), scaler.with_indicators(np.array([1, 3])))
    prepared = replace(model, preparation=Preparation("total", "log1p"))
    attribute = name.removeprefix("attribute ")
    arrays = {} if attribute != name else {name: value}
    attributes = {attribute: value} if attribute != name else {}
    assert read_model_file(saved(tmp_path, prepared)).fingerprint == prepared.fingerprint
    with refused(65, "model.h5", *(set(arrays) - {"about", "columns"})):
        read_model_file(saved(tmp_path, prepared, arrays, attributes))
