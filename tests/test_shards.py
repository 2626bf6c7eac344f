"""Shards: every file that HDF5 and NumPy agree on reads back as itself, every other one is refused by name."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.gate import Shard
from pipeline.shards import (
    Block,
    block_of,
    blocks,
    find,
    first_rows,
    open_shards,
    read,
    row_dtype,
    to_dask,
)
from tests.helpers import numbered, numbered_shards, refused, write_shard

ROOT = Path(__file__).parents[1]
INTEGERS = [f"{sign}{size}" for sign in "ui" for size in (1, 2, 4, 8)]
FLOATS = ["f2", "f4", "f8"]


def whole(shard):
    return read(Block(shard, 0, shard.n_rows))


# -- which files -------------------------------------------------------------------------------------------------


def test_natural_order_puts_9_before_10(tmp_path):
    for name in ("part-10.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "other-1.h5"):
        (tmp_path / name).touch()
    names = ["other-1.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "part-10.h5"]
    assert [path.name for path in find([str(tmp_path)])] == names
    assert [path.name for path in find([str(tmp_path / "*.h5")])] == names


def test_patterns_keep_their_order_and_directories_give_hdf5_files_only(tmp_path):
    for name in ("a.h5", "b.hdf5", "c.hdf", "d.he5", "notes.txt", "more/z.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = [str(tmp_path / "more/*"), str(tmp_path), str(tmp_path / "notes.txt")]
    assert [path.name for path in find(patterns)] == ["z.h5", "a.h5", "b.hdf5", "c.hdf", "d.he5", "notes.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a1.h5").touch()
    (tmp_path / "a[1].h5").touch()
    assert [path.name for path in find([str(tmp_path / "a[1].h5")])] == ["a[1].h5"]


@pytest.mark.parametrize("link", [os.symlink, None])
def test_a_file_found_twice_is_refused_because_its_rows_would_count_double(tmp_path, link):
    first = tmp_path / "a.h5"
    first.touch()
    if link is None:
        patterns = [str(first), str(tmp_path / "*.h5")]
    else:
        link(first, tmp_path / "b.h5")
        patterns = [str(tmp_path)]
    with refused(65, "found twice", "a.h5", "count double"):
        find(patterns)


@pytest.mark.parametrize("pattern", ["nothing-*.h5", "nothing.h5", "empty", "x" * 300, "nul\0"])
def test_a_pattern_that_matches_nothing_is_refused_by_name(tmp_path, pattern):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").touch()
    with refused(66, f"input={tmp_path}/{pattern[:3]}", "no file matches", "--input"):
        find([f"{tmp_path}/{pattern}"])


# -- every layout reads back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", INTEGERS + FLOATS)
def test_every_dtype_and_byte_order_reads_back_as_numpy_casts_it(tmp_path, code, order):
    dtype = np.dtype(order + code)
    limits = np.iinfo(dtype) if dtype.kind in "ui" else np.finfo(dtype)
    rows = np.array([[0, 1, 2], [3, 4, 5], [limits.min, limits.max, 100]], dtype)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    delivered = np.dtype("f4" if code == "f2" else code)
    found = whole(shard)
    assert found.dtype == delivered == np.dtype(shard.dtype)
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, rows.astype(delivered))


def test_bool_reads_back_as_0_and_1(tmp_path):
    rows = np.array([[True, False], [False, True]])
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    assert whole(shard).dtype == np.uint8
    np.testing.assert_array_equal(whole(shard), rows.astype(np.uint8))


def test_nan_and_inf_are_read_as_they_are(tmp_path):
    rows = np.array([[np.nan, np.inf, -np.inf]], np.float16)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows)])
    np.testing.assert_array_equal(whole(shard), rows.astype(np.float32))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"chunks": (1, 3)},
        {"chunks": (4, 2)},
        {"chunks": (11, 3)},
        {"chunks": (3, 3), "maxshape": (None, None)},
        {"compression": "gzip", "compression_opts": 9},
        {"compression": "lzf", "chunks": (4, 3)},
        {"shuffle": True, "compression": "gzip", "chunks": (2, 1)},
        {"fletcher32": True},
        {"shuffle": True, "fletcher32": True, "compression": "lzf"},
    ],
    ids=str,
)
@pytest.mark.parametrize("block_rows", [1, 4, 10, 11, 12])
def test_any_storage_and_any_blocks_give_the_same_rows(tmp_path, how, block_rows):
    rows = numbered(11, 3)
    shards = open_shards([write_shard(tmp_path / "x.h5", rows, **how)])
    np.testing.assert_array_equal(np.concatenate([read(block) for block in blocks(shards, block_rows)]), rows)


def test_filters_of_hdf5plugin_are_found_without_the_user_importing_it(tmp_path):
    hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")
    rows = numbered(50, 3)
    names = [
        write_shard(tmp_path / f"{i}.h5", rows, **how)
        for i, how in enumerate((hdf5plugin.Blosc(), hdf5plugin.Zstd(), hdf5plugin.LZ4()))
    ]
    program = (
        "import sys; from pipeline.shards import *; assert 'hdf5plugin' not in sys.modules\n"
        "for shard in open_shards(sys.argv[1:]): print(read(Block(shard, 0, 50)).tolist())"
    )
    command = [sys.executable, "-c", program, *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(rows.tolist())] * 3


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 2, 2, 2), (5, 1, 1, 1)])
def test_rank_above_2_is_flattened_per_row_and_said_so(tmp_path, shape, caplog):
    caplog.set_level("INFO", "pipeline")
    rows = np.arange(np.prod(shape)).reshape(shape)
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", rows, chunks=(2, *shape[1:]))])
    np.testing.assert_array_equal(whole(shard), rows.reshape(5, -1))
    assert "flattened" in caplog.text


def test_a_shard_that_another_program_has_locked_is_read(tmp_path):
    """Some file systems know no locks, and on others a crashed writer's lock stays."""
    path = write_shard(tmp_path / "x.h5", numbered(3))
    with open(path, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        np.testing.assert_array_equal(whole(open_shards([path])[0]), numbered(3))


def test_opening_reads_no_rows(tmp_path):
    """Vetting a data set of terabytes takes no time: a chunk that cannot be read is found by reading only."""
    path = write_shard(tmp_path / "x.h5", numbered(8), compression="gzip")
    damage_first_chunk(path)
    assert open_shards([path])[0].shape == (8, 2)


# -- arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1,), (3, 4), (0, 3, 0, 0, 2, 0), (1, 1, 1)])
@pytest.mark.parametrize("block_rows", [1, 2, 3, 100])
def test_blocks_cover_every_row_once_and_in_order(sizes, block_rows):
    shards = [Shard(str(i), "X", (size, 2), "<f4", "float32") for i, size in enumerate(sizes)]
    rows = [(shard, row) for shard in shards for row in range(shard.n_rows)]
    cut = list(blocks(shards, block_rows))
    assert [(block.shard, row) for block in cut for row in range(block.start, block.stop)] == rows
    assert all(1 <= len(block) <= block_rows for block in cut)
    assert sum(len(block) < block_rows for block in cut) <= len(shards)
    numbers = first_rows(shards)
    assert numbers.dtype == np.int64
    assert numbers.tolist() == [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    for number, (shard, row) in enumerate(rows):
        assert block_of(shards, numbers, number, number + 1) == Block(shard, row, row + 1)


@pytest.mark.parametrize("block_rows", [1, 6, 7, 8])
def test_to_dask_is_the_shards_one_after_the_other(tmp_path, block_rows):
    arrays = [numbered(3, dtype=np.uint8), numbered(0, dtype=np.int16), numbered(4, first=3, dtype=np.int16)]
    names = [write_shard(tmp_path / f"{i}.h5", rows) for i, rows in enumerate(arrays)]
    shards = open_shards(names)
    lazy = to_dask(shards, block_rows)
    assert (lazy.shape, lazy.dtype) == ((7, 2), row_dtype(shards))
    found = lazy.compute(scheduler="sync")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, np.concatenate(arrays))


def test_shards_without_rows_are_warned_about_and_count_as_none(tmp_path, caplog):
    assert [shard.n_rows for shard in numbered_shards(tmp_path, 2, 0)] == [2, 0]
    assert "1.h5 dataset=X: no rows" in caplog.text


# -- what is refused ---------------------------------------------------------------------------------------------


def test_shards_of_other_widths_are_refused_with_both_names_and_shapes(tmp_path):
    first = write_shard(tmp_path / "a.h5", np.zeros((3, 2, 2)))
    second = write_shard(tmp_path / "b.h5", np.zeros((5, 3)))
    with refused(65, first, second, "(3, 2, 2)", "(5, 3)", "3 columns, expected 4"):
        open_shards([first, second])


def damage_first_chunk(path):
    """Turn over some bits of the first bytes of the first chunk, not all: Fletcher's sum takes 0x0000 for 0xffff."""
    with h5py.File(path) as file:
        offset = file["X"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as file:
        file.seek(offset)
        start = file.read(8)
        file.seek(offset)
        file.write(bytes(byte ^ 0x55 for byte in start))


@pytest.mark.parametrize("how", [{"compression": "gzip"}, {"fletcher32": True}], ids=str)
def test_a_damaged_chunk_is_named_by_file_dataset_and_rows(tmp_path, how):
    path = write_shard(tmp_path / "x.h5", numbered(8), chunks=(4, 2), **how)
    damage_first_chunk(path)
    (shard,) = open_shards([path])
    with refused(65, f"file={path} dataset=X rows=1:4", "cannot be read", "damaged"):
        read(Block(shard, 1, 4))
    np.testing.assert_array_equal(read(Block(shard, 4, 8)), numbered(4, first=4))


def test_a_shard_that_went_away_after_vetting_is_refused_by_name(tmp_path):
    (shard,) = numbered_shards(tmp_path, 3)
    Path(shard.path).unlink()
    with refused(65, shard.path):
        whole(shard)


def test_a_shard_that_shrank_after_vetting_is_refused_by_name(tmp_path):
    (shard,) = numbered_shards(tmp_path, 3)
    write_shard(Path(shard.path), numbered(2))
    with refused(65, shard.path):
        whole(shard)


@pytest.mark.parametrize("name", ["with space.h5", "new\nline.h5", "größe ☃.h5", os.fsdecode(b"not utf8 \xff\xfe.h5")])
def test_any_file_name_works_and_is_shown_safely(tmp_path, name):
    path = tmp_path / name
    write_shard(path, numbered(2), riders={"y": [1, 2]})
    for pattern in (path, tmp_path, tmp_path / "*.h5"):
        (shard,) = open_shards([str(pattern)])
        np.testing.assert_array_equal(whole(shard), numbered(2))
    with refused(65, "dataset=Z\\x0a", "not there"):
        open_shards([str(path)], "Z\n")
