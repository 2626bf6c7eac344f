"""Tests of the classifier: accuracies on features, raw columns and principal components equal those of scikit-learn.

Sample: two of three data sets, and every other row of the digits; with TEST_CASES=all everything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pytest
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from scripts import extract
from scripts.classify import main
from shardpress.classify import classifiers
from shardpress.classify.choice import label_name
from shardpress.classify.rows import LEFT_OUT, Rows, classes_of, cut_into_pieces, has_label, held_out
from shardpress.columns import NO_COLUMNS
from shardpress.errors import DataError
from shardpress.features import Features, open_features
from shardpress.model import load_model
from shardpress.scan.scaler import Scaler
from tests.support.cases import ALL_CASES, sample
from tests.support.helpers import write_shard

BUNDLED = {
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the features of two clusters of points, and of other points from the same distribution."""
    folder = tmp_path_factory.mktemp("classify")
    for name, seed in [("train", 0), ("test", 1)]:
        y = np.sort(np.random.default_rng(seed).integers(0, 2, 500))
        x = np.random.default_rng(seed + 10).normal(size=(500, 10)) + 6 * y[:, None]
        text = np.array([b"cat", b"dog"])[y]
        missing = np.where(np.arange(500) % 10, y, np.nan)
        empty = np.where(np.arange(500) % 10, text, b"").astype(object)
        extras = {"label": y, "one": np.ones(500), "bytes": text, "missing": missing, "empty": empty, "number": x[:, 0]}
        extras |= {"flag": y.astype(bool), "whole": y * 2.0, "id": np.arange(500), "byte": y.astype(np.int8)}
        if name == "test":
            extras["label"] = extras["label"] + 3 * (np.arange(500) == 7)
        write_shard(folder / f"{name}.h5", x, extras=extras)
    extract_features(folder, "train.h5", "a", "--n-features", "3", "--epochs", "3")
    extract_features(folder, "test.h5", "b", "--model", str(folder / "a"))
    extract_features(folder, "test.h5", "other", "--n-features", "2", "--epochs", "1")
    return folder


def extract_features(folder: Path, shard: str, output: str, *flags: str) -> None:
    assert extract.main(["--input", str(folder / shard), "--output", str(folder / output), "--quiet", *flags]) == 0


@pytest.fixture
def accuracies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., dict[str, float]]:
    """Return a function that runs the program and returns its table."""
    monkeypatch.chdir(folder)

    def run(*flags: str) -> dict[str, float]:
        assert main(list(flags)) == 0
        rows = re.findall(r"^  ([\d.]+)  on (.*)$", capsys.readouterr().out, re.MULTILINE)
        assert len(rows) == 4
        return {name: float(value) for value, name in rows}

    return run


# -- scikit-learn --------------------------------------------------------------------------------------------------


def scikit_learn_accuracies(x: np.ndarray, y: np.ndarray, encoded: np.ndarray) -> list[float]:
    """Return the accuracies that scikit-learn alone reaches with the same rows and split."""
    is_test = held_out(classes_of([y])[1], seed=0)
    raw = MinMaxScaler().fit_transform(x)
    components = PCA(encoded.shape[1]).fit(raw[~is_test]).transform(raw)
    standard = StandardScaler().fit(raw[~is_test]).transform(raw)
    standardized = PCA(encoded.shape[1]).fit(standard[~is_test]).transform(standard)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return [
        model.fit(t[~is_test], y[~is_test]).score(t[is_test], y[is_test])
        for t in (encoded, components, standardized, raw)
    ]


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.parametrize("name", sample(BUNDLED, 2))
def test_accuracies_on_bundled_sets_equal_plain_scikit_learn(
    tmp_path: Path, accuracies: Callable[..., dict[str, float]], name: str
) -> None:
    x, y = BUNDLED[name](return_X_y=True)
    write_shard(tmp_path / "x.h5", x, extras={"y": y})
    extract_features(tmp_path, "x.h5", "out", "--epochs", "5")
    found = list(accuracies("--features", str(tmp_path / "out")).values())
    expected = scikit_learn_accuracies(x, y, open_features(tmp_path / "out").features.compute())
    assert found == pytest.approx(expected, abs=0.01)
    # Check the order, except where accuracies differ by a row or two.
    differs = np.abs(np.subtract.outer(expected, expected)) > 0.01
    assert np.array_equal(np.less.outer(found, found)[differs], np.less.outer(expected, expected)[differs])


