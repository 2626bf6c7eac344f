"""Tests of the estimator: scikit-learn's checks, the bits of a run, and arrays of every kind.

Sample: scikit-learn checks the estimator with its defaults; with TEST_CASES=all also one that fills and clips.
"""

from __future__ import annotations

import errno
import os
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from shardpress import TiedAutoencoder, load_model, open_features
from shardpress.device import TILE_ROWS
from shardpress.interop import applying
from shardpress.interop.applying import compute
from shardpress.preparation import Preparation
from shardpress.run.engine import run
from shardpress.settings.config import SETTINGS, Config
from tests.support.cases import ALL_CASES, case, each
from tests.support.fields import set_sizes
from tests.support.helpers import refused, write_shard
from tests.support.interpreters import REPOSITORY, run_python

pytestmark = pytest.mark.compiler

PAGE = (REPOSITORY / "README.md").read_text()
QUICK = {"epochs": 2, "n_features": 3}


def rows(n_rows: int = 120, dtype: Any = np.float64, n_inputs: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (100 * rng.random((n_rows, 3)) @ rng.random((3, n_inputs))).astype(dtype)


def same_models(one: TiedAutoencoder, other: Any) -> bool:
    return bool(one.model_.fingerprint == getattr(other, "model_", other).fingerprint)


# -- scikit-learn ------------------------------------------------------------------------------------------------


CHECKED: dict[str, dict[str, Any]] = {"plain": {}}
if ALL_CASES:
    CHECKED["filling"] = {"impute": "median", "clip_quantile": 0.01}


@pytest.mark.process
def test_all_checks_of_scikit_learn_pass() -> None:
    """The checks run in a child process, because one check needs a variable that is read when SciPy is imported."""
    ended = run_python(
        f"""
        from sklearn.utils.estimator_checks import check_estimator
        from shardpress import TiedAutoencoder
        for name, options in {CHECKED}.items():
            done = check_estimator(TiedAutoencoder(epochs=2, **options), on_fail=None, on_skip=None)
            facts[name] = [(one["check_name"], one["status"], repr(one["exception"])) for one in done]
        """,
        SCIPY_ARRAY_API="1",
    )
    assert ended.code == 0, ended.stderr
    assert list(ended.facts) == list(CHECKED)
    for name, done in ended.facts.items():
        assert len(done) > 45, name
        assert [check for check in done if check[1] != "passed"] == [], name


RENAMED = {"random_state": "seed", "value_transform": "transform"}


def test_parameters_are_settings_with_their_defaults() -> None:
    for name, value in TiedAutoencoder().get_params().items():
        assert value == SETTINGS[RENAMED.get(name, name)].default, name
    deciding = {each.name for each in SETTINGS.values() if each.has_flag and each.affects in ("scan", "model")}
    # In a shard, a special value can mark missing values. An array uses NaN, and has no extras.
    assert deciding - set(TiedAutoencoder().get_params()) == {"seed", "missing_value", "transform", "fit_on", "target"}


def test_numpy_numbers_and_texts_are_valid_parameters() -> None:
    x = rows()
    expected = TiedAutoencoder(epochs=2, n_features=3, hidden=(8,), memory_budget=2**28, random_state=7).fit(x)
    values = {"epochs": np.int64(2), "n_features": np.int32(3), "hidden": np.array([8]).tolist()}
    found = TiedAutoencoder(**values, memory_budget="256MiB", random_state=np.int64(7)).fit(x)
    assert same_models(found, expected)
    assert not same_models(found.set_params(random_state=8).fit(x), expected)
    state = np.random.RandomState(1)
    one, other = (TiedAutoencoder(**QUICK, random_state=state).fit(x) for _ in range(2))
    assert not same_models(one, other)


@each(
    "parameters, message",
    [
        ({"n_features": 9}, "n_features: 9.* 8"),
        ({"batch_size": 121}, "batch_size: 121.* 120"),
        ({"epochs": 0}, "epochs: 0"),
        ({"optimizer": "sgd"}, "optimizer: 'sgd'"),
        ({"validation_fraction": 0.999}, "validation_fraction"),
    ],
)
def test_invalid_parameter_is_a_value_error_with_its_name(parameters, message) -> None:
    with pytest.raises(ValueError, match=message):
        TiedAutoencoder(**parameters).fit(rows())


def test_unusable_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=" 120 "):
        TiedAutoencoder().fit(np.ones((120, 4)))
    with pytest.raises(ValueError, match=r"X has 4 .* 3 "):
        TiedAutoencoder(**QUICK).fit(rows()).inverse_transform(np.ones((2, 4)))


