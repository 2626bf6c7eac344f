"""Tests of the model: scaling loses no digits, files are restored exactly, and encoders equal simple formulas."""

import math
import re
from dataclasses import replace

import h5py
import numpy as np
import pytest

from shardpress.columns import Columns
from shardpress.model import Model
from shardpress.preparation import Preparation
from shardpress.result import load_model, read_model_file
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.cases import each
from tests.support.helpers import refused
from tests.support.hostilemodels import forge
from tests.support.interpreters import REPOSITORY

NETWORKS = [
    Network((4, 3)),
    Network((4, 3), gain=True),
    Network((4, 3), code="linear"),
    Network((4, 6, 3), "relu", "linear"),
    Network((4, 7, 2), "leaky-relu", output_layer="hidden"),
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


def model_of(network, scaler=SCALER, seed=0):
    rng = np.random.default_rng(seed)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
    return Model(scaler, network, parameters, {"seed": seed, "words": "größer"})


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

    return forge(path, change)


@pytest.fixture(params=[FIRST, DEEP], ids=["one layer", "deep"])
def model(request):
    return model_of(request.param)


# -- encoding ----------------------------------------------------------------------------------------------------


def slow_activation(kind, z):
    """Return an activation, computed with Python floats."""
    if kind == "sigmoid":
        return 1 / (1 + math.exp(-z))
    slope = {"relu": 0.0, "leaky-relu": 0.1, "linear": 1.0}[kind]
    return slope * z if z < 0 else z


def slow_layer(kind, rows, W, b):
    """Return the output of a layer, computed number by number."""
    sums = [[sum(x * float(w) for x, w in zip(row, W[:, j], strict=True)) for j in range(len(b))] for row in rows]
    return [[slow_activation(kind, z + float(b[j])) for j, z in enumerate(row)] for row in sums]


def slow_encode(model, rows):
    p = model.parameters
    network = model.network
    found = model.scaler.transform(rows).tolist()
    for number in range(n_written(network)):
        W, b_hidden, _ = network.layers[number]
        found = slow_layer(network.activations[number], found, p[W], p[b_hidden])
    return found


def n_written(network):
    """Return the number of layers that compute the written features."""
    return network.n_layers - (network.output_layer == "hidden")


def slow_decode(model, features):
    p = model.parameters
    network = model.network
    found = features.tolist()
    if network.output_layer == "hidden":
        W, b_hidden, _ = network.layers[-1]
        found = slow_layer(network.code, found, p[W], p[b_hidden])
    if network.gain:
        found = [[(h - network.center) * float(g) for h, g in zip(row, p["gain"], strict=True)] for row in found]
    for number in range(network.n_layers, 0, -1):
        W, _, b_output = network.layers[number - 1]
        found = slow_layer("linear" if number == 1 else network.activation, found, p[W].T, p[b_output])
    return found


@each("network", NETWORKS)
def test_encode_and_decode_equal_the_formulas(network):
    model = model_of(network)
    for n_rows in (1, 7):
        features = model.encode(np.random.default_rng(1).normal(size=(n_rows, 4)))
        assert (features.shape, features.dtype) == ((n_rows, model.n_features), np.float64)
        np.testing.assert_allclose(features, slow_encode(model, np.random.default_rng(1).normal(size=(n_rows, 4))))
        np.testing.assert_allclose(model.decode(features), slow_decode(model, features), rtol=1e-6, atol=1e-12)
    assert model.encode(np.empty((0, 4))).shape == (0, network.widths[n_written(network)])


def encoded_as_shown(tmp_path, rows):
    """Return features of rows, computed by the Python code of the README from ``encoder.npz`` in a folder."""
    page = (REPOSITORY / "README.md").read_text()
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "encoder.npz" in block]
    found = {"rows": rows}
    exec(lines.replace("features/", f"{tmp_path}/"), found)
    return found["h"]


