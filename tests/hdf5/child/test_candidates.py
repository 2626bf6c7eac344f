"""Tests of the choice of the rows in a file: which object, in what form, and the error if there is none."""

import h5py
import numpy as np
import pytest

from shardpress.shards.open import open_shards
from tests.support.cases import case, each
from tests.support.helpers import csr, numbered, refused, some_rows, whole, write_csr

pytestmark = pytest.mark.process

ONE = np.zeros(1, [("a", "<f8"), ("b", "<f8")])
FRAME = np.zeros(4, [("index", "<i8"), ("values_block_0", "<f8", (3,))])
MIXED = np.zeros(4, [("index", "<i8"), ("a", "<f8", (3,)), ("b", "<i8"), ("label", "<i8")])
INDEXED_TABLE = {"df/table": FRAME, "df/_i_table/index/bounds": np.zeros((4, 9))}
BLOCKS = {"df/block0_values": np.zeros((4, 2)), "df/block1_values": np.zeros((4, 2), "i8")}  # without names


def write(path, contents, attributes=()):
    """Write a file with values by name. None creates a group."""
    with h5py.File(path, "w") as file:
        for name, values in contents.items():
            file.create_group(name) if values is None else file.create_dataset(name, data=values)
        for name, key, value in attributes:
            file[name].attrs[key] = value
    return str(path)


def sparse(name):
    parts = dict(zip(("data", "indices", "indptr"), csr(some_rows()), strict=True))
    return {f"{name}/{part}".lstrip("/"): values for part, values in parts.items()}


@each(
    "contents, attributes, requested, chosen",
    [
        ({"X": np.zeros((4, 2)), "Y": np.zeros((4, 2))}, (), "/Y", ("/Y", "dense")),
        ({"images": np.zeros((4, 2, 2, 1)), "labels": np.zeros((4, 1))}, (), None, ("images", "dense")),
        (INDEXED_TABLE, (), "df", ("df/table", "records")),
        ({**sparse("X"), "obsm/X_pca": numbered(61, 3)}, [("X", "h5sparse_shape", (61, 6))], None, ("X", "sparse")),
        # A single column next to rows in any form.
        ({**sparse("matrix"), "matrix/shape": [61, 6], "y": numbered(61, 1)}, (), None, ("matrix", "sparse")),
        ({**sparse("g"), "g/indptr": h5py.Empty("i8"), "y": numbered(61, 2)}, (), None, ("y", "dense")),
        ({"config": ONE, "rows": FRAME}, (), None, ("rows", "records")),
        # A table with values of several types, next to rows in any other form.
        ({"obs": MIXED, **sparse("matrix"), "matrix/shape": [61, 6]}, (), None, ("matrix", "sparse")),
        ({"obs": MIXED, "rows": FRAME}, (), None, ("rows", "records")),
        ({"measured": MIXED, "text": np.array([b"a"] * 4)}, (), None, ("measured", "records")),
        # One dataset for each column or sample, if nothing else can be meant.
        ({"x": np.zeros(4), "y": np.zeros(4), "z": np.zeros(3), "t": FRAME}, (), None, ("t", "records")),
        ({"x": np.zeros(4), "y": np.zeros(4), "z": np.zeros(3)}, (), None, ("/", "columns")),
        ({"g/x": np.zeros(4), "g/y": np.zeros(4), "z": np.zeros(4)}, (), None, ("g", "columns")),
        ({"s/a1": np.zeros((2, 2)), "s/a2": np.zeros((2, 2)), "s/a3": np.zeros((2, 1))}, (), None, ("s", "samples")),
        ({f"run{i}/data": np.zeros((2, 2)) for i in range(3)}, (), None, ("/", "samples")),
        ({f"{name}/data": np.zeros(5) for name in "ab"}, (), None, ("/", "samples")),
    ],
)
def test_object_that_holds_the_rows_is_found(tmp_path, contents, attributes, requested, chosen):
    (shard,) = open_shards([write(tmp_path / "x.h5", contents, attributes)], requested)
    assert (shard.dataset, shard.form) == chosen


