"""Shards: every file that HDF5 and NumPy agree on reads back as itself, every other one is refused by name."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.shards import (
    Block,
    Shard,
    block_of,
    blocks,
    find,
    first_rows,
    open_shards,
    read,
    read_riders,
    row_dtype,
    to_dask,
)
from tests.helpers import as_nobody, numbered, numbered_shards, refused, write_shard

ROOT = Path(__file__).parents[1]
INTEGERS = [f"{sign}{size}" for sign in "ui" for size in (1, 2, 4, 8)]
FLOATS = ["f2", "f4", "f8"]


def whole(shard):
    return read(Block(shard, 0, shard.n_rows))


def low_level(path, kind, name=b"X", shape=(3, 2)):
    """A dataset of a type that h5py itself would not make."""
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, name, kind, h5py.h5s.create_simple(shape))
    return str(path)


def three_byte_integer():
    kind = h5py.h5t.STD_I32LE.copy()
    kind.set_precision(24)
    kind.set_size(3)
    return kind


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


# -- which dataset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "asked", "chosen"),
    [
        ({"X": 2, "Y": 2}, None, "X"),
        ({"X": 2, "Y": 2}, "Y", "Y"),
        ({"Y": 2, "labels": 1}, None, "Y"),
        ({"deep/er/images": 3, "labels": 1}, None, "deep/er/images"),
        ({"deep/X": 2, "deep/Y": 2}, "/deep/Y", "/deep/Y"),
    ],
    ids=str,
)
def test_the_dataset_is_the_one_asked_for_else_x_else_the_only_candidate(tmp_path, held, asked, chosen):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, rank in held.items():
            file[name] = np.zeros((3, 2, 2)[:rank])
        file["text"] = [["a"], ["b"]]
    assert open_shards([str(tmp_path / "x.h5")], asked)[0].dataset == chosen


def test_several_candidates_are_refused_and_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "a/one", {"two": numbered(3), "labels": range(3)})
    with refused(65, path, "candidates a/one, two", "--dataset"):
        open_shards([path])


def test_without_a_candidate_all_names_are_listed(tmp_path):
    path = write_shard(tmp_path / "x.h5", [1, 2, 3], "labels")
    with refused(65, path, "no candidate among labels", "--dataset"):
        open_shards([path])


def test_a_missing_dataset_is_refused_with_a_list_of_what_is_there(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(3), "images", {"labels": [1, 2, 3]})
    with refused(65, path, "dataset=pictures", "not there", "images, labels"):
        open_shards([path], "pictures")


# -- riders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        np.array([3, -1, 2**62, 0]),
        np.array([1, 2, 3, 4], ">u2"),
        np.array([0.5, np.nan, 1, 2], np.float32),
        np.array([True, False, True, True]),
        np.array([b"a", b"bc", b"", b"def"], "S3"),
        np.array(["one", "zwölf", "", "4"], object),
        np.array([(1, 2.0)] * 4, [("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda values: str(values.dtype),
)
def test_riders_are_found_and_read_back(tmp_path, values):
    riders = {"r": values, "short": [1, 2], "wide": numbered(4)}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), riders=riders)])
    assert shard.riders == ("r",)
    found = read_riders(Block(shard, 1, 4))["r"]
    if values.dtype.kind == "O":
        found = np.array([text.decode() for text in found], object)
    np.testing.assert_array_equal(found, values[1:])


def test_riders_lie_beside_the_rows_not_elsewhere(tmp_path):
    riders = {"g/label": range(4), "label": range(4)}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(4), "g/rows", riders)], "g/rows")
    assert shard.riders == ("label",)
    np.testing.assert_array_equal(read_riders(Block(shard, 2, 3))["label"], [2])


def test_links_that_lead_nowhere_do_not_ride(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4), riders={"y": range(4)})
    with h5py.File(path, "a") as file:
        file["soft"] = h5py.SoftLink("/nowhere")
        file["external"] = h5py.ExternalLink("nowhere.h5", "/y")
    assert open_shards([path])[0].riders == ("y",)


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


@pytest.mark.parametrize("content", [b"", b"label,x,y\n1,2,3\n", b"\0" * 3_000_000])
def test_a_file_that_is_not_hdf5_is_refused_with_its_first_bytes(tmp_path, content):
    path = tmp_path / "x.h5"
    path.write_bytes(content)
    with refused(65, str(path), "not an HDF5 file", repr(content[:16])):
        open_shards([str(path)])


@pytest.mark.parametrize(
    ("content", "phrases"),
    [
        (None, ["a group", "expected a dataset"]),
        (["a", "b"], ["rank 1"]),
        (np.array([["a"], ["b"]], object), ["strings"]),
        (np.array([["a"], ["b"]], "S1"), ["strings"]),
        (np.zeros((2, 2), [("a", "i4"), ("b", "f4")]), ["compound records of 2 fields"]),
        (np.zeros((2, 2), np.complex64), ["complex64", "expected integers, bool"]),
        (np.zeros((2, 2), "V4"), ["dtype |V4"]),
        (h5py.Empty("f4"), ["an empty dataset", "no shape"]),
        (np.zeros((3, 0)), ["an empty dataset", "(3, 0)", "no columns"]),
        (np.zeros((3, 2, 0)), ["(3, 2, 0)", "no columns"]),
        (np.zeros(3), ["shape (3,) has rank 1", "rank 2 or more"]),
        (np.float64(3), ["shape () has rank 0"]),
        (np.zeros((0, 3)), ["no rows in any of 1 shards"]),
    ],
    ids=str,
)
def test_what_is_no_table_of_numbers_is_refused_by_name(tmp_path, content, phrases):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        if content is None:
            file.create_group("X")
        else:
            file["X"] = content
    with refused(65, f"file={path} dataset=X", *phrases):
        open_shards([str(path)])


@pytest.mark.parametrize("asked", [None, "X"])
@pytest.mark.parametrize("kind", [three_byte_integer(), h5py.h5t.UNIX_D32LE], ids=["int24", "time"])
def test_a_type_that_numpy_does_not_know_is_refused_by_name(tmp_path, kind, asked):
    path = low_level(tmp_path / "x.h5", kind)
    with refused(65, path, "dataset=X", "expected integers, bool"):
        open_shards([path], asked)


def test_a_type_that_numpy_does_not_know_elsewhere_in_the_file_does_no_harm(tmp_path):
    path = low_level(tmp_path / "x.h5", three_byte_integer(), b"odd")
    with h5py.File(path, "a") as file:
        file["rows"] = numbered(3)
    assert open_shards([path])[0].dataset == "rows"


def test_shards_of_other_widths_are_refused_with_both_names_and_shapes(tmp_path):
    first = write_shard(tmp_path / "a.h5", np.zeros((3, 2, 2)))
    second = write_shard(tmp_path / "b.h5", np.zeros((5, 3)))
    with refused(65, first, second, "(3, 2, 2)", "(5, 3)", "3 columns, expected 4"):
        open_shards([first, second])


@pytest.mark.parametrize("how", [{}, {"compression": "gzip", "chunks": (64, 2)}], ids=str)
@pytest.mark.parametrize("eighths", range(8))
def test_a_file_truncated_anywhere_is_refused_on_opening(tmp_path, how, eighths):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(1024), riders={"y": range(1024)}, **how)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * eighths // 8])
    phrase = f"truncated: {len(content) * eighths // 8} bytes, expected {len(content)} bytes"
    with refused(65, str(path), phrase if eighths else "not an HDF5 file"):
        open_shards([str(path)])


def test_a_file_with_damaged_structure_is_refused_by_name(tmp_path):
    path = tmp_path / "x.h5"
    write_shard(path, numbered(8))
    content = path.read_bytes()
    for signature in (b"TREE", b"HEAP", b"SNOD"):
        content = content.replace(signature, b"\0\0\0\0")
    path.write_bytes(content)
    with refused(65, str(path)):
        open_shards([str(path)])


def test_a_fifo_is_refused_without_waiting_for_its_other_end(tmp_path):
    path = tmp_path / "x.h5"
    os.mkfifo(path)
    # Held open, so that a reader that does open it fails on reading instead of hanging.
    descriptor = os.open(path, os.O_RDWR)
    try:
        with refused(66, str(path), "not a regular file"):
            open_shards([str(path)])
    finally:
        os.close(descriptor)


def test_a_directory_called_like_a_shard_is_refused(tmp_path):
    (tmp_path / "x.h5").mkdir()
    with refused(66, "x.h5", "not a regular file"):
        open_shards([str(tmp_path)])


@pytest.mark.parametrize("target", ["x.h5", "nowhere.h5"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, target):
    path = tmp_path / "x.h5"
    path.symlink_to(target)
    with refused(66, str(path), "expected an HDF5 file"):
        open_shards([str(path)])


def test_a_file_without_read_permission_is_refused(open_path):
    path = write_shard(open_path / "x.h5", numbered(2))
    Path(path).chmod(0)
    exit_code, sentence = as_nobody(lambda: open_shards([path]))
    assert exit_code == 77, sentence
    assert path in sentence
    assert "no permission to read" in sentence


def test_a_directory_without_read_permission_is_refused(open_path):
    folder = open_path / "closed"
    folder.mkdir(mode=0o300)
    exit_code, sentence = as_nobody(lambda: open_shards([str(folder)]))
    assert exit_code == 77, sentence
    assert str(folder) in sentence


def test_a_filter_that_nobody_has_is_refused_before_anything_is_read(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        add_unknown_filter(file, b"X", (4, 2))
    with refused(69, str(path), "dataset=X", "HDF5 filter 300", "pip install hdf5plugin"):
        open_shards([str(path)])


def test_a_filter_that_nobody_has_is_refused_on_a_rider_too(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(4))
    with h5py.File(path, "a") as file:
        add_unknown_filter(file, b"label", (4,))
    with refused(69, path, "label", "HDF5 filter 300"):
        open_shards([path])


def add_unknown_filter(file, name, shape):
    """A dataset with one chunk that went through filter 300, which HDF5 keeps free for tests."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
    space = h5py.h5s.create_simple(shape)
    made = h5py.h5d.create(file.id, name, h5py.h5t.STD_I64LE, space, dcpl=properties)
    made.write_direct_chunk((0,) * len(shape), b"\1" * (8 * int(np.prod(shape))))


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