def test_the_folded_encoder_needs_only_numpy(tmp_path):
    for network in NETWORKS:
        for offset in (0, 0.5, TIMESTAMP):
            rows = offset + 100 * np.random.default_rng(2).random((40, 4))
            rows[:, 3] = offset
            model = model_of(network, scaler_of(rows))
            (tmp_path / "encoder.npz").write_bytes(model.to_npz())
            # `encode` rounds scaled rows to float32, like a device. Folded weights avoid this rounding.
            found = encoded_as_shown(tmp_path, rows.reshape(40, 2, 2))
            np.testing.assert_allclose(found, model.encode(rows), atol=1e-5, err_msg=f"{network}, {offset}")


def test_first_features_are_those_of_the_whole_model():
    rows = np.random.default_rng(1).normal(size=(9, 4))
    for network in (Network((4, 3), code="linear"), Network((4, 6, 5, 3), "relu", "linear", gain=True)):
        model = replace(model_of(network), about={"config": {"nested": True}})
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


def cleaning_model(network, seed=0):
    """Return a model that imputes and clips, and rows with missing values and outliers."""
    rows = TIMESTAMP + 100 * np.random.default_rng(seed).standard_normal((200, 4))
    low, high = np.quantile(rows, (0.1, 0.9), axis=0)
    rows[np.random.default_rng(1).random(rows.shape) < 0.1] = np.nan
    return model_of(network, Scaler(low, high, np.nanmedian(rows, axis=0).clip(low, high), clips=True)), rows


def test_encoders_impute_and_clip_equally(tmp_path):
    for network in NETWORKS:
        model, rows = cleaning_model(network)
        cleaned = np.clip(np.where(np.isnan(rows), model.scaler.fill, rows), model.scaler.minimum, model.scaler.maximum)
        np.testing.assert_array_equal(
            model.encode(rows), model_of(network, replace(model.scaler, fill=None)).encode(cleaned)
        )
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        np.testing.assert_allclose(encoded_as_shown(tmp_path, rows), model.encode(rows), atol=1e-5)


INDICATORS = np.array([1, 3])
EXTENDED = [Network((6, 3)), Network((6, 7, 3), "relu", "linear")]


def test_encoders_append_indicators(tmp_path):
    for network in EXTENDED:
        plain, rows = cleaning_model(FIRST)
        model = model_of(network, plain.scaler.with_indicators(INDICATORS))
        assert (model.n_columns, model.n_inputs) == (4, 6)
        extended = np.hstack([plain.scaler.cleaned(rows), np.isnan(rows)[:, INDICATORS]])
        np.testing.assert_array_equal(model.encode(rows), model.encode_cleaned(extended))
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        with pytest.raises(ValueError, match="6"):  # instead of wrong features
            encoded_as_shown(tmp_path, rows)
        encoder = np.load(tmp_path / "encoder.npz")
        filled = np.where(np.isnan(rows), encoder["fill"], rows)
        h = np.clip(np.hstack([filled, np.isnan(rows)[:, encoder["indicators"]]]), encoder["low"], encoder["high"])
        for i, slope in enumerate(encoder["slopes"], 1):
            z = h @ encoder[f"W_{i}"] + encoder[f"b_{i}"]
            h = np.where(z < 0, slope * z, z)
        h = 1 / (1 + np.exp(-h)) if encoder["is_sigmoid"] else h
        np.testing.assert_allclose(h, model.encode(rows), atol=1e-5)


def test_another_scaling_is_applied(tmp_path):
    rows = np.random.default_rng(4).normal(size=(30, 4)) * [1, 10, 0, 3] + 5
    scaler = replace(scaler_of(rows), center=rows.mean(axis=0), factor=np.array([1, 0.1, 0, 0.5]))
    for network in NETWORKS:
        model = model_of(network, scaler)
        np.testing.assert_allclose(model.encode(rows), slow_encode(model, rows))
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        np.testing.assert_allclose(encoded_as_shown(tmp_path, rows), model.encode(rows), atol=1e-5)


PREPARATIONS = (Preparation("total"), Preparation("max", "log1p"), Preparation(None, "log1p"))


def test_a_preparation_is_applied(tmp_path):
    rows = np.random.default_rng(4).gamma(0.5, 20, (30, 4))
    for preparation in PREPARATIONS:
        prepared = preparation.apply(rows)
        model = replace(model_of(DEEP, scaler_of(prepared)), preparation=preparation)
        np.testing.assert_allclose(model.encode(rows), slow_encode(model, prepared))
        (tmp_path / "encoder.npz").write_bytes(model.to_npz())
        with pytest.raises(KeyError, match="fill"):  # instead of wrong features
            encoded_as_shown(tmp_path, rows)


