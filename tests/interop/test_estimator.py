"""Tests of the estimator: scikit-learn's checks, the bits of a run, and arrays of every kind."""

from __future__ import annotations

import pickle
import re
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_digits

from shardpress import TiedAutoencoder, load_model, open_features
from shardpress.interop import applying
from shardpress.model.device import TILE_ROWS
from shardpress.run.engine import run
from shardpress.settings.config import Config
from tests.support.cases import case, each
from tests.support.fields import set_sizes
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, run_python

pytestmark = pytest.mark.compiler

PAGE = (REPOSITORY / "README.md").read_text()
QUICK = {"epochs": 2, "n_features": 3}


def rows(n_rows: int = 120, dtype: Any = np.float64, n_inputs: int = 9) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (100 * rng.random((n_rows, 3)) @ rng.random((3, n_inputs))).astype(dtype)


def rows_with_gaps() -> np.ndarray:
    """Return rows with zeros, and with NaN in columns 2 and 7."""
    rng = np.random.default_rng(0)
    x = rows()
    x[rng.random(x.shape) < 0.3] = 0
    x[:, [2, 7]] = np.where(rng.random((len(x), 2)) < 0.2, np.nan, x[:, [2, 7]])
    return x


def same_models(one: TiedAutoencoder, other: Any) -> bool:
    return bool(one.model_.fingerprint == getattr(other, "model_", other).fingerprint)


@pytest.mark.process
def test_all_checks_of_scikit_learn_pass() -> None:
    """The checks run in a child process, because one check needs a variable that is read when SciPy is imported."""
    ended = run_python(
        """
        from sklearn.utils.estimator_checks import check_estimator
        from shardpress import TiedAutoencoder
        done = check_estimator(TiedAutoencoder(epochs=2), on_fail=None, on_skip=None)
        facts["checks"] = [(one["check_name"], one["status"], repr(one["exception"])) for one in done]
        """,
        SCIPY_ARRAY_API="1",
    )
    checks = ended.facts["checks"]
    assert len(checks) > 45
    assert [check for check in checks if check[1] != "passed"] == []


def test_rows_with_several_axes_are_flattened_as_in_a_run() -> None:
    flat = rows()
    images = flat.reshape(120, 3, 3)
    expected = TiedAutoencoder(**QUICK).fit(flat)
    features = expected.transform(flat)
    for X in (list(images), da.from_array(images, chunks=(50, 2, 3)), images):
        fitted = TiedAutoencoder(**QUICK).fit(X)
        assert same_models(fitted, expected)
        assert fitted.n_features_in_ == 9
        assert np.asarray(fitted.transform(X)).tobytes() == features.tobytes()
        assert fitted.score_samples(X).shape == (120,)
    assert fitted.model_.columns.numbered(5) == "5 = (1, 2)"


def test_unusable_rows_are_refused_with_the_parameter_that_helps() -> None:
    x = rows(dtype=np.float32)
    fitted = TiedAutoencoder(**QUICK).fit(x)
    new = TiedAutoencoder(**QUICK)
    frame = pd.DataFrame(x, columns=[*"abcdefghi"])
    named = TiedAutoencoder(**QUICK).fit(frame)
    damaged = x.copy()
    damaged[3, 1] = np.nan
    sparse = scipy.sparse.csr_array
    lazy = da.from_array(damaged, chunks=(40, 9))
    larger = TiedAutoencoder(**QUICK, memory_budget=2**24)  # than half of the budget
    supervised = TiedAutoencoder(**QUICK, target_weight=1)
    for refuse, X, words in (
        (new.fit, np.ones((120, 4)), " 120 "),
        (supervised.fit, x, "y is None"),
        (partial(supervised.fit, y=np.zeros(7)), x, "120"),
        (new.fit, damaged, r"NaN.*impute="),
        (new.fit, sparse(damaged), "NaN"),
        (new.fit, lazy, "Input X contains NaN"),
        (new.fit, lazy[lazy[:, 0] > 0], "unknown"),
        (larger.fit, da.concatenate([lazy] * 2200), "Input X contains NaN"),
        (fitted.transform, damaged, r"NaN.*impute="),
        (fitted.transform, np.where(np.isnan(damaged), np.inf, x), "infinity"),
        (fitted.transform, sparse(x[:, :4]), "9 features"),
        (fitted.partial_fit, x[:, :8], "X has 8 features, but TiedAutoencoder is expecting 9"),
        (fitted.inverse_transform, np.ones((2, 4)), r"X has 4 .* 3 "),
        (named.transform, frame[[*"bacdefghi"]], "feature names"),
    ):
        with case(words), pytest.raises(ValueError, match=words):
            refuse(X)
    with pytest.raises(ValueError, match=r"row 3 .*NaN"):
        fitted.transform(lazy).compute()