def test_rows_with_several_axes_are_flattened_as_in_a_run(tmp_path: Path) -> None:
    flat = rows()
    images = flat.reshape(120, 3, 3)
    expected = TiedAutoencoder(**QUICK).fit(flat)
    features = expected.transform(flat)
    lazy = da.from_array(images, chunks=(50, 2, 3))
    for X in (images, list(images), lazy):
        fitted = TiedAutoencoder(**QUICK).fit(X)
        assert same_models(fitted, expected)
        assert fitted.n_features_in_ == 9
        assert np.asarray(fitted.transform(X)).tobytes() == features.tobytes()
        assert fitted.score_samples(X).shape == (120,)
        assert same_models(TiedAutoencoder(**QUICK).partial_fit(X), TiedAutoencoder(**QUICK).partial_fit(flat))
    with pytest.raises(ValueError, match=r"6 features.* 9 "):
        expected.transform(images[:, :2])
    model = TiedAutoencoder(**QUICK).fit(images).model_
    (tmp_path / "model.h5").write_bytes(model.to_hdf5())
    assert load_model(tmp_path / "model.h5").columns.numbered(5) == "5 = (1, 2)"


def test_nan_is_refused_with_the_parameter_that_fills_it_in() -> None:
    x = rows().astype(np.float64)
    fitted = TiedAutoencoder(**QUICK).fit(x)
    x[3, 1] = np.nan
    for apply in (TiedAutoencoder(**QUICK).fit, TiedAutoencoder(**QUICK).partial_fit, fitted.transform, fitted.score):
        with pytest.raises(ValueError, match=r"NaN.*impute=") as caught:
            apply(x)
        assert "HistGradientBoosting" not in str(caught.value)
    x[3, 1] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        fitted.transform(x)
    lazy = da.from_array(x, chunks=(50, 9))
    with pytest.raises(ValueError, match="impute="):
        fitted.transform(lazy).compute()


def test_estimator_works_in_pipelines_and_searches() -> None:
    frame = pd.DataFrame(rows(), columns=[*"abcdefghi"])
    y = np.arange(120) % 2
    steps = make_pipeline(TiedAutoencoder(**QUICK), LogisticRegression())
    search = GridSearchCV(steps, {"tiedautoencoder__n_features": [2, 3]}, cv=2).fit(frame, y)
    assert search.predict(frame).shape == (120,)
    parts = ColumnTransformer([("six", TiedAutoencoder(epochs=1, n_features=2), [*"abcdef"])], remainder="passthrough")
    found = parts.set_output(transform="pandas").fit_transform(frame)
    assert [*found.columns] == [
        "six__tiedautoencoder0",
        "six__tiedautoencoder1",
        "remainder__g",
        "remainder__h",
        "remainder__i",
    ]
    assert [*found.dtypes[:3]] == [np.float32, np.float32, np.float64]


def test_example_of_the_readme_runs() -> None:
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "TiedAutoencoder" in block]
    X, y = load_digits(return_X_y=True)
    found = {"X": X[:1000], "y": y[:1000]}
    exec(lines, found)
    assert found["classifier"].score(X[1000:], y[1000:]) > 0.85


# -- the same bits -----------------------------------------------------------------------------------------------