# -- files -------------------------------------------------------------------------------------------------------


def test_what_changes_features_is_stored_and_fingerprinted(tmp_path):
    _, rows = cleaning_model(FIRST)
    fill = np.nanmedian(rows, axis=0)
    scaler = Scaler(fill - 100, fill + 100)
    model = model_of(DEEP, scaler)
    wide = model_of(replace(DEEP, widths=(6, *DEEP.widths[1:])), replace(scaler, fill=fill))
    scalers = [
        replace(scaler, fill=fill),
        replace(scaler, fill=fill + 1),
        replace(scaler, fill=fill, clips=True),
        replace(scaler, minimum=fill - 101),
        replace(scaler, center=fill, factor=np.ones(4)),
        replace(scaler, center=fill, factor=np.full(4, 2.0)),
    ]
    models = [
        model,
        *(replace(model, scaler=each) for each in scalers),
        *(replace(wide, scaler=wide.scaler.with_indicators(np.array(each))) for each in ([1, 3], [0, 3])),
        *(replace(model, preparation=each) for each in PREPARATIONS),
        replace(model, network=replace(DEEP, output_layer="hidden")),
        replace(model, network=replace(DEEP, code="linear")),
        replace(model, network=replace(DEEP, activation="relu")),
        *(
            replace(model, parameters={**model.parameters, name: np.nextafter(values, np.float32(9))})
            for name, values in model.parameters.items()
        ),
    ]
    assert len({each.fingerprint for each in models}) == len(models)
    for each_model in models:
        found = read_model_file(saved(tmp_path, each_model))
        assert (found.network, found.preparation) == (each_model.network, each_model.preparation)
        assert found.fingerprint == each_model.fingerprint
        np.testing.assert_array_equal(found.encode(rows), each_model.encode(rows))
    assert replace(model, about={"other": "words"}).fingerprint == model.fingerprint


@pytest.mark.process
def test_a_model_is_restored_bit_for_bit(model, tmp_path):
    path = saved(tmp_path, model).rename(tmp_path / "index.h5")
    for name in (path, tmp_path, str(tmp_path)):
        found = load_model(name)
        assert found.about == model.about
        assert found.network == model.network
        assert found.fingerprint == model.fingerprint
        assert (found.n_inputs, found.n_features) == (4, model.network.n_features)
        assert list(found.parameters) == list(model.parameters)
        for name, array in model.parameters.items():
            assert found.parameters[name].dtype == np.float32
            np.testing.assert_array_equal(found.parameters[name], array)
        np.testing.assert_array_equal(found.scaler.minimum, model.scaler.minimum)
        np.testing.assert_array_equal(found.scaler.maximum, model.scaler.maximum)


def test_the_fingerprint_depends_on_network_and_arrays_only(model):
    others = [model_of(model.network, Scaler(SCALER.minimum - 1, SCALER.maximum))]
    for name in model.parameters:
        parameters = {**model.parameters, name: np.nextafter(model.parameters[name], np.float32(9))}
        others.append(replace(model, parameters=parameters))
    others += [replace(model, network=replace(model.network, code="linear"))]
    others += [replace(model, network=replace(model.network, activation="relu"))] * (model.network == DEEP)
    assert len({other.fingerprint for other in [model, *others]}) == 1 + len(others)
    assert replace(model, about={"other": "words"}).fingerprint == model.fingerprint