@each(
    "contents, requested, phrases",
    [
        (
            {"a": np.zeros((4, 2), "f4"), "b": np.zeros((4, 3, 1), "u1"), "y": np.zeros((4, 1))},
            None,
            ["a (4, 2) float32, b (4, 3, 1) uint8, y (4, 1) float64", "--dataset"],
        ),
        ({"obs/y": np.zeros((4, 1)), "t": FRAME}, None, ["obs/y (4, 1) float64, t (4,) "]),
        (BLOCKS, "df", ["dataset=df/block0_values:", "without names"]),
        ({"g": None, "X": np.zeros((4, 2))}, "g", ["dataset=g:"]),
        ({f"c{i}": np.zeros(4) for i in range(3)}, None, ["--orientation columns", "--orientation rows"]),
        ({f"{group}/{name}": np.zeros(4) for group in "gh" for name in "xy"}, None, ["(g, h)", "--dataset"]),
        ({f"{name}": np.zeros((4, 2)) for name in "xy"}, None, ["x (4, 2) float64, y (4, 2)"]),
        ({"X": np.zeros((2, 2), np.complex64)}, None, ["dataset=X", "complex64"]),
        ({"X": h5py.Empty("f4")}, None, ["dataset=X", "empty dataset"]),
        ({"X": np.zeros((3, 2, 0))}, None, ["dataset=X", "(3, 2, 0)"]),
        ({"X": np.zeros((0, 3))}, None, ["dataset=X", "1 shards"]),
        ({f"m/{part}": [1] for part in ("data", "ir", "jc")}, None, ["dataset=m", "MATLAB", "full(X)"]),
        ({**sparse("X"), "y": [1]}, "X/data", ["dataset=X/data", "--dataset X"]),
    ],
)
def test_unusable_rows_are_refused_with_candidates(tmp_path, contents, requested, phrases):
    path = write(tmp_path / "x.h5", contents)
    with refused(65, path, *phrases):
        open_shards([path], requested)


def test_attributes_of_samples_can_be_included_by_name(tmp_path):
    path = write(
        tmp_path / "x.h5",
        {f"s{i}": np.full((2, 2), i) for i in range(3)},
        [(f"s{i}", "kind", i % 2) for i in range(3)],
    )
    (shard,) = open_shards([path], include=("kind",))
    assert [extra.name for extra in shard.extras] == ["_index", "kind"]


# -- by columns ----------------------------------------------------------------------------------------------------


def test_matlab_matrix_requires_an_orientation(tmp_path):
    contents = {"data": np.zeros((3, 5)), "labels": np.zeros((1, 5)), "alpha": np.zeros((1, 1))}
    contents["#refs#/a"] = np.zeros((4, 4))
    path = write(tmp_path / "x.mat", contents, [("data", "MATLAB_class", np.bytes_(b"double"))])
    with refused(65, path, "MATLAB", "5 x 3", "--orientation columns", "(5 rows)", "--orientation rows", "(3 rows)"):
        open_shards([path], "data")
    assert open_shards([path], "data", orientation="rows")[0].shape == (3, 5)
    (shard,) = open_shards([path], orientation="columns")
    assert (shard.dataset, shard.shape) == ("data", (5, 3))
    assert [extra.name for extra in shard.extras] == ["labels"]


# -- sparse --------------------------------------------------------------------------------------------------------


def test_sparse_matrix_requires_a_format_or_orientation(tmp_path):
    rows = some_rows(n_rows=5, n_inputs=5)
    path = write_csr(tmp_path / "x.h5", csr(rows), (5, 5))
    with refused(65, path, "dataset=X", "shape (5, 5)", "--orientation rows", "--orientation columns"):
        open_shards([path])
    for orientation in ("rows", "columns"):
        (shard,) = open_shards([path], orientation=orientation)
        assert whole(shard).tolist() == rows.tolist()
    for form, wrong in (("csr", "columns"), ("csc", None)):
        path = write_csr(tmp_path / f"{form}.h5", csr(rows), (5, 5), h5sparse_format=form)
        with case(form), refused(65, path, "dataset=X", "--orientation columns"):
            open_shards([path], orientation=wrong)
    rows = some_rows(n_rows=8, n_inputs=5)
    path = write_csr(tmp_path / "y.h5", csr(rows), (5, 8))  # the number of row pointers determines the format
    assert whole(*open_shards([path], orientation="columns")).tolist() == rows.tolist()


@each(
    "parts, shape, phrase",
    [
        ({}, (4, 4), "(4, 4)"),
        ({}, (3, 2**25), f"{2**24}"),
        ({}, (-1, 3), "shape"),
        ({}, h5py.Empty("i8"), "shape"),
        ({"data": np.ones(3)}, (3, 3), "3 values"),
        ({"indptr": h5py.Empty("i8")}, (3, 3), "indptr"),
        ({"data": np.ones(4, "c8")}, (3, 3), "part data"),
        ({"indices": np.zeros(4)}, (3, 3), "part indices"),
    ],
)
def test_inconsistent_parts_of_a_sparse_matrix_are_refused(tmp_path, parts, shape, phrase):
    path = write_csr(tmp_path / "x.h5", (np.ones(4), np.zeros(4, int), np.array([0, 1, 2, 4])), shape)
    with h5py.File(path, "a") as file:
        for name, values in parts.items():
            del file["X"][name]
            file[f"X/{name}"] = values
    with refused(65, path, "dataset=X", phrase):
        open_shards([path])