@each("dtype", ["u1", "?", "f2", ">f4", "f8"])
def test_run_and_fit_on_the_same_rows_give_the_same_bits(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / dtype[-2:]
    folder.mkdir(exist_ok=True)
    x = (rows() > 70 if dtype == "?" else rows()).astype(dtype)
    settings = {"epochs": 2, "n_features": 3, "clip_quantile": 0.01}
    run(Config.of(input=(write_shard(folder / "x.h5", x),), output=str(folder / "out"), seed=3, **settings), ["run"])
    fitted = TiedAutoencoder(**settings, random_state=3).fit(x)
    assert same_models(fitted, load_model(folder / "out"))
    features = open_features(folder / "out").features.compute()
    for found in (fitted, TiedAutoencoder.from_run(folder / "out"), pickle.loads(pickle.dumps(fitted))):
        assert found.transform(x).tobytes() == features.tobytes()
        assert found.n_iter_ == 2


def test_fitted_model_encodes_shards_in_a_run(tmp_path: Path) -> None:
    x = rows()
    fitted = TiedAutoencoder(**QUICK).fit(x)
    (tmp_path / "model.h5").write_bytes(fitted.model_.to_hdf5())
    shard = write_shard(tmp_path / "x.h5", x)
    model = str(tmp_path / "model.h5")
    run(Config.of(input=(shard,), output=str(tmp_path / "out"), model=model), ["run"])
    assert open_features(tmp_path / "out").features.compute().tobytes() == fitted.transform(x).tobytes()
    assert same_models(TiedAutoencoder.from_run(tmp_path / "out").partial_fit(x), fitted.partial_fit(x))


class AtConstantRate(TiedAutoencoder):
    def _config(self) -> Config:
        return super()._config().changed(schedule="constant")


@pytest.mark.parametrize("nested", [False, True])
def test_partial_fits_equal_epochs_at_a_constant_rate(nested: bool) -> None:
    x = rows()
    settings = {"n_features": 3, "corruption": 0.25, "nested": nested, "random_state": 5}
    whole = AtConstantRate(**settings, epochs=3, validation_fraction=0, patience=0).fit(x)
    estimator = TiedAutoencoder(**settings)
    for n in range(1, 4):
        estimator = pickle.loads(pickle.dumps(estimator.partial_fit(x)))
        assert estimator.n_iter_ == n
    assert same_models(estimator, whole)
    assert same_models(clone(estimator).partial_fit(x).fit(x).partial_fit(x), clone(estimator).fit(x).partial_fit(x))


def test_partial_fit_keeps_the_network_of_the_model() -> None:
    fitted = TiedAutoencoder(**QUICK).fit(rows())
    before = fitted.model_.network
    fitted.set_params(n_features=5, hidden=(8,), code_activation="sigmoid", output_layer="hidden")
    assert fitted.partial_fit(rows()).model_.network == before


def test_partial_fit_of_integers_equals_that_of_floats() -> None:
    """Limits with fractions were lost when cleaned rows were stored as integers."""
    fitted = TiedAutoencoder(**QUICK, clip_quantile=0.1).fit(rows())
    later = np.random.default_rng(3).integers(-2, 3, rows().shape)
    one, other = (pickle.loads(pickle.dumps(fitted)).partial_fit(later.astype(dtype)) for dtype in ("i1", "f4"))
    assert same_models(one, other)


def test_fit_follows_the_look_at_the_rows() -> None:
    rng = np.random.default_rng(0)
    tails = np.exp(2 * rng.normal(size=(400, 50)))
    assert TiedAutoencoder(**QUICK).fit(tails).model_.preparation == Preparation(None, "log1p")
    assert TiedAutoencoder(**QUICK, value_transform="none").fit(tails).model_.preparation is None
    bits = TiedAutoencoder(**QUICK).fit(rng.random((400, 300)) < 0.1)
    assert (bits.model_.network.widths[1:-1], bits.model_.network.code) == ((), "linear")


def test_partial_fit_after_fit_keeps_the_scaling() -> None:
    x = rows()
    others = 3 * x.max() * np.random.default_rng(1).random(x.shape)  # not spanned by the components of x
    fitted = TiedAutoencoder(**QUICK).fit(x)
    before = fitted.model_
    score = fitted.score(others)
    for part in (others, others[:1], others):
        fitted.partial_fit(part)
        np.testing.assert_array_equal(fitted.model_.scaler.maximum, before.scaler.maximum)
    assert fitted.score(others) > score
    with pytest.raises(ValueError, match="X has 8 features, but TiedAutoencoder is expecting 9"):
        fitted.partial_fit(x[:, :8])


# -- targets -----------------------------------------------------------------------------------------------------


def some_targets(kind: str, n_rows: int = 120) -> np.ndarray:
    """Return targets. Some are missing."""
    rng = np.random.default_rng(1)
    if kind == "numbers":
        numbers = rng.normal(size=n_rows)
        numbers[::5] = np.nan
        return numbers
    classes = rng.integers(0, 3, n_rows)
    if kind == "texts":
        return np.array(["", "a", "b"], dtype=object)[classes]
    return classes


@pytest.mark.slow
@each("kind", ["classes", "texts", "numbers"])
def test_targets_give_the_same_bits_as_a_run(tmp_path: Path, kind: str) -> None:
    x = rows()
    y = some_targets(kind)
    shard = write_shard(tmp_path / f"{kind}.h5", x, extras={"y": y})
    output = tmp_path / kind
    run(Config.of(input=(shard,), output=str(output), target="y", target_weight=2.0, **QUICK), ["run"])
    fitted = TiedAutoencoder(**QUICK, target_weight=2).fit(x, y)
    assert same_models(fitted, load_model(output))
    assert fitted.model_.network.head is None
    assert TiedAutoencoder.from_run(output).target_weight == 2


def test_targets_are_ignored_without_a_weight_and_matter_with_one() -> None:
    x = rows()
    y = some_targets("classes")
    plain = TiedAutoencoder(**QUICK).fit(x)
    assert same_models(TiedAutoencoder(**QUICK).fit(x, y), plain)
    learned = TiedAutoencoder(**QUICK, target_weight=1).fit(x, y)
    assert not same_models(learned, plain)
    missing = np.where(np.arange(120) % 2, y, -1)
    assert not same_models(TiedAutoencoder(**QUICK, target_weight=1).fit(x, missing), learned)
    assert same_models(TiedAutoencoder(**QUICK, target_weight=1).fit(x, y[:, None]), learned)
    assert learned.model_.target == {"name": "y", "kind": "classes", "fit_on": None}
    assert plain.model_.target is None
    assert clone(learned).target_weight == 1


def test_missing_values_of_pandas_are_no_targets() -> None:
    x = rows()
    texts = np.array(["a", "b", None] * 40, dtype=object)
    expected = TiedAutoencoder(**QUICK, target_weight=1).fit(x, texts)
    strings = pd.array(texts, dtype="string")
    objects = np.array(["a", "b", pd.NA] * 40, dtype=object)
    for y in (strings, pd.Series(strings), pd.Series(strings).astype("category"), pd.Series(texts), objects):
        with case(type(y).__name__, y.dtype):
            assert same_models(TiedAutoencoder(**QUICK, target_weight=1).fit(x, y), expected)
    flags = pd.array([False, True, None] * 40, dtype="boolean")
    assert same_models(TiedAutoencoder(**QUICK, target_weight=1).fit(x, flags), expected)


def test_wrong_targets_are_refused() -> None:
    x = rows()
    for y, words in ((None, "y is None"), (np.zeros(7), "120"), (np.ones(120), "only one value")):
        with case(words), pytest.raises(ValueError, match=words):
            TiedAutoencoder(**QUICK, target_weight=1).fit(x, y)
    with pytest.raises(ValueError, match="target_weight"):
        TiedAutoencoder(**QUICK, target_weight=-1).fit(x, some_targets("classes"))


# -- kinds of arrays ---------------------------------------------------------------------------------------------


def test_lazy_arrays_are_fitted_and_encoded_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    set_sizes(monkeypatch, shuffle_window=2**20, sample_bytes=2**20)
    x = rows(400_000, np.float32, 6)  # 9.6 MB, more than half a budget of 16 MiB
    lazy = da.from_array(x, chunks=(150_000, 4))
    settings = {"epochs": 1, "n_features": 3, "batch_size": 1024, "memory_budget": 2**24}
    fitted = TiedAutoencoder(**settings).fit(x)
    assert same_models(TiedAutoencoder(**settings).fit(lazy), fitted)
    few = lazy[:2000]  # computed at once
    assert same_models(clone(fitted).fit(few), clone(fitted).fit(x[:2000]))
    found = fitted.transform(lazy)
    assert (found.chunks, found.dtype) == (((150_000, 150_000, 100_000), (3,)), np.float32)
    assert found.compute().tobytes() == fitted.transform(x).tobytes()
    np.testing.assert_array_equal(fitted.score_samples(lazy).compute(), fitted.score_samples(x))
    np.testing.assert_allclose(fitted.score(lazy), fitted.score(x), rtol=1e-6)
    back = fitted.inverse_transform(found[:2000])
    features = found[:2000].compute()
    np.testing.assert_allclose(back.compute(), fitted.inverse_transform(features))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "u1", "?"])