@pytest.mark.compiler
def test_out_of_core_learning_on_sorted_classes_is_the_same(
    tmp_path: Path, accuracies: Callable[..., dict[str, float]]
) -> None:
    x, y = datasets.load_digits(return_X_y=True)
    order = np.argsort(y, kind="stable")[:: 1 if ALL_CASES else 2]
    write_shard(tmp_path / "x.h5", x[order], extras={"y": y[order]})
    extract_features(tmp_path, "x.h5", "out", "--epochs", "5")
    flags = ["--features", str(tmp_path / "out")]
    inside = accuracies(*flags)
    outside = accuracies(*flags, "--memory-budget", "1MiB")
    assert list(inside) == list(outside)
    assert list(outside.values()) == pytest.approx(list(inside.values()), abs=0.04)


@pytest.mark.compiler
def test_out_of_core_moments_equal_moments_of_all_rows(folder: Path) -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(1000, 5)) * [5, 4, 3, 2, 1] + 10).astype(np.float32)
    moments = classifiers._Moments(5)
    for block in np.split(rows, [1, 300, 301]):
        moments.add(block)
    mean, covariance = moments.result()
    assert np.allclose(mean, rows.mean(axis=0, dtype=np.float64), atol=1e-6)
    assert np.allclose(covariance, np.cov(rows.T.astype(np.float64), bias=True), atol=1e-4)


@pytest.mark.compiler
def test_missing_convergence_is_reported(accuracies: Callable[..., dict[str, float]]) -> None:
    for budget in ("2GiB", "64KiB"):
        found = accuracies("--features", "a", "--labels", "label", "--passes", "1", "--memory-budget", budget)
        assert [name for name in found if "--passes" not in name] == []


# -- rows and labels -----------------------------------------------------------------------------------------------


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("test", "budget"),
    [([], "2GiB"), (["--test", "b"], "2GiB"), (["--test", "b"], "100KiB")],
    ids=["held out", "test set", "test set, out of core"],
)
def test_distant_clusters_are_classified(
    accuracies: Callable[..., dict[str, float]], test: list[str], budget: str
) -> None:
    found = accuracies("--features", "a", "--labels", "bytes", "--memory-budget", budget, *test)
    assert list(found) == [
        "3 features",
        "3 principal components",
        "3 principal components of standardized columns",
        "10 raw columns",
    ]
    assert min(found.values()) > 0.97


@pytest.mark.compiler
def test_raw_rows_are_read_with_the_orientation_of_the_run(
    folder: Path, tmp_path: Path, accuracies: Callable[..., dict[str, float]]
) -> None:
    with h5py.File(folder / "train.h5") as file:
        write_shard(tmp_path / "x.h5", file["X"][:].T, extras={"y": file["label"][:][None]})
    extract_features(tmp_path, "x.h5", "out", "--n-features", "3", "--epochs", "3", "--orientation", "columns")
    assert min(accuracies("--features", str(tmp_path / "out")).values()) == 1


