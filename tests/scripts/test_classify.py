"""Tests of scripts/classify.py: accuracies equal those of scikit-learn, and rows of the training are no test rows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts import classify
from shardpress import cli
from shardpress.result.features import open_features
from tests.support import standin
from tests.support.cases import case
from tests.support.helpers import write_shard

pytestmark = pytest.mark.process

X, Y = load_wine(return_X_y=True)
REPRESENTATIONS = (
    "2 features",
    "2 principal components",
    "2 components of standardized columns",
    "13 raw columns",
)


@pytest.fixture(autouse=True)
def _standin(monkeypatch: pytest.MonkeyPatch) -> None:
    standin.install(monkeypatch)


def write(folder: Path, rows: np.ndarray, **extras: np.ndarray) -> None:
    """Write rows to two shards."""
    folder.mkdir()
    for i, part in enumerate(np.array_split(np.arange(len(rows)), 2)):
        write_shard(folder / f"{i}.h5", rows[part], extras={name: values[part] for name, values in extras.items()})


def run(folder: Path, output: Path, *flags: str) -> Path:
    """Run the pipeline with two features, unless the flags name a model."""
    if "--model" not in flags:
        flags = ("--n-features", "2", "--epochs", "2", *flags)
    assert cli.main("", ["--input", str(folder), "--output", str(output), "--quiet", *flags]) == 0
    return output


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[list[int], dict[str, float]]:
    """Return the numbers of test rows and training rows, and the accuracies."""
    capsys.readouterr()
    classify.main([*map(str, arguments)])
    first, *others = capsys.readouterr().out.splitlines()
    lines = [re.fullmatch(r"  ([\d.]+)  on (.*)", line) for line in others]
    accuracies = {line[2]: float(line[1]) for line in lines if line}
    return [int(number) for number in re.findall(r"\d+", first)], accuracies


def by_hand(
    features: np.ndarray, raw: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray
) -> dict[str, float]:
    """Return the accuracies that scikit-learn alone reaches."""
    raw = SimpleImputer(keep_empty_features=True).fit(raw[train]).transform(raw)
    standard = StandardScaler().fit(raw[train]).transform(raw)
    tables = [features]
    tables += [PCA(2, random_state=0).fit(table[train]).transform(table) for table in (raw, standard)]
    tables.append(raw)
    accuracies = []
    for table in tables:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, tol=1e-3))
        accuracies.append(model.fit(table[train], y[train]).score(table[test], y[test]))
    return dict(zip(REPRESENTATIONS, accuracies, strict=True))


def test_accuracies_equal_those_of_plain_scikit_learn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = X.astype(np.float32)
    rows[::7, 3] = -9
    labels = np.where(np.arange(len(Y)) == 5, np.nan, Y)
    write(tmp_path / "x", rows, y=labels)
    output = run(tmp_path / "x", tmp_path / "out", "--missing-value", "-9", "--impute", "mean")
    sizes, accuracies = outcome(capsys, output)
    usable = np.delete(np.arange(len(Y)), 5)
    train, test = train_test_split(usable, test_size=0.2, stratify=Y[usable], random_state=0)
    assert sizes == [len(test), len(train)]
    raw = np.where(rows == -9, np.nan, rows)
    features = open_features(output).features.compute()
    assert accuracies == pytest.approx(by_hand(features, raw, Y, np.sort(train), np.sort(test)), abs=1e-4)
    assert accuracies["13 raw columns"] > 0.9


@pytest.mark.parametrize("dtype", ["i8", "S4"])
def test_rows_with_the_missing_label_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    labels = np.where(np.arange(len(Y)) % 3 == 0, -1, Y)
    n_labels = int((labels >= 0).sum())
    write(tmp_path / "x", X.astype(np.float32), y=labels.astype(dtype))
    output = run(tmp_path / "x", tmp_path / "out", "--missing-label", "-1")
    sizes, _ = outcome(capsys, output)
    assert sum(sizes) == n_labels
    sizes, _ = outcome(capsys, run(tmp_path / "x", tmp_path / "all"))
    assert sum(sizes) == len(Y)


def test_numbers_are_predicted_with_the_r2_of_plain_scikit_learn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = X.astype(np.float32)
    t = X @ np.linspace(-1, 1, 13) / X.std(axis=0).max()
    t[[4, 9]] = (np.nan, np.inf)
    has_value = np.isfinite(t)
    is_train = np.arange(len(Y)) % 3 != 0
    write(tmp_path / "x", rows, t=t, split=np.where(is_train, b"train", b"test"))
    train = is_train & has_value
    test = ~is_train & has_value
    expected = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 8)))
    output = run(
        tmp_path / "x", tmp_path / "out", "--fit-on", "split==train", "--target", "t", "--optimizer", "momentum"
    )
    sizes, scores = outcome(capsys, output, "--labels", "t")
    assert sizes[-2:] == [test.sum(), train.sum()]
    features = open_features(output).features.compute()
    for title, table in (("2 features", features), ("13 raw columns", rows)):
        score = expected.fit(table[train], t[train]).score(table[test], t[test])
        assert scores[title] == pytest.approx(score, abs=1e-4)


def test_rows_of_the_training_are_no_test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rows in (("x", X[::2]), ("z", X[1::2])):
        write(tmp_path / name, rows.astype(np.float32), y=Y[::2][: len(rows)])
    output = run(tmp_path / "x", tmp_path / "out", "--target", "y", "--optimizer", "momentum")
    with pytest.raises(SystemExit, match="No honest test"):
        classify.main([str(output)])
    other = run(tmp_path / "z", tmp_path / "other", "--model", str(output))
    sizes, _ = outcome(capsys, output, "--test", other)
    assert sizes == [len(X) // 2, len(X) // 2]
    shutil.copytree(tmp_path / "x", tmp_path / "copies")
    wrong = {
        "its own rows": output,
        "copies of its files": run(tmp_path / "copies", tmp_path / "copied", "--model", str(output)),
        "another model": run(tmp_path / "z", tmp_path / "trained"),
    }
    for what, directory in wrong.items():
        with case(what), pytest.raises(SystemExit, match="--model"):
            classify.main([str(output), "--test", str(directory)])
