"""Tests of docs/using.md: its Python code runs, and its statements about other libraries hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from shardpress.commands.registry import main
from shardpress.interop.export import FORMATS
from shardpress.result.finished import load_model
from tests.support.cases import case
from tests.support.interpreters import REPOSITORY
from tests.support.parts import feature_rows, finished, finished_parts, part

PAGE = (REPOSITORY / "docs/using.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
ROWS = feature_rows(7)
Y = np.arange(7)


def python_of(section: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.M | re.S)


# -- one test per line ------------------------------------------------------------------------------------------------


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found), expected)


def frame(found: pd.DataFrame) -> None:
    assert_same(found[["feature0", "feature1"]], ROWS)


CHECKS = {
    "NumPy": lambda found: assert_same(found, ROWS),
    "Dask, out of core": lambda found: assert_same(found, ROWS.mean(axis=0)),
    "scikit-learn": lambda found: assert_same(found.classes_, Y),
    "pandas": lambda found: (frame(found), assert_same(found["y"], Y)),
    "Polars": lambda found: (assert_same(found["features"].to_numpy(), ROWS), assert_same(found["y"], Y)),
    "Arrow": lambda found: (assert_same(found["features"].to_pylist(), ROWS), assert_same(found["y"], Y)),
    "Parquet": lambda _: (
        frame(pd.read_parquet("features.parquet")),
        assert_same(pd.read_parquet("features.parquet")["y"], Y),
    ),
    "Parquet, out of core": lambda _: frame(pd.read_parquet("parquet")),
}


def test_features_are_read_by_other_libraries_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "features", 3, 4)
    lines = dict(re.findall(r"^\| (.+?) \| `(.+)` \|$", SECTIONS["Read the features"], re.M))
    # PyTorch is not one of the packages for tests.
    lines = {name: line for name, line in lines.items() if not name.startswith("PyTorch")}
    assert list(lines) == list(CHECKS)
    names: dict[str, Any] = {"h5py": h5py, "pd": pd, "pl": pl, "pa": pa}
    names |= {each.__name__: each for each in (make_pipeline, StandardScaler, LogisticRegression)}
    (opening,) = python_of("Read the features")
    exec(opening, names)
    for name, line in lines.items():
        with case(name):
            CHECKS[name](eval(line, names))


def test_format_of_the_result_is_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = [(n_rows, part(n_rows, first, {"y": Y[first : first + n_rows]})) for n_rows, first in ((3, 0), (4, 3))]
    finished_parts(tmp_path / "features", parts, append_ids=[0, 1])
    found: dict[str, Any] = {}
    (example,) = python_of("Format of the result")
    exec(example, found)
    assert_same(found["rows"], ROWS)
    assert [each["n_rows"] for each in found["parts"]] == [3, 4]
    described = dict(re.findall(r"^\| `(\S+)` \| (.*) \|$", SECTIONS["Format of the result"], re.M))
    with h5py.File("features/index.h5") as file:
        optional = {"error", "shardpress/run/maps/1", "shardpress/run/reference"}
        assert {name for name in described if name not in file} == optional
        for name in ("features", "valid", "append_id"):
            assert described[name].startswith(file[name].dtype.name), name
        assert file["shardpress"].attrs["format"] in described["shardpress"]
        for name in re.findall("`(.*?)`", described["shardpress/model"]):
            assert name in file["shardpress/model"] or name in file["shardpress/model"].attrs, name


@pytest.mark.process
def test_exports_are_written_and_read_as_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "features", 3, 4)
    exports = re.findall(r"^\| `shardpress (export .+?)` \| `(.+?)` \|", SECTIONS["Other formats"], re.M)
    assert len(exports) == len(FORMATS)
    for command, path in exports:
        with case(command):
            assert main(command.split()) == 0
            assert Path(path).exists()
    calls = re.findall(r'^    ((?:pandas|polars)\.read_parquet\(".*"\))$', SECTIONS["Other formats"], re.M)
    assert len(calls) == 2
    for call in calls:
        with case(call):
            found = eval(call, {"pandas": pd, "polars": pl})
            assert_same(found[["feature0", "feature1"]], ROWS)
            assert_same(found["y"], Y)


@pytest.mark.compiler
def test_examples_of_the_estimator_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitting, from_run = python_of("In Python")
    names: dict[str, Any] = {"X": load_digits().data[:300], "Path": Path}
    exec(fitting, names)
    features = names["features"]
    (tmp_path / "features").mkdir()
    (tmp_path / "features/index.h5").write_bytes(names["fitted"].model_.to_hdf5())
    exec(from_run, names)
    assert_same(names["fitted"].transform(names["X"]), features)
    assert load_model("model.h5").fingerprint == names["fitted"].model_.fingerprint