def test_sparse_rows_give_the_bits_of_dense_rows(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(1, 9, (300, 9)) * (rng.random((300, 9)) < 0.4)).astype(dtype)
    fitted = TiedAutoencoder(**QUICK).fit(x)
    for kind in ("csr", "csc", "coo", "lil", "bsr", "dok"):
        for make in (getattr(scipy.sparse, f"{kind}_matrix"), getattr(scipy.sparse, f"{kind}_array")):
            with case(make.__name__):
                sparse = make(x)
                assert fitted.transform(sparse).tobytes() == fitted.transform(x).tobytes()
                assert fitted.score_samples(sparse).tobytes() == fitted.score_samples(x).tobytes()
    for make in (scipy.sparse.csr_array, scipy.sparse.csc_matrix):
        assert same_models(TiedAutoencoder(**QUICK).fit(make(x)), fitted)
    one = TiedAutoencoder(**QUICK).partial_fit(x).partial_fit(x)
    assert same_models(TiedAutoencoder(**QUICK).partial_fit(make(x)).partial_fit(make(x)), one)


def test_repeated_entries_of_sparse_rows_are_added() -> None:
    x = rows(dtype=np.float32)
    fitted = TiedAutoencoder(**QUICK).fit(x)
    columns = np.tile(np.arange(9), 2)
    halves = [np.r_[row / 2, row / 2] for row in x]
    indptr = np.arange(0, 18 * len(x) + 1, 18)
    twice = scipy.sparse.csr_array((np.concatenate(halves), np.tile(columns, len(x)), indptr), x.shape)
    assert fitted.transform(twice).tobytes() == fitted.transform(x).tobytes()


