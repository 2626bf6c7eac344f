"""Tests of opening shards: they must match, each file is opened once, and refused files are named."""

import os
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError, printable
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block, block_of, first_rows
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from tests.support.cases import case
from tests.support.damage import damage
from tests.support.helpers import numbered, refused, whole, write_shard
from tests.support.logged import mentions


def test_opening_reads_no_rows(tmp_path):
    """Vetting is fast for terabytes of data, because unreadable chunks are only found when they are read."""
    path = write_shard(tmp_path / "x.h5", numbered(8), compression="gzip")
    damage(path)
    assert open_shards([path])[0].shape == (8, 2)


def test_shards_of_different_widths_are_refused(tmp_path):
    first = write_shard(tmp_path / "a.h5", np.zeros((3, 2, 2)))
    second = write_shard(tmp_path / "b.h5", np.zeros((5, 3)))
    with refused(65, first, second, "(3, 2, 2)", "(5, 3)", "3 columns, expected 4"):
        open_shards([first, second])


@pytest.mark.process
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
def test_any_file_name_works_and_is_escaped(tmp_path, monkeypatch, name):
    path = tmp_path / name
    write_shard(path, numbered(2), extras={"y": [1, 2]})
    monkeypatch.chdir(tmp_path)
    for pattern in (path, tmp_path, tmp_path / "*.h5", name):
        (shard,) = open_shards([str(pattern)])
        np.testing.assert_array_equal(whole(shard), numbered(2))
        assert read_extras(Block(shard, 0, 2))["y"].tolist() == [1, 2]
    with refused(65, f"file={printable(path)} dataset=Z\\n"):
        open_shards([str(path)], "Z\n")


@pytest.mark.process
def test_any_dataset_name_works_and_is_escaped(tmp_path, caplog):
    for name in ["with space", "größe\u202e", "new\nline", "a" * 300, "%s{}"]:
        with case(name):
            path = write_shard(tmp_path / "x.h5", numbered(2), f"{name}/{name}", {f"{name}/y": [b"one", b"two"]})
            with h5py.File(path, "a") as file:
                file[f"{name}/link {name}"] = h5py.SoftLink(name)
            (shard,) = open_shards([path])
            np.testing.assert_array_equal(whole(shard), numbered(2))
            assert read_extras(Block(shard, 1, 2))["y"].tolist() == [b"two"]
            assert all(record.getMessage().isprintable() for record in caplog.records)
            with refused(65, printable(name)):
                open_shards([path], "nowhere")


# -- mismatched shards ------------------------------------------------------------------------------------------------


def with_columns(path, names, n=2):
    write_shard(path, numbered(3, n))
    if names is not None:
        with h5py.File(path, "a") as file:
            file["X"].attrs["columns"] = names
    return str(path)


@pytest.mark.process
def test_columns_with_equal_names_or_none_fit(tmp_path):
    for pairs in [
        (["a", "b"], ["a", "b"]),
        (["a", "b"], np.array(["a", "b"], "S1")),
        (["a", "b"], None),
        (None, ["a", "b"]),
        (["a", "b"], [1, 2]),
        (["a", "b"], "a, b"),
        (None, None),
    ]:
        with case(pairs):
            names = [with_columns(tmp_path / f"{i}.h5", columns) for i, columns in enumerate(pairs)]
            assert len(open_shards(names)) == 2


@pytest.mark.process
def test_columns_with_different_names_are_refused(tmp_path):
    for other, phrase in [
        (["b", "a"], "column 0 "),
        (["a", "ü"], "'ü'"),
        (["a", "b\n"], "'b\\n'"),
    ]:
        with case(other, phrase):
            first = with_columns(tmp_path / "a.h5", ["a", "b"])
            second = with_columns(tmp_path / "b.h5", other)
            with refused(65, f"file={second} dataset=X", phrase, f" file={first}"):
                open_shards([first, second])


@pytest.mark.process
def test_first_shard_with_column_names_decides(tmp_path):
    names = [with_columns(tmp_path / f"{i}.h5", columns) for i, columns in enumerate([None, ["a", "b"], ["b", "a"]])]
    with refused(65, f"file={names[2]} dataset=X", "column 0 ", f" file={names[1]}"):
        open_shards(names)


@pytest.mark.process
def test_column_names_of_many_shards_are_stored_once(tmp_path):
    names = [with_columns(tmp_path / f"{i}.h5", ["a", "b"]) for i in range(3)]
    assert len({id(shard.columns) for shard in open_shards(names)}) == 1


@pytest.mark.process
def test_bad_shards_are_left_out_and_reported_in_order(tmp_path):
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


def test_few_files_are_opened_if_many_are_bad(tmp_path, monkeypatch):
    monkeypatch.setattr("shardpress.shards.open._FILES_PER_BATCH", 10)
    for i in range(300):
        (tmp_path / f"{i}.h5").write_bytes(b"bad" if i >= 3 else Path(write_shard(tmp_path / ".x", [[1]])).read_bytes())
    opened = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(path) or real(path))
    with refused(65, f"{tmp_path}/3.h5", f"{tmp_path}/4.h5", "--on-bad-data skip"):
        open_shards([str(tmp_path)])
    assert len(opened) <= 30


def test_many_empty_shards_give_one_warning(tmp_path, caplog):
    write_shard(tmp_path / "x.h5", numbered(3))
    for i in range(30):
        write_shard(tmp_path / f"{i}.h5", numbered(0))
    assert len(open_shards([str(tmp_path)])) == 31
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert mentions(warning.getMessage(), 30)


def test_all_shards_bad_is_an_error(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.h5").write_bytes(b"bad")
    left_out = []
    with refused(65, "3 files", "0.h5"):
        open_shards([str(tmp_path)], on_bad_shard=lambda path, error: left_out.append(path))
    assert len(left_out) == 3


def test_only_bad_data_is_left_out(tmp_path, open_path):
    write_shard(tmp_path / "0.h5", numbered(3))
    (tmp_path / "1.h5").mkdir()
    with refused(66, "1.h5"):
        open_shards([str(tmp_path)], on_bad_shard=lambda path, error: pytest.fail("the shard was left out"))


# -- many shards ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_shards_are_opened_once_in_bounded_memory(tmp_path, monkeypatch):
    first = Path(write_shard(tmp_path / "0.h5", numbered(3), extras={"y": range(3)}))
    for i in range(1, 500):
        (tmp_path / f"{i}.h5").write_bytes(first.read_bytes())
    open_shards([str(first)])
    opened = []
    real = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(path) or real(path))
    tracemalloc.start()
    try:
        shards = open_shards([str(tmp_path)])
        n_held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sorted(opened) == sorted(str(tmp_path / f"{i}.h5") for i in range(500))
    assert [Path(shard.path).stem for shard in shards] == [str(i) for i in range(500)]
    assert n_held < 500 * 5000
    assert peak < n_held + 2**22
    numbers = first_rows(shards)
    assert read(block_of(shards, numbers, 1497, 1500)).tolist() == numbered(3).tolist()