@pytest.mark.parametrize("damage", ["missing", "shape", "dtype", "byte order", "nan", "strings"])
def test_a_model_with_a_damaged_array_is_refused_by_its_name(tmp_path, model, damage):
    arrays = {**model.parameters, "minimum": model.scaler.minimum, "maximum": model.scaler.maximum}
    for name, good in arrays.items():
        not_finite = good.copy()
        not_finite.flat[-1] = np.nan
        changed = {
            "missing": None,
            "shape": good[None],
            "dtype": good.astype(np.float16),
            "byte order": good.astype(good.dtype.newbyteorder(">")),
            "nan": not_finite,
            "strings": np.full(good.shape, b"1"),
        }[damage]
        with refused(65, "model.h5", name):
            read_model_file(saved(tmp_path, model, {name: changed}))


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("fill", np.full(4, np.nan)),
        ("fill", None),
        ("clips", np.zeros(4)),
        ("center", np.zeros(3)),
        ("center", None),
        ("factor", np.full(4, np.inf)),
        ("indicators", np.array([3, 1])),
        ("indicators", np.array([1, 4])),
        ("indicators", np.array([1, 2], np.int32)),
        ("indicators", np.array([], np.int64)),
        ("indicators", np.int64(1)),
    ],
    ids=str,
)
def test_invalid_cleaning_or_scaling_is_refused(tmp_path, name, array):
    scaler = Scaler(np.zeros(4), np.ones(4), np.zeros(4), center=np.zeros(4), factor=np.ones(4), clips=True)
    model = model_of(EXTENDED[0], scaler.with_indicators(INDICATORS))
    with refused(65, "model.h5", name):
        read_model_file(saved(tmp_path, model, {name: array}))


@pytest.mark.parametrize(
    ("attributes", "phrase"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint"),
        ({"fingerprint": 3}, "fingerprint"),
        ({"widths": [4]}, "widths"),
        ({"widths": [4, 2**60]}, ""),
        ({"widths": h5py.Empty("i8")}, ""),
        ({"gain": 1}, "gain"),
        ({"activation": "nonsense"}, "activation"),
        ({"code": 5}, "code"),
        ({"output_layer": "both"}, "output_layer"),
        ({"row_scale": "eval"}, "row_scale"),
        ({"transform": "rank"}, "transform"),
    ],
)
def test_a_model_of_another_network_is_refused(tmp_path, model, attributes, phrase):
    prepared = replace(model, preparation=Preparation("total", "log1p"))
    with refused(65, "model.h5", phrase):
        read_model_file(saved(tmp_path, prepared, {}, attributes))


def test_a_model_with_other_facts_is_refused(tmp_path, model):
    for about in (b"[]", b'{"config": []}', b'{"training": {"history": 3}}', b"{not JSON", b"\xff"):
        with refused(65, "model.h5"):
            read_model_file(saved(tmp_path, model, {"about": np.frombuffer(about, np.uint8)}))


def test_a_model_with_objects_in_place_of_arrays_is_refused(tmp_path, model):
    for name in (next(iter(model.parameters)), "about"):
        for value in (h5py.Empty("f4"), "text", np.dtype("f4"), 3.0):
            with refused(65, "model.h5"):
                read_model_file(saved(tmp_path, model, {name: value}))


@pytest.mark.parametrize("name", ["", "model.h5", "nowhere/model.h5"])
def test_a_missing_model_is_refused(tmp_path, name):
    with refused(66, str(tmp_path / name)):
        load_model(tmp_path / name)


# -- columns -----------------------------------------------------------------------------------------------------


def test_names_of_columns_do_not_change_the_fingerprint(tmp_path):
    model = Model(SCALER, FIRST, {name: np.ones(shape, np.float32) for name, shape in FIRST.shapes.items()})
    names = tuple(f"gene {i}" for i in range(model.n_inputs))
    named = replace(model, columns=Columns(names, "var/_index", np.arange(model.n_inputs) / 3, "mz"))
    assert named.fingerprint == model.fingerprint
    found = read_model_file(saved(tmp_path, named))
    assert (found.columns.names, found.columns.names_from) == (names, "var/_index")
    np.testing.assert_array_equal(found.columns.values, named.columns.values)
    assert not read_model_file(saved(tmp_path, model)).columns.is_known


def test_damaged_names_of_columns_are_refused(tmp_path):
    model = Model(SCALER, FIRST, {name: np.ones(shape, np.float32) for name, shape in FIRST.shapes.items()})
    for damaged in (b"{", Columns(("a",) * (model.n_inputs + 1)).to_json(), b"x" * 10**6):
        with refused(65, "model.h5"):
            read_model_file(saved(tmp_path, model, {"columns": np.frombuffer(damaged, np.uint8)}))