def test_unusable_sparse_rows_are_refused() -> None:
    x = rows()
    fitted = TiedAutoencoder(**QUICK).fit(x)
    x[50, 2] = np.nan
    for estimator in (fitted.transform, TiedAutoencoder(**QUICK).fit):
        with pytest.raises(ValueError, match="NaN"):
            estimator(scipy.sparse.csr_array(x))
    with pytest.raises(ValueError, match="9 features"):
        fitted.transform(scipy.sparse.csr_array(rows()[:, :4]))
    filling = TiedAutoencoder(**QUICK, impute="mean").fit(x)
    assert same_models(TiedAutoencoder(**QUICK, impute="mean").fit(scipy.sparse.csr_array(x)), filling)


def rows_with_gaps(seed: int = 0) -> np.ndarray:
    """Return rows with zeros, and with NaN in columns 2 and 7."""
    rng = np.random.default_rng(seed)
    x = rows()
    x[rng.random(x.shape) < 0.3] = 0
    x[:, [2, 7]] = np.where(rng.random((len(x), 2)) < 0.2, np.nan, x[:, [2, 7]])
    return x


def test_indicators_equal_appended_columns() -> None:
    x = rows_with_gaps()
    for options in ({}, {"scale": "range", "clip_quantile": 0.05}, {"row_scale": "max"}):
        with case(options):
            settings = {**QUICK, "hidden": (6,), "impute": "median", **options}
            fitted = TiedAutoencoder(**settings, missing_indicator=True).fit(x)
            model = fitted.model_
            assert model.scaler.indicators.tolist() == [2, 7]
            assert (fitted.n_features_in_, model.n_inputs) == (9, 11)
            sparse = scipy.sparse.csr_array(x)
            assert same_models(TiedAutoencoder(**settings, missing_indicator=True).fit(sparse), fitted)
            features = fitted.transform(x)
            assert fitted.transform(sparse).tobytes() == features.tobytes()
            scaler = TiedAutoencoder(**settings).fit(x).model_.scaler
            prepared = model.preparation.apply(x) if model.preparation else x
            appended = np.hstack([scaler.cleaned(prepared), np.isnan(x)[:, [2, 7]]])
            np.testing.assert_allclose(features, model.encode_cleaned(appended), rtol=1e-4, atol=1e-5)
            unclipped = np.hstack([np.where(np.isnan(x), scaler.fill, prepared), np.isnan(x)[:, [2, 7]]])
            errors = np.square(model.scaler.scaled(unclipped) - model.decode(features)).mean(axis=1)
            np.testing.assert_allclose(-fitted.score_samples(x), errors, rtol=1e-3)
            assert fitted.inverse_transform(features).shape == x.shape


