"""Tests of the preparation of rows: it equals plain NumPy, row by row."""

from __future__ import annotations

import importlib.util
import subprocess
import sysconfig
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from shardpress.base import rowmath
from shardpress.hdf5.shard import Block, array_shard
from shardpress.model.preparation import Preparation
from shardpress.settings.kinds import ROW_SCALES, TRANSFORMS
from shardpress.shards.conversion import Conversion
from tests.support.cases import case, each
from tests.support.helpers import refused
from tests.support.interpreters import REPOSITORY

PREPARATIONS = [Preparation(*values) for values in product((None, *ROW_SCALES), (None, *TRANSFORMS))][1:]
DTYPES = ("u1", "?", "i2", "f2", "f4", "f8")


def slow_row(preparation: Preparation, row: np.ndarray) -> np.ndarray:
    """Prepare one row in float64."""
    values = row.astype(np.float64)
    present = np.abs(values[~np.isnan(values)])
    sizes = {
        None: 1.0,
        "total": present.sum() / 10_000,
        "median": abs(np.median(values[~np.isnan(values)])) if len(present) else 0.0,
        "norm": np.sqrt((present**2).sum()),
        "max": present.max(initial=0),
    }
    size = sizes[preparation.row_scale]
    if np.isfinite(size) and size > 0:
        values = values / size
    if preparation.transform == "log1p":
        values = np.sign(values) * np.log1p(np.abs(values))
    return values


def rows_of(dtype: str, n_columns: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows = rng.gamma(0.5, 20, (30, n_columns)).clip(0, 200)
    if np.dtype(dtype).kind in "if":
        rows *= rng.choice([-1, 1, 1, 1], rows.shape)
    rows[5] = 0
    rows = rows.astype(dtype)
    if rows.dtype.kind == "f":
        rows[7, 3] = np.nan
        rows[8, 2] = np.inf
        rows[9] = np.nan
    return rows


@each("preparation", PREPARATIONS)
def test_preparation_equals_numpy_for_rows_of_any_dtype(preparation: Preparation) -> None:
    for dtype, n_columns in product(DTYPES, (7, 1000)):
        rows = rows_of(dtype, n_columns)
        found = preparation.apply(rows)
        expected = np.array([slow_row(preparation, row) for row in rows])
        with case(dtype, n_columns):
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-14)


@each("preparation", PREPARATIONS)
def test_bits_depend_on_the_values_of_a_row_only(preparation: Preparation) -> None:
    rows = np.random.default_rng(0).gamma(0.5, 20, (301, 97)).clip(0, 200).astype("u1")
    expected = preparation.apply(rows).view(np.uint64)
    for dtype in ("i2", "i8", "f4", "f8"):
        with case(dtype):
            np.testing.assert_array_equal(preparation.apply(rows.astype(dtype)).view(np.uint64), expected)
    single = np.concatenate([preparation.apply(rows[i : i + 1]) for i in range(len(rows))])
    np.testing.assert_array_equal(single.view(np.uint64), expected)
    turned = preparation.apply(np.asfortranarray(rows))
    np.testing.assert_array_equal(turned.view(np.uint64), expected)


@each("dtype", ["i8", "u8"])
def test_integers_that_float64_rounds_are_not_scaled(dtype: str) -> None:
    rows = np.full((3, 2), 2**53, dtype)
    expected = Preparation("max").apply(rows)
    np.testing.assert_array_equal(expected, np.ones((3, 2)))
    rows[1, 1] = 2**53 + 1
    end = Block(replace(array_shard(rows), shape=(2, 2), first_row=1), 0, 2)
    for row_scale in ROW_SCALES:
        with refused(65, "9007199254740993 in row 1, column 1,"):
            Preparation(row_scale).apply(rows)
        with refused(65, "X: ", "9007199254740993 in row 1, column 1,"):
            Conversion(preparation=Preparation(row_scale)).read(end)
    logarithms = Preparation(None, "log1p")
    np.testing.assert_array_equal(logarithms.apply(rows), logarithms.apply(rows.astype(np.float64)))


def test_logarithms_are_exact_to_two_units() -> None:
    limits = np.finfo(np.float64)
    rng = np.random.default_rng(0)
    exponents = rng.uniform(np.log10(float(limits.tiny)), np.log10(float(limits.max)), 100_000)
    special = [0, limits.smallest_subnormal, limits.tiny, 2**0.5 - 1, 1, 2**24, 2**53, limits.max / 2, limits.max]
    values = np.concatenate([10**exponents, rng.uniform(0, 3, 100_000), special])
    found = Preparation(None, "log1p").apply(np.stack([values, -values]))
    exact = np.log1p(values.astype(np.longdouble))
    assert np.abs((found[0] - exact) / np.spacing(exact.astype(np.float64))).max() < 2
    np.testing.assert_array_equal(found[1], -found[0])
    np.testing.assert_allclose(Preparation(None, "log1p").restore(found[0]), values, rtol=1e-12)


@pytest.mark.compiler
def test_all_instruction_sets_give_the_same_bits(tmp_path: Path) -> None:
    """The module chooses the widest vectors of the processor. Here it is compiled without vectors."""
    path = tmp_path / "rowmath.so"
    options = ["-O1", "-DCLONES=", "-ffp-contract=off", "-fPIC", "-shared", f"-I{sysconfig.get_path('include')}"]
    source = REPOSITORY / "pipeline/shardpress/base/rowmath.c"
    subprocess.run(["cc", *options, str(source), "-o", str(path)], check=True)
    spec = importlib.util.spec_from_file_location("rowmath", path)
    assert spec is not None
    plain = importlib.util.module_from_spec(spec)
    rng = np.random.default_rng(0)
    for kind, takes_logarithm in product(("none", *ROW_SCALES), (False, True)):
        for n_columns in (1, 16, 57, 1000):
            rows = rng.normal(size=(50, n_columns)) * 10 ** rng.uniform(-30, 30, (50, n_columns))
            rows[rng.random(rows.shape) < 0.01] = np.nan
            expected = rows.copy()
            plain.prepare(rows, kind, 1e4, takes_logarithm)
            rowmath.prepare(expected, kind, 1e4, takes_logarithm)
            with case(kind, takes_logarithm, n_columns):
                np.testing.assert_array_equal(rows, expected)
