"""Tests of a file's extras: which datasets are copied, and which are left out, with or without a warning."""

import h5py
import numpy as np
import pytest

from shardpress.hdf5 import limits
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.helpers import names, numbered, warnings_of, write_shard

pytestmark = pytest.mark.process

N = 6


def test_unusable_extras_leave_rows_and_other_extras(tmp_path, caplog):
    """Datasets with one value in total, one for each column, or several for each row are no extras."""
    missed = {
        "empty": {"shape": (N,), "dtype": "i4", "chunks": (2,)},
        "references": {"shape": (N,), "dtype": h5py.ref_dtype},
        "lists": {"shape": (N,), "dtype": h5py.vlen_dtype("i4")},
        "long": {"shape": (N,), "dtype": f"S{limits.MOST_ITEM + 1}", "chunks": (1,)},
        "arrays": {"shape": (N,), "dtype": np.dtype(("u1", (limits.LONGEST_TEXT + 1,))), "chunks": (1,)},
        "la\udcff": {"data": range(N)},  # a name that is not UTF-8
        "less": {"data": range(N - 1)},
        "more": {"data": np.zeros((N + 1, 1))},
    }
    others = {"total": 1.0, "columns": [1, 2], "several": np.zeros((N, 2))}
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N), "ü": range(N), **others})
    with h5py.File(path, "a") as file:
        for name, options in missed.items():
            file.create_dataset(name.encode("utf-8", "surrogateescape"), **options)
    (shard,) = open_shards([path])
    assert names(shard) == ("y", "ü")
    assert {each.name for each in shard.left_out if each.is_missed} == set(missed)
    assert len(warnings_of(caplog)) == len(missed)
    assert "dataset=la\\udcff: " in caplog.text


# -- pandas frames in fixed format -----------------------------------------------------------------------------------


def test_single_columns_of_a_frame_get_their_names_if_usable(tmp_path, caplog):
    """Pickles and columns with unreadable names are left out, and affect no other extra."""
    columns = ["größe".encode(), 7, b"axis1", b"a/b", b"\xff"]
    items = [*(np.array([name]) for name in columns), h5py.SoftLink("/df/axis1")]
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        frame = file.create_group("df")
        frame["axis0"] = frame["block0_items"] = np.arange(N).astype("S1")
        frame["axis1"] = np.arange(N)
        frame["block0_values"] = numbered(N, N)
        for i, names_of_block in enumerate(items, 1):
            frame[f"block{i}_values"] = np.arange(N, dtype="f4").reshape(N, 1)
            frame[f"block{i}_items"] = names_of_block
        pickles = frame.create_dataset("block7_values", (1,), h5py.vlen_dtype(np.uint8))
        pickles[0] = np.zeros(9, np.uint8)
        frame["block7_items"] = np.array([b"t"])
        frame["block8_values"] = np.zeros((N, 1))
        frame.create_dataset("block8_items", (1,), "S1", chunks=(1,))  # a chunk that was never written
    (shard,) = open_shards([str(path)])
    assert shard.dataset == "df/block0_values"
    assert set(names(shard)) == {"axis1", "größe", "7", *(f"block{i}_values" for i in (3, 4, 5, 6))}
    assert read_extras(Block(shard, 1, 3))["größe"].tolist() == [1, 2]
    assert any("pickle" in warning for warning in warnings_of(caplog))