def test_messages_speak_of_arrays_and_parameters() -> None:
    x = rows()
    huge = x.copy()
    huge[:2, 4] = [-1e308, 1e308]
    for parameters, X, y, start in (
        ({}, np.ones((120, 9)), None, "X: "),
        ({}, x * 1e-310, None, "X: "),
        ({}, huge, None, "X: "),
        ({"row_scale": "total"}, (huge > 0) * 2**60, None, "X: "),
        ({"random_state": -1}, x, None, "random_state: "),
        ({"value_transform": "sqrt"}, x, None, "value_transform: "),
        ({"target_weight": 1}, x, np.full(120, -1), "target: y "),
    ):
        with case(start, parameters), pytest.raises(ValueError, match=f"^{start}") as refusal:
            TiedAutoencoder(**{**QUICK, **parameters}).fit(X, y)
        assert not re.search(r"file|dataset|extra|--", str(refusal.value))


def test_example_of_the_readme_runs() -> None:
    (lines,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "TiedAutoencoder" in block]
    X, y = load_digits(return_X_y=True)
    found = {"X": X[:1000], "y": y[:1000]}
    exec(lines, found)
    assert found["classifier"].score(X[1000:], y[1000:]) > 0.85


PREPARED = {"impute": "mean", "missing_indicator": True, "row_scale": "max", "value_transform": "log1p"}