def test_a_fit_with_indicators_equals_a_fit_on_appended_columns() -> None:
    x = rows_with_gaps()
    settings = {**QUICK, "hidden": (6,), "scale": "range", "learning_rate": 0.01}
    fitted = TiedAutoencoder(**settings, impute="median", missing_indicator=True).fit(x)
    appended = np.hstack([np.where(np.isnan(x), fitted.model_.scaler.fill, x), np.isnan(x)[:, [2, 7]]])
    assert fitted.transform(x).tobytes() == TiedAutoencoder(**settings).fit_transform(appended).tobytes()


def test_new_gaps_get_no_indicator() -> None:
    x = rows_with_gaps()
    fitted = TiedAutoencoder(**QUICK, impute="mean", missing_indicator=True).fit(x)
    later = x.copy()
    later[3, 0] = np.nan
    filled = x.copy()
    filled[3, 0] = fitted.model_.scaler.fill[0]
    assert fitted.transform(later).tobytes() == fitted.transform(filled).tobytes()
    fitted.partial_fit(later)
    assert fitted.model_.scaler.indicators.tolist() == [2, 7]
    whole = rows()
    plain = TiedAutoencoder(**QUICK, impute="mean").fit(whole)
    assert same_models(TiedAutoencoder(**QUICK, impute="mean", missing_indicator=True).fit(whole), plain)


def test_a_loaded_model_with_indicators_goes_on(tmp_path: Path) -> None:
    x = rows_with_gaps()
    fitted = TiedAutoencoder(**QUICK, impute="mean", missing_indicator=True, random_state=1).fit(x)
    (tmp_path / "model.h5").write_bytes(fitted.model_.to_hdf5())
    loaded = TiedAutoencoder.from_run(tmp_path / "model.h5")
    assert (loaded.missing_indicator, loaded.n_features_in_) == (True, 9)
    assert loaded.transform(x).tobytes() == fitted.transform(x).tobytes()
    assert same_models(loaded.partial_fit(x), fitted.partial_fit(x))


def test_prepared_features_equal_those_of_a_run(tmp_path: Path) -> None:
    x = rows_with_gaps()
    settings = {**QUICK, "impute": "mean", "missing_indicator": True, "row_scale": "max"}
    shard = write_shard(tmp_path / "x.h5", x)
    run(Config.of(input=(shard,), output=str(tmp_path / "out"), seed=3, transform="log1p", **settings), ["run"])
    estimator = TiedAutoencoder(**settings, value_transform="log1p", random_state=3)
    fitted = estimator.fit(x)
    features = open_features(tmp_path / "out").features.compute()
    sparse = scipy.sparse.csr_array(x)
    for found in (fitted, TiedAutoencoder.from_run(tmp_path / "out"), clone(estimator).fit(sparse)):
        assert found.value_transform == "log1p"
        assert found.transform(x).tobytes() == features.tobytes()
        assert found.transform(sparse).tobytes() == features.tobytes()
    loaded = TiedAutoencoder.from_run(tmp_path / "out")
    assert same_models(loaded.partial_fit(x), fitted.partial_fit(x))


def test_indicators_require_imputation() -> None:
    with pytest.raises(ValueError, match=r"missing_indicator.*impute"):
        TiedAutoencoder(**QUICK, missing_indicator=True).fit(rows())


