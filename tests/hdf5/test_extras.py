"""Tests of a file's extras: which datasets are copied, which are left out, and how both are reported."""

import h5py
import numpy as np
import pytest

from shardpress.hdf5 import limits
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, write_shard

pytestmark = pytest.mark.process

N = 6


@pytest.fixture
def add(tmp_path, caplog):
    """Return a function that writes datasets next to (N, 2) rows, and opens the file."""
    caplog.set_level("INFO", "shardpress")

    def open_with(**datasets):
        caplog.clear()
        path = write_shard(tmp_path / "x.h5", numbered(N))
        with h5py.File(path, "a") as file:
            for name, values in datasets.items():
                options = values if isinstance(values, dict) else {"data": values}
                file.create_dataset(name.encode("utf-8", "surrogateescape"), **options)
        return open_shards([path])[0]

    return open_with


def reasons(shard):
    return {each.name: each.reason for each in shard.left_out}


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


# -- extras ----------------------------------------------------------------------------------------------------------


@each("options", [{}, {"chunks": True, "compression": "gzip"}])
@each("dtype", ["i8", ">f4", "S3", object])
def test_one_value_per_row_is_an_extra_in_any_rank(add, options, dtype):
    values = np.arange(N).astype("S3").astype(dtype)
    shapes = {"a": (N,), "b": (N, 1), "c": (N, 1, 1), "d": (1, N), "e": (1, 1, N)}
    shard = add(**{name: {"data": values.reshape(shape), **options} for name, shape in shapes.items()})
    assert names(shard) == tuple(shapes)
    for name, found in read_extras(Block(shard, 1, N)).items():
        with case(shape=shapes[name]):
            assert (found.shape, found.tolist()) == ((N - 1,), values[1:].tolist())


# -- other datasets, and what is logged ------------------------------------------------------------------------------


@each("shape", [(N - 1,), (N + 1,), (N - 1, 1)])
def test_labels_of_another_length_are_warned_about(add, caplog, shape):
    assert reasons(add(y=np.zeros(shape))) == {"y": f"shape {shape}, expected (6,)"}
    assert len(warnings_of(caplog)) == 1


@each("shape", [(), (1,), (2,), (1, 1), (N, 2), (3, N), (0, 0)])
def test_datasets_of_other_shapes_cause_no_warning(add, caplog, shape):
    """The datasets have one value in total, one for each column, or several for each row."""
    assert names(add(z=np.zeros(shape))) == ()
    assert not warnings_of(caplog)


def test_unusable_extras_leave_rows_and_other_extras(add, caplog):
    odd = {
        "empty": {"shape": (N,), "dtype": "i4", "chunks": (2,)},
        "references": {"shape": (N,), "dtype": h5py.ref_dtype},
        "lists": {"shape": (N,), "dtype": h5py.vlen_dtype("i4")},
        "long": {"shape": (N,), "dtype": f"S{limits.MOST_ITEM + 1}", "chunks": (1,)},
        "la\udcff": range(N),  # a name that is not UTF-8
    }
    shard = add(**odd, y=range(N), **{"ü": range(N)})
    assert names(shard) == ("y", "ü")
    assert set(reasons(shard)) == set(odd)
    assert len(warnings_of(caplog)) == 5
    assert "dataset=la\\udcff: " in caplog.text


def test_extra_left_out_of_many_shards_is_warned_about_once(tmp_path, caplog):
    paths = [write_shard(tmp_path / f"{i}.h5", numbered(N), extras={"y": range(5)}) for i in range(30)]
    open_shards(paths)
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"file={paths[0]} dataset=y: shape (5,), expected (6,)")
    assert "30 shards" in warning


def test_log_about_extras_is_bounded(add, caplog):
    shard = add(**{f"{i:03d}" + "x" * 300: range(5 if i % 2 else N) for i in range(300)})
    assert len(shard.left_out) == limits.MOST_LEFT_OUT
    assert len(warnings_of(caplog)) < 20
    assert all(len(message) < 5000 for message in caplog.messages)


# -- pandas frames in fixed format -----------------------------------------------------------------------------------


def write_frame(path, *items):
    """Write a frame of pandas: a wide block, and a block of one column for each array that names the column."""
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame["axis0"] = np.arange(N).astype("S1")
        frame["axis1"] = np.arange(N)
        frame["block0_values"] = numbered(N, N)
        frame["block0_items"] = np.arange(N).astype("S1")
        for i, names_of_block in enumerate(items, 1):
            frame[f"block{i}_values"] = np.arange(N, dtype="f4").reshape(N, 1)
            frame[f"block{i}_items"] = names_of_block
    return str(path)


@each(
    "items, expected",
    [
        (np.array(["größe".encode()]), "größe"),
        (np.array([7]), "7"),
        (np.array([b"axis1"]), "block1_values"),
        (np.array([b"a/b"]), "block1_values"),
        (np.array([b"\xff"]), "block1_values"),
        (np.array([b"a", b"b"]), "block1_values"),
        (h5py.SoftLink("/df/axis1"), "block1_values"),
    ],
)
def test_single_column_of_a_frame_gets_its_name_if_usable(tmp_path, items, expected):
    (shard,) = open_shards([write_frame(tmp_path / "x.h5", items)])
    assert shard.dataset == "df/block0_values"
    assert set(names(shard)) == {"axis1", expected}
    assert read_extras(Block(shard, 1, 3))[expected].tolist() == [1, 2]


def test_pickled_and_unreadable_columns_affect_no_other_extra(tmp_path, caplog):
    path = write_frame(tmp_path / "x.h5", np.array([b"y"]), np.array([b"z"]))
    with h5py.File(path, "a") as file:
        pickles = file.create_dataset("df/block3_values", (1,), h5py.vlen_dtype(np.uint8))
        pickles[0] = np.zeros(9, np.uint8)
        file["df/block3_items"] = np.array([b"t"])
        del file["df/block1_items"]
        file.create_dataset("df/block1_items", (1,), "S1", chunks=(1,))  # a chunk that was never written
    (shard,) = open_shards([path])
    assert set(names(shard)) == {"axis1", "z"}
    assert read_extras(Block(shard, 1, 3))["z"].tolist() == [1, 2]
    assert any("pickle" in warning for warning in warnings_of(caplog))