@each("dtype, options", [("u1", {"clip_quantile": 0.01}), ("f2", {}), (">f4", PREPARED)])
def test_run_and_fit_on_the_same_rows_give_the_same_bits(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    folder = tmp_path / dtype[-2:]
    folder.mkdir()
    x = (rows_with_gaps() if "impute" in options else rows()).astype(dtype)
    shard = write_shard(folder / "x.h5", x)
    flags = {"transform" if name == "value_transform" else name: value for name, value in options.items()}
    run(Config.of(input=(shard,), output=str(folder / "out"), seed=3, **QUICK, **flags), ["run"])
    fitted = TiedAutoencoder(**QUICK, **options, random_state=3).fit(x)
    assert same_models(fitted, load_model(folder / "out"))
    features = open_features(folder / "out").features.compute()
    loaded = TiedAutoencoder.from_run(folder / "out")
    for found in (fitted, loaded, pickle.loads(pickle.dumps(fitted))):
        assert found.transform(x).tobytes() == features.tobytes()
        assert found.n_iter_ == 2
    for name, value in options.items():
        assert getattr(loaded, name) == value
    (folder / "model.h5").write_bytes(fitted.model_.to_hdf5())
    run(Config.of(input=(shard,), output=str(folder / "again"), model=str(folder / "model.h5")), ["run"])
    assert open_features(folder / "again").features.compute().tobytes() == features.tobytes()
    if dtype != "f2":  # which no sparse matrix of SciPy has
        sparse = scipy.sparse.csr_array(x.astype(x.dtype.newbyteorder("=")))
        assert same_models(clone(fitted).fit(sparse), fitted)
        assert fitted.transform(sparse).tobytes() == features.tobytes()
    assert same_models(loaded.partial_fit(x), fitted.partial_fit(x))


class AtConstantRate(TiedAutoencoder):
    def _config(self) -> Config:
        return super()._config().changed(schedule="constant")


def test_a_generator_of_random_numbers_determines_the_model() -> None:
    x = rows()
    models = [TiedAutoencoder(**QUICK, random_state=np.random.RandomState(seed)).fit(x) for seed in (1, 1, 2)]
    assert same_models(models[0], models[1])
    assert not same_models(models[0], models[2])


def test_partial_fits_equal_epochs_at_a_constant_rate() -> None:
    x = rows()
    settings = {"n_features": 3, "corruption": 0.25, "nested": True, "random_state": 5}
    whole = AtConstantRate(**settings, epochs=3, validation_fraction=0, patience=0).fit(x)
    estimator = TiedAutoencoder(**settings)
    for n in range(1, 4):
        estimator = pickle.loads(pickle.dumps(estimator.partial_fit(x)))
        assert estimator.n_iter_ == n
    assert same_models(estimator, whole)
    assert same_models(clone(estimator).partial_fit(x).fit(x).partial_fit(x), clone(estimator).fit(x).partial_fit(x))


def test_partial_fit_after_fit_keeps_the_network_and_the_scaling() -> None:
    x = rows()
    others = 3 * x.max() * np.random.default_rng(1).random(x.shape)  # not spanned by the components of x
    fitted = TiedAutoencoder(**QUICK).fit(x)
    before = fitted.model_
    score = fitted.score(others)
    fitted.set_params(n_features=5, hidden=(8,), code_activation="sigmoid", output_layer="hidden")
    for part in (others, others[:1], others):
        fitted.partial_fit(part)
        assert fitted.model_.network == before.network
        np.testing.assert_array_equal(fitted.model_.scaler.maximum, before.scaler.maximum)
    assert fitted.score(others) > score


@pytest.mark.slow
@each("kind", ["texts", "numbers"])
def test_targets_matter_with_a_weight_as_in_a_run(tmp_path: Path, kind: str) -> None:
    x = rows()
    rng = np.random.default_rng(1)
    y = np.array(["", "a", "b"], dtype=object)[rng.integers(0, 3, 120)]  # an empty string is no target
    given = np.where(y == "", pd.NA, y)
    if kind == "numbers":
        y = np.where(np.arange(120) % 5, rng.normal(size=120), np.nan)
        given = y
    shard = write_shard(tmp_path / f"{kind}.h5", x, extras={"y": y})
    output = tmp_path / kind
    run(Config.of(input=(shard,), output=str(output), target="y", target_weight=2.0, **QUICK), ["run"])
    fitted = TiedAutoencoder(**QUICK, target_weight=2).fit(x, given[:, None])
    assert same_models(fitted, load_model(output))
    assert fitted.model_.network.head is None
    assert TiedAutoencoder.from_run(output).target_weight == 2
    plain = TiedAutoencoder(**QUICK).fit(x, y)
    assert same_models(TiedAutoencoder(**QUICK).fit(x), plain)
    assert not same_models(fitted, plain)


@pytest.mark.slow
def test_minus_one_is_a_class_unless_it_is_the_missing_label(tmp_path: Path) -> None:
    x = rows()
    y = np.maximum(np.random.default_rng(1).integers(-4, 2, 120), -1)
    shard = write_shard(tmp_path / "x.h5", x, extras={"y": y})
    for name, missing, n_classes in (("all", None, 3), ("some", "-1", 2)):
        output = tmp_path / name
        config = Config.of(input=(shard,), output=str(output), target="y", missing_label=missing, **QUICK)
        run(config, ["run"])
        given = None if missing is None else int(missing)
        fitted = TiedAutoencoder(**QUICK, target_weight=1, missing_label=given).fit(x, y)
        assert same_models(fitted, load_model(output))
        assert fitted.model_.about.training.target.n_classes == n_classes
        assert any("--missing-label -1" in each for each in fitted.complaints_) == (missing is None)
        assert TiedAutoencoder.from_run(output).missing_label == missing
    masked = np.ma.masked_array(np.maximum(y, 0), mask=y < 0)
    assert same_models(TiedAutoencoder(**QUICK, target_weight=1).fit(x, masked), fitted)


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


def test_sparse_rows_give_the_bits_of_dense_rows() -> None:
    rng = np.random.default_rng(0)
    x = (rng.integers(1, 9, (300, 9)) * (rng.random((300, 9)) < 0.4)).astype("u1")
    fitted = TiedAutoencoder(**QUICK).fit(x)
    halves = np.hstack([x // 2, x - x // 2])  # a column can have several entries in a row, which are added
    indptr = np.arange(0, halves.size + 1, halves.shape[1])
    columns = np.tile(np.arange(9), 2 * len(x))
    several_entries = scipy.sparse.csr_array((halves.ravel(), columns, indptr), x.shape)
    partly = TiedAutoencoder(**QUICK).partial_fit(x).partial_fit(x)
    for sparse in (scipy.sparse.csc_array(x), several_entries):
        with case(type(sparse).__name__):
            assert fitted.transform(sparse).tobytes() == fitted.transform(x).tobytes()
            assert fitted.score_samples(sparse).tobytes() == fitted.score_samples(x).tobytes()
            assert same_models(TiedAutoencoder(**QUICK).fit(sparse), fitted)
            assert same_models(TiedAutoencoder(**QUICK).partial_fit(sparse).partial_fit(sparse), partly)


def test_frames_and_any_memory_order_give_the_same_bits(tmp_path: Path) -> None:
    x = rows()
    fitted = TiedAutoencoder(**QUICK).fit(x)
    features = fitted.transform(x)
    frame = pd.DataFrame(x, columns=[*"abcdefghi"])
    of_frame = TiedAutoencoder(**QUICK).fit(frame)
    (tmp_path / "model.h5").write_bytes(of_frame.model_.to_hdf5())
    loaded = TiedAutoencoder.from_run(tmp_path / "model.h5")
    for named in (of_frame, loaded):
        assert [*named.feature_names_in_] == [*"abcdefghi"]
        assert named.transform(frame).tobytes() == features.tobytes()
    assert same_models(of_frame, fitted)
    assert same_models(clone(fitted).fit(np.asfortranarray(x)), fitted)
    for other in (np.asfortranarray(x), x[::-1][::-1], x.tolist()):
        assert fitted.transform(other).tobytes() == features.tobytes()
    assert fitted.transform(x[-7:]).tobytes() == features[-7:].tobytes(), "independent of other rows"


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


@pytest.mark.process
def test_results_equal_the_formulas_with_and_without_theano(tmp_path: Path) -> None:
    x = rows()
    plain = {"hidden": (), "scale": "range", "row_scale": "none", "value_transform": "none"}
    fitted = TiedAutoencoder(**QUICK, **plain).partial_fit(x)
    (tmp_path / "fitted").write_bytes(pickle.dumps(fitted))
    (tmp_path / "model.h5").write_bytes(fitted.model_.to_hdf5())
    np.save(tmp_path / "x.npy", x)
    ended = run_python(
        f"""
        import pickle, sys
        import numpy as np
        sys.modules |= dict.fromkeys(["theano", "deflate", "tqdm"])  # as if they were not installed
        from shardpress import TiedAutoencoder
        x = np.load("{tmp_path}/x.npy")
        for found in (pickle.load(open("{tmp_path}/fitted", "rb")), TiedAutoencoder.from_run("{tmp_path}/model.h5")):
            features = found.transform(x)
            results = features, found.score_samples(x), found.inverse_transform(features)
            facts[str(len(facts))] = [result.tolist() for result in results]
        try:
            found.fit(x)
        except Exception as error:
            facts["fit"] = f"{{type(error).__name__}}: {{error}}"
        """
    )
    fit = ended.facts.pop("fit")
    assert fit.startswith("DeviceError: ")
    assert "Theano" in fit
    p = {name: array.astype(np.float64) for name, array in fitted.model_.parameters.items()}
    low = x.min(axis=0)
    width = np.ptp(x, axis=0)
    scaled = (x - low) / width
    features = scaled @ p["W"] + p["b_hidden"]
    reconstruction = features @ p["W"].T + p["b_output"]
    scores = -np.square(scaled - reconstruction).mean(axis=1)
    on_device = fitted.transform(x)
    assert len(ended.facts) == 2
    for found in (*ended.facts.values(), (on_device, fitted.score_samples(x), fitted.inverse_transform(on_device))):
        np.testing.assert_allclose(found[0], features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[1], scores, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found[2], low + width * reconstruction, rtol=1e-4)
    assert fitted.score(x) == pytest.approx(scores.mean(), rel=1e-4)