def test_wide_sparse_rows_are_made_dense_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows = 6 * TILE_ROWS
    x = scipy.sparse.random_array((n_rows, 400), density=0.01, rng=np.random.default_rng(0), format="csr")
    fitted = TiedAutoencoder(n_features=3, epochs=1, batch_size=512).fit(x)
    dense = x.toarray()
    monkeypatch.setattr(applying, "_BLOCK_BYTES", dense[:TILE_ROWS].nbytes)
    tracemalloc.start()
    try:
        found = fitted.transform(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < dense.nbytes
    assert found.tobytes() == fitted.transform(dense).tobytes()


def test_lazy_rows_with_nan_or_unknown_length_are_refused() -> None:
    x = rows(dtype=np.float32)
    fitted = TiedAutoencoder(**QUICK).fit(x)
    x[50, 2] = np.nan
    lazy = da.from_array(x, chunks=(40, 9))
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TiedAutoencoder(**QUICK).fit(lazy)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        TiedAutoencoder(**QUICK, memory_budget=2**24).fit(da.concatenate([lazy] * 2200))
    with pytest.raises(ValueError, match=r"row 10 .*NaN"):
        fitted.transform(lazy).compute()
    with pytest.raises(ValueError, match="unknown"):
        fitted.fit(lazy[lazy[:, 0] > 0])


def test_full_disk_is_found_before_computing_a_lazy_array(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lazy = da.from_array(rows(), chunks=(40, 9)).map_blocks(pytest.fail, dtype=np.float64, meta=np.empty((0, 0)))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with refused(74, "8640 bytes", "No space left on device", "TMPDIR"):
        compute(lazy, 8639)


def test_frames_and_any_memory_order_give_the_same_bits() -> None:
    x = rows()
    fitted = TiedAutoencoder(**QUICK).fit(x)
    frame = pd.DataFrame(x, columns=[*"abcdefghi"])
    of_frame = TiedAutoencoder(**QUICK).fit(frame)
    assert [*of_frame.feature_names_in_] == [*"abcdefghi"]
    assert [*of_frame.get_feature_names_out()] == [f"tiedautoencoder{i}" for i in range(3)]
    assert same_models(of_frame, fitted)
    assert same_models(clone(fitted).fit(np.asfortranarray(x)), fitted)
    for other in (frame, np.asfortranarray(x), x[::-1][::-1], x.tolist()):
        model = of_frame if other is frame else fitted
        assert model.transform(other).tobytes() == fitted.transform(x).tobytes()
    for n in (1, 7):  # the result does not depend on other rows
        assert fitted.transform(x[-n:]).tobytes() == fitted.transform(x)[-n:].tobytes()


def test_model_with_column_names_refuses_other_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(rows(), columns=[*"abcdefghi"])
    fitted = TiedAutoencoder(**QUICK).fit(frame)
    path = tmp_path / "model.h5"
    path.write_bytes(fitted.model_.to_hdf5())
    loaded = TiedAutoencoder.from_run(path)
    assert [*loaded.feature_names_in_] == [*"abcdefghi"]
    assert loaded.transform(frame).tobytes() == fitted.transform(frame).tobytes()
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame[[*"bacdefghi"]])


# -- without Theano ----------------------------------------------------------------------------------------------


def test_numpy_replaces_a_missing_theano(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(9000)
    x[::7, 3] = np.nan
    filling = {"impute": "mean", "clip_quantile": 0.1, "hidden": (8,), "code_activation": "sigmoid"}
    for options in ({}, filling, {**filling, "missing_indicator": True}, {**filling, "value_transform": "log1p"}):
        with case(options):
            values = x if options else np.nan_to_num(x)
            fitted = TiedAutoencoder(**QUICK, **options).fit(values)
            lazy = da.from_array(values, chunks=(4000, 9))
            on_device = fitted.transform(values), fitted.score_samples(values)
            monkeypatch.setattr(applying, "has_theano", lambda: False)
            np.testing.assert_allclose(fitted.transform(values), on_device[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(fitted.transform(lazy), on_device[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(fitted.score_samples(values), on_device[1], rtol=1e-3, atol=1e-7)
            monkeypatch.undo()


@pytest.mark.process
def test_fitted_estimator_is_applied_without_theano(tmp_path: Path) -> None:
    x = rows()
    fitted = TiedAutoencoder(**QUICK).partial_fit(x)
    (tmp_path / "fitted").write_bytes(pickle.dumps(fitted))
    (tmp_path / "model.h5").write_bytes(fitted.model_.to_hdf5())
    ended = run_python(
        f"""
        import pickle, sys
        import numpy as np
        sys.modules |= dict.fromkeys(["theano", "deflate", "tqdm"])  # as if they were not installed
        from shardpress import TiedAutoencoder
        x = np.array({x.tolist()})
        for found in (pickle.load(open("{tmp_path}/fitted", "rb")), TiedAutoencoder.from_run("{tmp_path}/model.h5")):
            facts[type(found).__name__ + str(len(facts))] = found.transform(x).tolist()
        try:
            found.fit(x)
        except Exception as error:
            facts["fit"] = f"{{type(error).__name__}}: {{error}}"
        """
    )
    assert ended.code == 0, ended.stderr
    fit = ended.facts.pop("fit")
    assert fit.startswith("DeviceError: ")
    assert "Theano" in fit
    assert len(ended.facts) == 2
    for found in ended.facts.values():
        np.testing.assert_allclose(found, fitted.transform(x), rtol=1e-4, atol=1e-5)
