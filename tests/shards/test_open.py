"""Shards: every file that HDF5 and NumPy agree on reads back as itself, every other one is refused by name."""

import errno
import fcntl
import os
import pickle
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from blake3 import blake3

from pipeline.errors import DataError, shown
from pipeline.formats import seal
from pipeline.hdf5 import files
from pipeline.hdf5.files import FILES
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read, read_riders
from pipeline.shards.shard import Block, Shard, block_of, blocks, first_rows
from pipeline.shards.sources import find
from tests.support import hostile
from tests.support.helpers import as_nobody, numbered, numbered_shards, refused, write_shard

INTEGERS = [f"{sign}{size}" for sign in "ui" for size in (1, 2, 4, 8)]
FLOATS = ["f2", "f4", "f8"]


def whole(shard):
    return read(Block(shard, 0, shard.n_rows))


# -- which files -------------------------------------------------------------------------------------------------


def test_natural_order_puts_9_before_10(tmp_path):
    for name in ("part-10.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "other-1.h5"):
        (tmp_path / name).touch()
    names = ["other-1.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "part-10.h5"]
    assert [source.path.name for source in find([str(tmp_path)])] == names
    assert [source.path.name for source in find([str(tmp_path / "*.h5")])] == names


def test_patterns_keep_their_order_and_directories_give_hdf5_files_only(tmp_path):
    for name in ("a.h5", "b.hdf5", "c.hdf", "d.he5", "notes.txt", "more/z.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    patterns = [str(tmp_path / "more/*"), str(tmp_path), str(tmp_path / "notes.txt")]
    assert [source.path.name for source in find(patterns)] == ["z.h5", "a.h5", "b.hdf5", "c.hdf", "d.he5", "notes.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    (tmp_path / "a1.h5").touch()
    (tmp_path / "a[1].h5").touch()
    assert [source.path.name for source in find([str(tmp_path / "a[1].h5")])] == ["a[1].h5"]


@pytest.mark.parametrize("link", [os.symlink, os.link, None])
def test_i20_a_file_found_twice_is_refused_because_its_rows_would_count_double(tmp_path, link):
    first = tmp_path / "a.h5"
    first.touch()
    if link is None:
        patterns = [str(first), str(tmp_path / "*.h5")]
    else:
        link(first, tmp_path / "b.h5")
        patterns = [str(tmp_path)]
    with refused(65, "found twice", "a.h5", "count double"):
        find(patterns)


@pytest.mark.parametrize(
    ("pattern", "phrases"),
    [
        ("nothing-*.h5", ["no file matches", "--input"]),
        ("x" * 300, ["no such file or directory. Check --input"]),
        ("nul\0", ["no such file or directory. Check --input"]),
        ("elsewhere/x.h5", ["no such file or directory. Check --input"]),
        ("cancr", ["no such file or directory. Did you mean {}/cancer?"]),
        ("cancr/", ["no such file or directory. Did you mean {}/cancer?"]),
        ("empty", ["an empty directory"]),
        ("cancer", ["holds 1.txt, 2.txt, 9/ and 1 more, expected HDF5 files", "Directories in it are not searched"]),
    ],
)
def test_i1_a_pattern_that_matches_nothing_is_refused_by_name(tmp_path, pattern, phrases):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.hidden").touch()
    (tmp_path / "cancer/9").mkdir(parents=True)
    for name in ("10.txt", "2.txt", "1.txt"):
        (tmp_path / "cancer" / name).touch()
    with refused(66, f"input={tmp_path}/{pattern[:3]}", *(phrase.format(tmp_path) for phrase in phrases)):
        find([f"{tmp_path}/{pattern}"])


def test_i1_a_path_from_here_that_is_not_there_is_told_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cancer").mkdir()
    with refused(66, "input=cancr: there is no such", "Did you mean cancer?"):
        find(["cancr"])


def test_a_directory_gives_whatever_begins_like_hdf5_and_opens_nothing_else(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "pipeline")
    for name in ("a.nc", "b.h5ad", "c", "d.2024", ".hidden", "._a.h5", "sub/e.nc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, numbered(3))
    with h5py.File(tmp_path / "f.mat", "w", userblock_size=512) as file:
        file["X"] = numbered(3)
    (tmp_path / "notes.txt").write_text("x" * 600)
    (tmp_path / "link").symlink_to("sub/e.nc")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "named.h5").touch()  # as many as there may be of these, they cost no look
    opened, open_it = [], FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(os.path.basename(path)) or open_it(path))
    found = [source.path.name for source in find([str(tmp_path)])]
    assert found == ["a.nc", "b.h5ad", "c", "d.2024", "f.mat", "link", "named.h5"]
    assert sorted(opened) == ["a.nc", "c", "d.2024", "f.mat", "link", "notes.txt"]
    assert "broken, circle, fifo and 2 more left out: no HDF5" in caplog.text


def test_a_file_that_may_not_be_looked_at_is_left_out_with_a_warning(open_path, caplog):
    def look():
        assert [source.path.name for source in find([str(open_path)])] == ["a.nc"]
        assert f"file={open_path}/b.nc: Permission denied, left out" in caplog.text

    for name in ("a.nc", "b.nc"):
        write_shard(open_path / name, numbered(3))
    (open_path / "b.nc").chmod(0)
    assert as_nobody(look) == (0, "")


@pytest.mark.parametrize("name", ["", "/a.h5", "/*.h5"])
def test_what_lies_where_we_may_not_look_is_not_said_to_be_missing(open_path, name):
    (open_path / "locked/in").mkdir(parents=True)
    write_shard(open_path / "locked/in/a.h5", numbered(3))
    (open_path / "locked").chmod(0)
    pattern = f"{open_path}/locked/in{name}"
    exit_code, sentence = as_nobody(lambda: find([pattern]))
    assert exit_code == 77
    assert sentence.startswith(f"input={pattern}: Permission denied, expected directories")


@pytest.mark.parametrize(("number", "exit_code"), [(errno.EIO, 74), (errno.EMFILE, 71)])
@pytest.mark.parametrize("name", ["open", "preadv"])
def test_i10_a_failing_disk_is_no_other_content(tmp_path, monkeypatch, name, number, exit_code):
    write_shard(tmp_path / "a.nc", numbered(3))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FILES, name, fail)
    with refused(exit_code, f"file={tmp_path}/a.nc", os.strerror(number)):
        find([str(tmp_path)])


@pytest.mark.parametrize(("number", "exit_code"), [(errno.EIO, 74), (errno.ESTALE, 74), (errno.EMFILE, 71)])
def test_i10_a_directory_that_cannot_be_listed_is_no_fault_of_ours(tmp_path, monkeypatch, number, exit_code):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.shards.sources.os.scandir", fail)
    with refused(exit_code, f"input={tmp_path}: {os.strerror(number)}"):
        find([str(tmp_path)])


def test_s12_a_link_out_of_a_directory_is_not_opened_to_see_what_it_is(tmp_path, caplog):
    write_shard(tmp_path / "secret.nc", numbered(3))
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in/a.nc", numbered(3))
    (tmp_path / "in/b.nc").symlink_to("../secret.nc")
    with hostile.opens(tmp_path / "secret.nc") as counts:
        assert [source.path.name for source in find([str(tmp_path / "in")])] == ["a.nc"]
    assert counts == [0]
    assert f"file={tmp_path}/in/b.nc: a link out of the directory, left out" in caplog.text


# -- every layout reads back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", INTEGERS + FLOATS)
def test_i14_every_dtype_and_byte_order_reads_back_as_numpy_casts_it(tmp_path, code, order):
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


def test_the_log_says_which_datasets_are_read_unless_all_are_called_x(tmp_path, caplog):
    caplog.set_level("INFO", "pipeline")
    paths = [write_shard(tmp_path / f"{name[-1]}.h5", numbered(3), name) for name in ("X", "g/a", "b", "c")]
    open_shards(paths[:1])
    assert "rows are those of" not in caplog.text
    open_shards(paths[1:2])
    assert "input: rows are those of dataset g/a" in caplog.messages
    open_shards(paths)
    assert "input: rows are those of dataset X, g/a, b and 1 more" in caplog.messages


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


def test_shards_without_rows_are_warned_about_and_count_as_none(tmp_path, caplog):
    assert [shard.n_rows for shard in numbered_shards(tmp_path, 2, 0)] == [2, 0]
    assert "1.h5 dataset=X: no rows" in caplog.text


# -- what is refused ---------------------------------------------------------------------------------------------


def test_i13_shards_of_other_widths_are_refused_with_both_names_and_shapes(tmp_path):
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
def test_i6_a_damaged_chunk_is_named_by_file_dataset_and_rows(tmp_path, how):
    path = write_shard(tmp_path / "x.h5", numbered(8), chunks=(4, 2), **how)
    damage_first_chunk(path)
    (shard,) = open_shards([path])
    with refused(65, f"file={path} dataset=X rows=1:4", "cannot be read", "damaged"):
        read(Block(shard, 1, 4))
    np.testing.assert_array_equal(read(Block(shard, 4, 8)), numbered(4, first=4))


def test_i9_a_shard_that_went_away_after_vetting_is_a_failure_of_the_storage(tmp_path, monkeypatch):
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    (shard,) = numbered_shards(tmp_path, 3)
    Path(shard.path).unlink()
    with refused(74, shard.path, "rows=0:3", "No such file", "4 times"):
        whole(shard)


def test_i8_a_shard_that_shrank_after_vetting_is_refused_by_name(tmp_path):
    (shard,) = numbered_shards(tmp_path, 3)
    write_shard(Path(shard.path), numbered(2))
    with refused(65, shard.path):
        whole(shard)


@pytest.mark.parametrize(
    "name",
    [
        "with space.h5",
        "new\nline\x1b[31m.h5",
        "größe ☃.h5",
        os.fsdecode(b"not utf8 \xff\xfe.h5"),
        "fdp.\u202eh5.h5",
        "-x.h5",
        "n" * 252 + ".h5",
        "%s{}.h5",
    ],
    ids=ascii,
)
def test_i21_s18_any_file_name_works_and_is_shown_safely(tmp_path, monkeypatch, name):
    path = tmp_path / name
    write_shard(path, numbered(2), riders={"y": [1, 2]})
    monkeypatch.chdir(tmp_path)
    for pattern in (path, tmp_path, tmp_path / "*.h5", name):
        (shard,) = open_shards([str(pattern)])
        np.testing.assert_array_equal(whole(shard), numbered(2))
        assert read_riders(Block(shard, 0, 2))["y"].tolist() == [1, 2]
    with refused(65, f"file={shown(path)} dataset=Z\\x0a", "not there"):
        open_shards([str(path)], "Z\n")


@pytest.mark.parametrize("name", ["with space", "größe\u202e", "new\nline", "a" * 300, "%s{}"], ids=ascii)
def test_s18_any_name_of_a_dataset_works_and_is_shown_safely(tmp_path, caplog, name):
    path = write_shard(tmp_path / "x.h5", numbered(2), f"{name}/{name}", {f"{name}/y": [b"one", b"two"]})
    with h5py.File(path, "a") as file:
        file[f"{name}/link {name}"] = h5py.SoftLink(name)
    (shard,) = open_shards([path])
    np.testing.assert_array_equal(whole(shard), numbered(2))
    assert read_riders(Block(shard, 1, 2))["y"].tolist() == [b"two"]
    assert all(record.getMessage().isprintable() for record in caplog.records)
    with refused(65, shown(name)):
        open_shards([path], "nowhere")


# -- links and manifests -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A directory of shards beside which something lies that nobody gave leave to read."""
    write_shard(tmp_path / "secret.h5", numbered(3))
    (tmp_path / "in/sub").mkdir(parents=True)
    write_shard(tmp_path / "in/a.h5", numbered(3))
    return tmp_path / "in"


@pytest.mark.parametrize("pattern", ["", "*.h5", "[a-z].h5", "*"])
@pytest.mark.parametrize("target", ["../secret.h5", "{}/secret.h5", "sub/../../secret.h5", "sub/up"])
def test_s12_a_link_out_of_a_listed_directory_is_refused(folder, target, pattern):
    (folder / "sub/up").symlink_to("../../secret.h5")
    (folder / "b.h5").symlink_to(target.format(folder.parent))
    phrases = (f"file={folder}/b.h5", "a link out of the directory", "secret.h5", "--input")
    with hostile.opens(folder.parent / "secret.h5") as counts, refused(77, *phrases):
        open_shards([str(folder / pattern)])
    assert counts == [0]


def test_s12_a_directory_on_the_way_may_not_lead_out_either(folder):
    (folder / "other").symlink_to("..")
    with refused(77, f"file={folder}/other/secret.h5", "a link out of the directory"):
        find([str(folder / "*/*.h5")])


def test_s12_links_within_a_directory_and_files_that_are_named_may_be_links(folder):
    write_shard(folder / "sub/c.h5", numbered(1))
    (folder / "b.h5").symlink_to("sub/c.h5")
    (folder.parent / "named.h5").symlink_to(folder / "a.h5")
    (folder.parent / "dir").symlink_to(folder)
    assert [shard.n_rows for shard in open_shards([str(folder)])] == [3, 1]
    assert open_shards([str(folder.parent / "named.h5")])[0].n_rows == 3
    assert len(open_shards([str(folder.parent / "dir")])) == len(open_shards([str(folder.parent / "dir/*.h5")])) == 2


@pytest.fixture
def output(tmp_path):
    """A finished run's directory with parts of 3, 2 and 4 rows; and what changes its manifest."""
    directory = tmp_path / "out"
    (directory / "parts").mkdir(parents=True)
    (directory / ".shardpress").touch()
    lines = []
    for i, size in enumerate((3, 2, 4)):
        name = f"parts/part-{9 - i}.h5"  # whose order is not that of the names
        data = Path(write_shard(directory / name, numbered(size, first=10 * i), "features")).read_bytes()
        digest = blake3(data).hexdigest()
        lines.append({"file": name, "n_rows": size, "n_bytes": len(data), "blake3": digest})
    write_shard(directory / "index.h5", numbered(1))
    write_shard(directory / "parts/unfinished.h5", numbered(7))

    def write(change=lambda lines: lines):
        (directory / "manifest.json").write_bytes(seal("shardpress-output/1", {"parts": change(lines)}))
        return directory

    write()
    return write


def test_an_output_directory_is_read_by_its_manifest(output):
    directory = output()
    for pattern in (directory, directory / "index.h5", f"{directory}/"):
        shards = open_shards([str(pattern)])
        assert [shard.n_rows for shard in shards] == [3, 2, 4]
        np.testing.assert_array_equal(whole(shards[2]), numbered(4, first=20))
    assert len(open_shards([str(directory / "parts")])) == 4, "as it stands there"


def test_an_older_manifest_says_less(output):
    directory = output(lambda lines: [{"file": line["file"], "n_rows": line["n_rows"]} for line in lines])
    shards = open_shards([str(directory)])
    assert [shard.n_rows for shard in shards] == [3, 2, 4]


def flip(path):
    with h5py.File(path) as file:
        offset = file["features"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_i7_a_bit_that_turned_over_in_a_part_is_found_by_its_hash(output):
    directory = output()
    flip(directory / "parts/part-8.h5")
    with refused(65, f"file={directory}/parts/part-8.h5", "BLAKE3", "manifest"):
        open_shards([str(directory)])
    left_out = []
    shards = open_shards([str(directory)], on_bad_shard=lambda path, error: left_out.append(path.name))
    assert ([shard.n_rows for shard in shards], left_out) == ([3, 4], ["part-8.h5"])


@pytest.mark.parametrize(
    ("key", "value", "phrase"), [("n_rows", 5, "2 rows, expected 5"), ("n_bytes", 5, "expected 5")]
)
def test_i7_a_part_of_another_size_than_the_manifest_says_is_refused(output, key, value, phrase):
    directory = output(lambda lines: [lines[0], {**lines[1], key: value}, lines[2]])
    with refused(65, f"file={directory}/parts/part-8.h5", phrase, "as the manifest says"):
        open_shards([str(directory)])


@pytest.mark.parametrize("name", ["../secret.h5", "parts/../../secret.h5", "/etc/passwd", "{}/secret.h5"])
def test_s12_a_manifest_that_names_files_elsewhere_is_refused(output, tmp_path, name):
    write_shard(tmp_path / "secret.h5", numbered(3))
    directory = output(lambda lines: [{"file": name.format(tmp_path), "n_rows": 3}])
    with hostile.opens(tmp_path / "secret.h5") as counts, refused(77, str(directory)):
        open_shards([str(directory)])
    assert counts == [0]


@pytest.mark.parametrize("what", ["part", "folder"])
def test_s12_a_part_that_is_a_link_is_refused(output, tmp_path, what):
    directory = output()
    if what == "part":
        (directory / "parts/part-8.h5").rename(tmp_path / "moved.h5")
        (directory / "parts/part-8.h5").symlink_to(tmp_path / "moved.h5")
    else:
        (directory / "parts").rename(tmp_path / "moved")
        (directory / "parts").symlink_to(tmp_path / "moved")
    with refused(77, str(directory), "leads elsewhere"):
        open_shards([str(directory)])


def test_an_unfinished_output_directory_is_no_input(output):
    directory = output()
    (directory / "manifest.json").unlink()
    for pattern in (directory, directory / "index.h5"):
        with refused(66, str(directory), "finished run"):
            open_shards([str(pattern)])


@pytest.mark.parametrize("lines", [[], None, [1], [{}], [{"file": 3}], [{"n_rows": 3}]])
def test_a_manifest_without_proper_parts_is_refused(output, lines):
    directory = output(lambda _: lines)
    with refused(65, str(directory)):
        open_shards([str(directory)])


def test_a_part_that_is_missing_is_no_input(output):
    directory = output()
    (directory / "parts/part-8.h5").unlink()
    with refused(66, f"file={directory}/parts/part-8.h5", "No such file"):
        open_shards([str(directory)])


# -- shards that do not fit ----------------------------------------------------------------------------------------


def with_columns(path, names, n=2):
    write_shard(path, numbered(3, n))
    if names is not None:
        with h5py.File(path, "a") as file:
            file["X"].attrs["columns"] = names
    return str(path)


@pytest.mark.parametrize(
    "pairs",
    [
        (["a", "b"], ["a", "b"]),
        (["a", "b"], np.array(["a", "b"], "S1")),
        (["a", "b"], None),
        (None, ["a", "b"]),
        (["a", "b"], [1, 2]),
        (["a", "b"], "a, b"),
        (None, None),
    ],
    ids=str,
)
def test_i17_columns_of_the_same_names_or_none_fit(tmp_path, pairs):
    names = [with_columns(tmp_path / f"{i}.h5", columns) for i, columns in enumerate(pairs)]
    assert len(open_shards(names)) == 2


@pytest.mark.parametrize(
    ("other", "phrase"),
    [
        (["b", "a"], "column 0 'b', expected 'a'"),
        (["a", "ü"], "column 1 'ü', expected 'b'"),
        (["a"], "column 1 None, expected 'b'"),
        (["a", "b", "c"], "column 2 'c', expected None"),
        (["a", "b\n"], "column 1 'b\\n', expected 'b'"),
    ],
)
def test_i17_columns_of_other_names_are_refused(tmp_path, other, phrase):
    first, second = with_columns(tmp_path / "a.h5", ["a", "b"]), with_columns(tmp_path / "b.h5", other)
    with refused(65, f"file={second} dataset=X", phrase, f"as in file={first}", "in one order"):
        open_shards([first, second])


def test_i17_columns_are_those_of_the_first_shard_that_names_them(tmp_path):
    names = [with_columns(tmp_path / f"{i}.h5", columns) for i, columns in enumerate([None, ["a", "b"], ["b", "a"]])]
    with refused(65, f"file={names[2]} dataset=X", "column 0 'b', expected 'a'", f"as in file={names[1]}"):
        open_shards(names)


def test_i17_the_names_of_many_shards_are_held_once(tmp_path):
    names = [with_columns(tmp_path / f"{i}.h5", ["a", "b"]) for i in range(3)]
    assert len({id(shard.columns) for shard in open_shards(names)}) == 1


def test_bad_shards_may_be_left_out_and_are_told_in_order(tmp_path):
    write_shard(tmp_path / "0.h5", numbered(3))
    (tmp_path / "1.h5").write_bytes(b"bad")
    write_shard(tmp_path / "2.h5", numbered(3, 5))
    write_shard(tmp_path / "3.h5", numbered(4))
    write_shard(tmp_path / "4.h5", numbered(4), "Y")
    left_out = []

    def leave_out(path, error):
        assert isinstance(error, DataError)
        assert str(path) in str(error)
        left_out.append(path.name)

    shards = open_shards([str(tmp_path)], "X", leave_out)
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "3.h5"]
    assert left_out == ["1.h5", "2.h5", "4.h5"]


def test_i19_the_first_bad_shard_of_many_is_told_and_the_rest_is_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.shards.open._AT_ONCE", 10)
    for i in range(300):
        (tmp_path / f"{i}.h5").write_bytes(b"bad" if i >= 3 else Path(write_shard(tmp_path / ".x", [[1]])).read_bytes())
    opened = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(path) or real(path))
    with refused(65, f"file={tmp_path}/3.h5", "not an HDF5 file"):
        open_shards([str(tmp_path)])
    assert len(opened) <= 10


def test_when_every_shard_is_bad_none_is_left(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.h5").write_bytes(b"bad")
    left_out = []
    with refused(65, f"input={tmp_path}", "none of 3 files"):
        open_shards([str(tmp_path)], on_bad_shard=lambda path, error: left_out.append(path))
    assert len(left_out) == 3


def test_only_bad_data_may_be_left_out(tmp_path, open_path):
    write_shard(tmp_path / "0.h5", numbered(3))
    (tmp_path / "1.h5").mkdir()
    with refused(66, "1.h5"):
        open_shards([str(tmp_path)], on_bad_shard=lambda path, error: pytest.fail("left out"))


# -- many ------------------------------------------------------------------------------------------------------------


def test_i19_many_shards_are_opened_once_each_and_take_little_memory(tmp_path, monkeypatch):
    first = Path(write_shard(tmp_path / "0.h5", numbered(3), riders={"y": range(3)}))
    for i in range(1, 500):
        (tmp_path / f"{i}.h5").write_bytes(first.read_bytes())
    open_shards([str(first)])
    opened = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(path) or real(path))
    tracemalloc.start()
    try:
        shards = open_shards([str(tmp_path)])
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(opened) == sorted(str(tmp_path / f"{i}.h5") for i in range(500))
    assert [Path(shard.path).stem for shard in shards] == [str(i) for i in range(500)]
    assert held < 500 * 5000
    assert peak < held + 2**22
    numbers = first_rows(shards)
    assert read(block_of(shards, numbers, 1497, 1500)).tolist() == numbered(3).tolist()


def test_a_shard_can_be_sent_to_another_process(tmp_path):
    (shard,) = numbered_shards(tmp_path, 9, chunks=(2, 2), compression="gzip")
    sent = pickle.loads(pickle.dumps(Block(shard, 2, 7)))
    assert sent == Block(shard, 2, 7)
    np.testing.assert_array_equal(read(sent), numbered(5, first=2))


def test_i8_a_file_that_a_process_holds_open_for_writing_is_warned_of(tmp_path, caplog):
    """As h5py does, and as any program does that locks what it writes."""
    paths = [write_shard(tmp_path / f"{i}.h5", numbered(3)) for i in range(3)]
    with h5py.File(paths[1], "a"), open(paths[2], "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        open_shards(paths)
    words = f"file={paths[1]}: process {os.getpid()} holds it open for writing (and 1 more files are held so)"
    assert [record.levelname for record in caplog.records if words in record.message] == ["WARNING"]
    caplog.clear()
    with h5py.File(paths[1]):
        open_shards(paths)
    assert "for writing" not in caplog.text


@pytest.mark.parametrize("content", ["", "1: FLOCK", "text\n" * 10, "1: FLOCK  ADVISORY  READ 1 fe:00:7 0 EOF\n"])
def test_a_list_of_locks_that_says_nothing_is_no_warning(tmp_path, monkeypatch, content):
    (tmp_path / "locks").write_text(content)
    monkeypatch.setattr(files, "open", lambda _: (tmp_path / "locks").open(), raising=False)
    assert files.writers() == {}
    (tmp_path / "locks").unlink()
    assert files.writers() == {}