@pytest.mark.compiler
def test_rows_of_shards_without_labels_are_unlabelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.arange(60) % 2
    x = np.random.default_rng(0).normal(size=(60, 10)) + 6 * y[:, None]
    write_shard(tmp_path / "a.h5", x, extras={"y": y})
    write_shard(tmp_path / "b.h5", x[:7], extras={"odd": y[:3]})
    extract_features(tmp_path, "*.h5", "out", "--epochs", "3")
    capsys.readouterr()
    assert main(["--features", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    for part in ("12 held-out rows", "2 classes", "48 training rows", "0 bad rows", "7 rows"):
        assert part in out
    assert "odd" not in err  # the run has already reported this dataset


def test_only_the_mask_of_the_labels_is_used() -> None:
    masks = {"y_present": np.zeros(2, bool), "y_present_": np.array([True, False])}
    arrays = {name: da.from_array(values) for name, values in {"y": np.array([1, 255], "u1"), **masks}.items()}
    for manifest, expected in (({"masks": {"y": "y_present_"}}, [True, False]), ({}, [True, True])):
        assert has_label(Features(None, None, arrays, manifest), "y").tolist() == expected


def test_only_unreadable_labels_are_no_labels() -> None:
    least = -(2**15)
    labels = da.from_array(np.array([0, least, 1, least, 0], "<i2"))
    parts = [{"start": 4, "n_rows": 2}, {"start": 0, "n_rows": 3, "lost": {"y": [[1, 2]], "z": [[0, 3]]}}]
    found = has_label(Features(None, None, {"y": labels}, {"parts": parts}), "y")
    assert found.tolist() == [True, True, True, False, True]


def run_with(config: dict[str, Any], **extras: np.ndarray) -> Features:
    arrays = {name: da.from_array(values, chunks=-1) for name, values in extras.items()}
    return Features(None, None, arrays, {"config": config})


def test_default_labels_are_included_or_usual_or_the_only_usable_ones() -> None:
    kinds = np.arange(300) % 3
    texts = np.array(["a", "b", "c"], object)[kinds]
    numbers = np.linspace(0, 1, 300)
    for config, extras, expected in (
        ({}, {"y": kinds, "a": kinds}, "y"),
        ({}, {"batch": kinds, "kind": texts, "score": numbers}, "kind"),
        ({"include": ["obs/batch", "obs/b", "obs/a"]}, {"batch": kinds, "a": kinds, "b": texts, "y": kinds}, "b"),
        ({"include": ["obs/a"], "labels": "obs/batch"}, {"batch": kinds, "a": kinds}, "batch"),
    ):
        run = run_with(config, **extras)
        assert label_name("out", run, None) == expected
        assert label_name("out", run, "obs/other") == "obs/other"
        assert label_name("out", run, f"obs/{expected}") == expected
    for extras, names in (({"a": kinds, "b": texts}, "a, b"), ({"score": numbers, "batch": kinds}, "batch")):
        with pytest.raises(DataError) as caught:
            label_name("out", run_with({}, **extras), None)
        assert names in str(caught.value)


@pytest.mark.compiler
def test_labels_are_text_or_numbers_of_any_dtype(accuracies: Callable[..., dict[str, float]]) -> None:
    expected = accuracies("--features", "a", "--labels", "label")
    for labels in ("bytes", "flag", "whole", "byte"):
        assert accuracies("--features", "a", "--labels", labels) == expected, labels


@pytest.mark.compiler
def test_rows_without_a_label_are_left_out_and_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for labels in ("missing", "empty"):
        assert main(["--features", "a", "--labels", labels]) == 0
        assert "0 bad rows, 50 rows" in capsys.readouterr().out.splitlines()[-1], labels


@pytest.mark.compiler
def test_bad_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = datasets.load_wine(return_X_y=True)
    x[5, 3] = np.nan
    write_shard(tmp_path / "x.h5", x, extras={"y": y})
    extract_features(tmp_path, "x.h5", "out", "--epochs", "1", "--on-bad-data", "skip")
    assert main(["--features", str(tmp_path / "out")]) == 0
    assert "1 bad row, 0 rows" in capsys.readouterr().out


def test_classes_are_sorted_for_every_dtype() -> None:
    classes, codes = classes_of([np.array([b"b", b"a", b"  "], dtype=object), np.array([b"c", b"b"])])
    assert (classes, codes.tolist()) == (["a", "b", "c"], [1, 0, LEFT_OUT, 2, 1])
    classes, codes = classes_of([np.array([3, 1], dtype=np.uint8), np.array([3.0, np.nan, 2.0])])
    assert (classes, codes.tolist()) == ([1, 2, 3], [2, 0, 2, LEFT_OUT, 1])


def test_a_fifth_of_every_class_is_held_out() -> None:
    codes = np.repeat([0, 1, 2, 3, LEFT_OUT], [100, 10, 2, 1, 20])
    is_test = held_out(np.random.default_rng(0).permutation(codes), seed=1)
    assert is_test.sum() == 20 + 2 + 1
    shuffled = np.random.default_rng(0).permutation(codes)
    assert np.bincount(shuffled[is_test] + 1, minlength=5).tolist() == [0, 20, 2, 1, 0]


@pytest.mark.compiler
@pytest.mark.parametrize(
    ("flags", "code", "phrase"),
    [
        (["--features", "nowhere"], 66, "nowhere"),
        (["--features", "a", "--labels", "y"], 65, "found ['byte', 'bytes'"),
        (["--features", "a", "--labels", "one"], 65, "one class"),
        (["--features", "a", "--labels", "number"], 65, "500 such rows"),
        (["--features", "a", "--labels", "id"], 65, "500 different values"),
        (["--features", "a", "--labels", "label", "--test", "other"], 65, " 2 features"),
        (["--features", "a", "--labels", "label", "--test", "b/index.h5"], 65, "b/index.h5: "),
        (["--features", "a/index.h5", "--labels", "label"], 65, "a/index.h5: "),
        (["--features", "a", "--memory-budget", "much"], 64, "--memory-budget"),
        (["--features", "a", "--passes", "0"], 64, "--passes"),
        (["--lables", "a"], 64, "--lables"),
    ],
)
def test_invalid_arguments_and_labels_are_refused(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    phrase: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(flags) == code
    assert phrase in capsys.readouterr().err


@pytest.mark.compiler
def test_label_of_test_rows_only_counts_as_an_error(
    accuracies: Callable[..., dict[str, float]], caplog: pytest.LogCaptureFixture
) -> None:
    found = accuracies("--features", "a", "--labels", "label", "--test", "b")
    assert max(found.values()) <= 499 / 500
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


@pytest.mark.compiler
def test_codes_of_two_runs_are_compared_by_category(
    tmp_path: Path, accuracies: Callable[..., dict[str, float]]
) -> None:
    y = np.arange(200) % 2
    rows = np.random.default_rng(0).normal(size=(200, 4)) + 9 * y[:, None]
    for output, categories in [("a", [b"cat", b"dog"]), ("b", [b"dog", b"cat"])]:
        codes = y if output == "a" else 1 - y
        extras = {"k/codes": codes.astype(np.int8), "k/categories": categories, "n/codes": 1 - codes}
        extras |= {"n/categories": [0.5, 1.5] if output == "b" else [1.5, 0.5]}
        write_shard(tmp_path / f"{output}.h5", rows, extras=extras)
        model_flags = ["--n-features", "2", "--epochs", "2"] if output == "a" else ["--model", str(tmp_path / "a")]
        extract_features(tmp_path, f"{output}.h5", output, "--include", "k", "n", *model_flags)
    for labels in "kn":
        flags = ["--features", str(tmp_path / "a"), "--test", str(tmp_path / "b"), "--labels", labels]
        assert min(accuracies(*flags).values()) > 0.9


@pytest.mark.compiler
def test_changed_raw_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = datasets.load_wine(return_X_y=True)
    path = write_shard(tmp_path / "x.h5", x, extras={"y": y})
    extract_features(tmp_path, "x.h5", "out", "--epochs", "1")
    with h5py.File(path, "r+") as file:
        file["X"][:] = x[::-1]
    assert main(["--features", str(tmp_path / "out")]) == 65
    assert f"file={path}" in capsys.readouterr().err


@pytest.mark.compiler
def test_raw_rows_are_imputed_and_clipped_as_in_the_run(
    tmp_path: Path, accuracies: Callable[..., dict[str, float]]
) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    x = (10 * rng.normal(size=(400, 8)) + 40 * y[:, None]).astype(np.int16)
    x[rng.random(x.shape) < 0.1] = -999
    x[::97, 2] = 30000
    write_shard(tmp_path / "x.h5", x, extras={"y": y})
    flags = ["--missing-value", "-999", "--impute", "median", "--clip-quantile", "0.02", "--n-features", "3"]
    extract_features(tmp_path, "x.h5", "out", "--epochs", "3", *flags)
    assert min(accuracies("--features", str(tmp_path / "out")).values()) > 0.9


@pytest.mark.compiler
def test_raw_rows_include_missing_indicators(tmp_path: Path, accuracies: Callable[..., dict[str, float]]) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    x = rng.normal(size=(600, 6)).astype(np.float32)
    x[(rng.random(600) < 0.95) == y, 2] = np.nan  # nothing else differs between the classes
    write_shard(tmp_path / "x.h5", x, extras={"y": y})
    flags = ["--impute", "median", "--n-features", "5", "--epochs", "3"]
    extract_features(tmp_path, "x.h5", "plain", *flags)
    assert max(accuracies("--features", str(tmp_path / "plain")).values()) < 0.7
    extract_features(tmp_path, "x.h5", "out", *flags, "--missing-indicator")
    assert max(accuracies("--features", str(tmp_path / "out")).values()) > 0.9


@pytest.mark.compiler
def test_each_row_is_read_once_for_any_piece_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_features(folder / "a")
    model = load_model(folder / "a")
    as_scaled = replace(model, scaler=Scaler(np.zeros(model.n_inputs), np.ones(model.n_inputs)))
    pieces: list[Any] = []
    for most_bytes in (1, 1000, 10**6):
        cut = cut_into_pieces(found, str(folder / "a"), NO_COLUMNS, most_bytes)
        rows = Rows(cut, model, np.zeros(500, dtype=int), np.zeros(500, dtype=bool))
        blocks = [*rows.read(np.arange(500) % 3 == 0)]
        pieces.append([np.concatenate(arrays) for arrays in zip(*blocks, strict=True)])
        assert np.allclose(as_scaled.encode(pieces[-1][2]), pieces[-1][1], atol=1e-5)
    assert np.array_equal(pieces[0][0], np.arange(0, 500, 3))
    for one in pieces[1:]:
        assert all(np.array_equal(*pair) for pair in zip(one, pieces[0], strict=True))
