"""Tests of encoding: the features of each row are in their place, and every file is complete."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import threading
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import check, threads
from shardpress.device import TILE_ROWS
from shardpress.encoding import encode as module
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.encode import EncodeTask, encode_part
from shardpress.encoding.partfile import row_shapes
from shardpress.encoding.parts import PartSize, Piece, plan_parts
from shardpress.encoding.storage import PLAIN, Storage
from shardpress.encoding.worker import IN_MEMORY, Encoder, Encoders, EncodeSettings, serving
from shardpress.hdf5 import shard
from shardpress.hdf5.files import FILES
from shardpress.hdf5.shard import Block, Shard
from shardpress.model import Model
from shardpress.output.disk import Disk
from shardpress.output.files import fault_of, write_file
from shardpress.records import Part, Range, in_order, with_digests
from shardpress.run.digests import with_content
from shardpress.run.request import facts_of
from shardpress.scan.scaler import Scaler
from shardpress.shards import digests
from shardpress.shards import rows as rows_module
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress_kernels.network import Network
from tests.support.damage import damage
from tests.support.fresh_process import run_in_fresh_process
from tests.support.helpers import names, numbered, numbered_shards, refused, write_shard
from tests.support.logged import mentions


def double(rows: np.ndarray, out: np.ndarray) -> None:
    """Encode rows without a device: the two features are twice the first two columns."""
    out[:] = 2 * rows[:, :2]


def model_of(n_inputs: int, n_features: int = 2) -> Model:
    rng = np.random.default_rng(0)
    shapes = {"W": (n_inputs, n_features), "b_hidden": (n_features,), "b_output": (n_inputs,)}
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Model(Scaler(np.full(n_inputs, -5.0), np.full(n_inputs, 200.0)), Network((n_inputs, 2)), parameters)


def settings_of(folder: Path, block_rows: int, part_rows: int, **more: Any) -> EncodeSettings:
    (folder / "parts").mkdir(exist_ok=True)
    rows = (min(block_rows, part_rows), part_rows)
    return EncodeSettings(str(folder), IN_MEMORY, *rows, 2, **more)


def planned(shards: Sequence[Shard], settings: EncodeSettings) -> list[list[Piece]]:
    return plan_parts(shards, [], PartSize(settings.part_rows, 100, settings.block_rows))


def run(
    shards: Sequence[Shard],
    settings: EncodeSettings,
    n_threads: int = 2,
    encoder: Encoder | Encoders = double,
    disk: Disk | None = None,
    done: Callable[[Part], object] | None = None,
    unreadable: dict[int, str] | None = None,
) -> list[Part]:
    """Encode all parts of the shards in threads."""
    functions: dict[str, Any] = {"encode": encoder}
    if isinstance(encoder, Encoders):
        functions = {"encode": encoder.encode_checked, "errors": encoder.errors}
    tasks = [(encode_part, EncodeTask(pieces, settings, unreadable or {})) for pieces in planned(shards, settings)]
    model = model_of(shards[0].n_inputs)
    with serving(settings, model, disk=disk or Disk(), **functions), threads(n_threads) as pool:
        return compute(tasks, pool, n_threads, done)


def encode(
    shards: Sequence[Shard],
    folder: Path,
    block_rows: int,
    part_rows: int,
    bad_data: BadData | None = None,
    **options: Any,
) -> tuple[list[Part], np.ndarray]:
    """Return the facts of all parts, and their features."""
    parts = run(shards, settings_of(folder, block_rows, part_rows, bad_data=bad_data or BadData()), **options)
    return parts, concatenate(folder, parts, "features")


def concatenate(folder: Path, parts: Sequence[Part], name: str) -> np.ndarray:
    """Return a dataset over all parts."""
    found = []
    for part in parts:
        with h5py.File(folder / part.entry.file) as file:
            found.append(file[name][:])
    return np.concatenate(found)


def ranges_of(parts: Sequence[Part]) -> list[Range]:
    return [each for _, each in in_order(parts)]


@pytest.mark.parametrize("n_threads", [1, 4])
def test_features_are_in_the_order_of_the_rows(tmp_path: Path, n_threads: int) -> None:
    shards = numbered_shards(tmp_path, 5, 0, 1, 7)
    for block_rows, part_rows in itertools.product((1, 2, 3, 7, 100), (1, 3, 100)):
        words = f"blocks of {block_rows}, parts of {part_rows}"
        parts, features = encode(shards, tmp_path, block_rows, part_rows, n_threads=n_threads)
        assert np.array_equal(features, 2 * numbered(13).astype(np.float32)), words
        assert sum(part.n_rows for part in parts) == 13, words
        assert all(part.n_rows <= part_rows for part in parts), words


def test_a_part_names_the_rows_that_it_was_made_from(tmp_path: Path) -> None:
    parts, _ = encode(numbered_shards(tmp_path, 2, 0, 9, 3), tmp_path, 2, 5)
    found = [[(each.first, each.shard, each.start, each.stop) for each in part.ranges] for part in parts]
    assert found == [[(0, 0, 0, 2), (2, 2, 0, 2)], [(0, 2, 2, 6)], [(0, 2, 6, 9), (3, 3, 0, 2)], [(0, 3, 2, 3)]]
    assert [part.n_rows for part in parts] == [4, 4, 5, 1]


def test_skipped_rows_do_not_shift_other_rows(tmp_path: Path) -> None:
    rows = numbered(6, dtype=np.float32)
    rows[2, 1] = np.nan
    rows[5, 0] = np.inf
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    parts, features = encode(shards, tmp_path, 2, 4, BadData("skip"))
    bad = np.array([False, False, True, False, False, True])
    assert np.isnan(features[bad]).all()
    assert np.array_equal(features[~bad], 2 * rows[~bad])
    assert [each.n_bad for each in ranges_of(parts)] == [1, 1]
    with h5py.File(tmp_path / parts[0].entry.file) as file:
        assert file["valid"][:].tolist() == [True, True, False, True]


def test_the_error_about_bad_rows_names_their_place(tmp_path: Path) -> None:
    rows = numbered(6, dtype=np.float32)
    rows[3, 1] = np.nan
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    with refused(65, "a.h5", "dataset=X", "nan", "row 3, column 1", "--on-bad-data skip"):
        encode(shards, tmp_path, 2, 4)


def test_an_interrupt_leaves_only_complete_files(tmp_path: Path) -> None:
    calls = []

    def interrupted(rows: np.ndarray, out: np.ndarray) -> None:
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        double(rows, out)

    shards = numbered_shards(tmp_path, 6, 6, 6)
    with pytest.raises(KeyboardInterrupt):
        encode(shards, tmp_path, 2, 6, n_threads=1, encoder=interrupted)
    (path,) = (tmp_path / "parts").iterdir()
    first = 6 * int(path.stem.split("-")[1])
    with h5py.File(path) as file:
        assert np.array_equal(file["features"][:], 2 * numbered(6, first=first).astype(np.float32))


def test_a_failure_stops_other_parts_at_their_next_block(tmp_path: Path) -> None:
    has_begun = threading.Event()

    class Full(Disk):
        def create(self, path: Path) -> int:
            assert has_begun.wait(timeout=30)
            raise OSError(errno.ENOSPC, "no")

    def endless(rows: np.ndarray, out: np.ndarray) -> None:
        if rows[0, 0] >= 40:
            has_begun.set()
            while True:
                check()

    parts: list[Part] = []
    shards = numbered_shards(tmp_path, 4, 4)
    with refused(74, "parts/part-000000", "no"):
        encode(shards, tmp_path, 1, 4, encoder=endless, disk=Full(), done=parts.append)
    assert not parts


# -- committing --------------------------------------------------------------------------------------------------


def test_each_part_is_passed_once_to_the_calling_thread(tmp_path: Path) -> None:
    """The other threads only write files; the calling thread decides which files are committed."""
    shards = numbered_shards(tmp_path, 9, 0, 30)
    reported = []

    def commit(part: Part) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert (tmp_path / part.entry.file).is_file()
        reported.append(part)

    parts, _ = encode(shards, tmp_path, 1, 3, n_threads=4, done=commit)
    assert sorted(reported, key=parts.index) == parts


def test_nothing_is_committed_after_a_commit_failed(tmp_path: Path) -> None:
    committed = []

    def commit(part: Part) -> None:
        committed.append(part)
        if len(committed) == 3:
            raise OSError("full")

    shards = numbered_shards(tmp_path, 300)
    with pytest.raises(OSError, match="full"):
        encode(shards, tmp_path, 1, 1, n_threads=3, done=commit)
    n_files = len(list((tmp_path / "parts").iterdir()))
    assert (len(committed), n_files < 20) == (3, True)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dask")] == []


# -- bad data ----------------------------------------------------------------------------------------------------


def test_bad_rows_are_listed_whatever_the_size_of_parts(tmp_path: Path) -> None:
    rows = numbered(50, 3, dtype=np.float32)
    rows[np.random.default_rng(0).random((50, 3)) < 0.05] = np.nan
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    expected = [
        {"row": i, "columns": np.flatnonzero(np.isnan(row)).tolist(), "reason": "nan"}
        for i, row in enumerate(rows)
        if np.isnan(row).any()
    ]
    for block_rows, part_rows in ((4, 12), (3, 9)):
        parts, _ = encode(shards, tmp_path, block_rows, part_rows, BadData("skip"))
        assert [bad for each in ranges_of(parts) for bad in each.bad] == expected
        assert sum(each.n_bad for each in ranges_of(parts)) == len(expected)


@pytest.mark.parametrize("part_rows", [4, 8, 100])
def test_an_unreadable_shard_keeps_its_place_and_its_extras(tmp_path: Path, part_rows: int) -> None:
    paths = [
        write_shard(tmp_path / f"{i}.h5", numbered(10, first=10 * i), fletcher32=True, extras={"y": np.arange(10) + i})
        for i in range(3)
    ]
    damage(paths[1])
    parts, features = encode(open_shards(paths), tmp_path, 4, part_rows, BadData("skip"), unreadable={1: "broken"})
    valid, y = (concatenate(tmp_path, parts, name) for name in ("valid", "y"))
    assert valid.tolist() == [True] * 10 + [False] * 10 + [True] * 10
    assert np.isnan(features[~valid]).all()
    assert np.array_equal(features[valid], 2 * numbered(30)[valid])
    assert y.tolist() == [i + j for i in range(3) for j in range(10)]
    unreadable = [each for each in ranges_of(parts) if each.shard == 1]
    assert [each.bad for each in unreadable] == [
        [{"row": [each.start, each.stop], "columns": [], "reason": "broken"}] for each in unreadable
    ]
    assert all(each.bad == [] for each in ranges_of(parts) if each.shard != 1)


EXTRAS = {
    "number": (np.arange(1, 31), np.iinfo(np.int64).min),
    "big": (np.arange(1, 31).astype(">f8"), np.nan),
    "code": (np.array([b"a%d" % i for i in range(30)], "S3"), b""),
    "text": (np.array([f"no. {i}" for i in range(30)], dtype=object), b""),
}


@pytest.fixture(params=[False, True], ids=["at once", "block by block"])
def wide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Return whether all extras are treated as wide, so that only a few rows of them are read at a time."""
    if request.param:
        monkeypatch.setattr(module, "WIDE_BYTES", 0)
        monkeypatch.setattr(rows_module, "_EXTRA_PIECE", 50)
    return bool(request.param)


@pytest.mark.process
@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("part_rows", [4, 12, 100])
def test_unreadable_values_of_an_extra_dataset_are_filled(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    part_rows: int,
    wide: bool,
) -> None:
    """The chunks of the extra dataset determine which values are filled; the parts do not matter."""
    if wide:
        monkeypatch.setattr(shard, "_NUMBER_BYTES", 0)
    path = tmp_path / "x.h5"
    values, nothing = EXTRAS[name]
    write_shard(path, numbered(30), extras={"intact": np.arange(30)})
    with h5py.File(path, "a") as file:
        dtype = h5py.string_dtype() if values.dtype == object else values.dtype
        file.create_dataset(name, data=values, chunks=(7,), compression="gzip", dtype=dtype)
    damage(path, name, chunk=2)
    shards = open_shards([str(path)])
    parts, features = encode(shards, tmp_path, 4, part_rows, BadData("skip"))
    expected = values.copy()
    expected[14:21] = nothing
    found = concatenate(tmp_path, parts, name)
    np.testing.assert_array_equal(found, [each.encode() if isinstance(each, str) else each for each in expected])
    with h5py.File(tmp_path / parts[0].entry.file) as file:
        assert file[name].dtype == dtype
    assert concatenate(tmp_path, parts, "intact").tolist() == list(range(30))
    assert np.array_equal(features, 2 * numbered(30))
    assert concatenate(tmp_path, parts, "valid").all()
    assert sum(each.n_bad for each in ranges_of(parts)) == 0
    listed = [bad for each in ranges_of(parts) for bad in each.bad]
    assert sorted(row for bad in listed for row in range(*bad["row"])) == list(range(14, 21))
    assert {(bad["dataset"], f"dataset={name} rows=" in bad["reason"]) for bad in listed} == {(name, True)}
    assert mentions(caplog.text, name, nothing or "empty", f"file={path}")
    with refused(65, str(path), f"dataset={name} rows="):
        encode(shards, tmp_path, 4, part_rows)


@pytest.mark.process
@pytest.mark.usefixtures("wide")
def test_unreadable_values_of_an_extra_dataset_are_not_present(tmp_path: Path) -> None:
    lacking = write_shard(tmp_path / "0.h5", numbered(3))
    path = tmp_path / "1.h5"
    write_shard(path, numbered(30))
    with h5py.File(path, "a") as file:
        for name, values in (("word", np.full(30, b"a word", "S40")), ("text", np.full(30, b"text", object))):
            file.create_dataset(name, data=values, chunks=(7,), compression="gzip")
        for name in ("y", "kind"):
            file.create_dataset(name, data=np.zeros(30, "i1"), chunks=(7,), compression="gzip")
        file["__categories/kind"] = [b"a"]
    damage(path, "y", chunk=2)
    damage(path, "kind", chunk=1)
    damage(path, "word", chunk=3)
    damage(path, "text", chunk=0)
    parts, _ = encode(open_shards([lacking, str(path)]), tmp_path, 4, 12, BadData("skip"))
    lost: list[tuple[str, int, object, object]] = [("y", 14, 0, -128), ("kind", 7, 0, -1)]
    lost += [("word", 21, b"a word", b""), ("text", 0, b"text", b"")]
    for name, first, value, nothing in lost:
        expected = np.r_[[False] * 3, [True] * 30]
        expected[3 + first : 10 + first] = False
        assert np.array_equal(concatenate(tmp_path, parts, f"{name}_present"), expected)
        assert concatenate(tmp_path, parts, name).tolist() == [value if has else nothing for has in expected]


def test_a_storage_error_of_an_extra_dataset_is_not_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "x.h5", numbered(5), extras={"y": np.arange(5)})
    shards = open_shards([str(tmp_path / "x.h5")])
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    (tmp_path / "x.h5").unlink()
    with refused(74, "dataset=y rows=0:5", os.strerror(errno.ENOENT)):
        encode(shards, tmp_path, 4, 8, BadData("skip"), unreadable={0: "broken"})


def test_rows_outside_the_range_are_counted_for_each_part(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 10)
    bad_data = BadData("raise", trained_on=Scaler(np.array([10.0, 0.0]), np.array([1e9, 61.0])))
    parts, _ = encode(shards, tmp_path, 2, 4, bad_data)
    assert [each.n_outside for each in ranges_of(parts)] == [1, 1, 2]  # rows 0, 7, and 8 and 9


# -- digests -----------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("part_rows", [4, 12, 100])
def test_digests_of_parts_are_those_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    """A file that has other times is recognized by digests that are computed without encoding it."""
    monkeypatch.setattr(digests, "UNIT_ROWS", 4)
    write_shard(tmp_path / "0.h5", numbered(30), extras={name: values for name, (values, _) in EXTRAS.items()})
    write_shard(tmp_path / "1.h5", numbered(9), extras={"kind": np.zeros(9, "i1")})
    with h5py.File(tmp_path / "1.h5", "a") as file:
        file["__categories/kind"] = [b"a"]
        file["text"] = np.array(["größe"] * 9, object)
        file.create_dataset("array", (9,), np.dtype(("f4", (2, 2))))[...] = np.ones((9, 2, 2))
    shards = open_shards([str(tmp_path)])
    names = {extra.name for extra in shards[0].extras}
    assert names > {"number_present", "text", "kind", "array"}
    parts, _ = encode(shards, tmp_path, 4, part_rows)
    facts = [facts_of(shard) for shard in shards]
    found = with_digests(facts, parts)
    for i, each in enumerate(shards):
        read_again = with_content(facts[i], each, AS_STORED, names)
        assert None not in (read_again.rows, read_again.extras)
        assert (read_again.rows, read_again.extras) == (found[i].rows, found[i].extras)


def test_lost_values_and_unreadable_rows_have_no_digest(tmp_path: Path) -> None:
    paths = [
        write_shard(tmp_path / f"{i}.h5", numbered(10), fletcher32=True, extras={"y": np.arange(10)}) for i in range(3)
    ]
    with h5py.File(paths[0], "a") as file:
        del file["y"]
        file.create_dataset("y", data=np.arange(10), chunks=(5,), compression="gzip")
    damage(paths[0], "y")
    damage(paths[1])
    parts, _ = encode(open_shards(paths), tmp_path, 4, 100, BadData("skip"), unreadable={1: "broken"})
    found = [(each.rows is None, each.extras is None) for each in ranges_of(parts)]
    assert found == [(False, True), (True, True), (False, False)]


# -- parts over several shards -----------------------------------------------------------------------------------


def various_shards(folder: Path) -> tuple[Shard, ...]:
    """Write small shards with rows and extras of many kinds. Shard 3 is damaged, and so is an extra of shard 4."""
    state = h5py.enum_dtype({"on": 1, "off": 0}, "i2")
    paths = []
    for i, (n_rows, dtype) in enumerate([(5, "f4"), (1, "f8"), (9, "i2"), (6, "f4"), (12, "f8"), (3, "u1")]):
        rows = (numbered(n_rows, 3, first=5 * i) % 250).astype(dtype)
        if dtype == "f8":
            rows[0, 1] = np.nan
        paths.append(write_shard(folder / f"{i}.h5", rows, chunks=(1, 3), fletcher32=True))
        texts = {"short": [f"ß{k}" for k in range(n_rows)], "long": ["x" * (100 * k + i) for k in range(n_rows)]}
        with h5py.File(paths[-1], "a") as file:
            for name, values in texts.items():
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            file.create_dataset("big", data=np.arange(n_rows), dtype=">i4")
            file.create_dataset("state", data=np.arange(n_rows) % 2, dtype=state)
            file.create_dataset("pair", (n_rows,), np.dtype(("f4", (2,))))[...] = np.ones((n_rows, 2))
            file.create_dataset("label", data=np.arange(n_rows) % 2, dtype="i1")
            file["__categories/label"] = [b"common", b"of shard %d" % i]
            if i != 1:
                word = np.array([b"word %d" % k for k in range(n_rows)], "S40")
                file.create_dataset("word", data=word, chunks=(3,), compression="gzip")
    damage(paths[3])
    damage(paths[4], "word", chunk=1)
    return open_shards(paths)


def encoded(pieces: Sequence[Piece], settings: EncodeSettings, encoder: Encoder) -> tuple[Part, dict[str, Any]]:
    """Return the record of a part, and the values in its file."""
    model = model_of(pieces[0].source.shard.n_inputs)
    with serving(settings, model, encoder, Disk()):
        part = encode_part(EncodeTask(pieces, settings, {3: "broken"}))
    with h5py.File(Path(settings.directory) / part.file) as file:
        return part, {name: (item.dtype, item[:]) for name, item in file.items()}


@pytest.mark.process
@pytest.mark.parametrize(
    ("encoder", "storage"),
    [(double, PLAIN), pytest.param(None, Storage("float16", "gzip"), marks=pytest.mark.compiler)],
    ids=["NumPy", "device"],
)
@pytest.mark.usefixtures("wide")
def test_a_part_of_several_shards_equals_parts_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder | None, storage: Storage
) -> None:
    monkeypatch.setattr(digests, "UNIT_ROWS", 4)
    shards = various_shards(tmp_path)
    assert {"big", "short", "long", "state", "pair", "label", "word", "word_present"} == set(names(shards[0]))
    encoder = encoder or Encoders(model_of(3)).encode_checked
    settings = settings_of(tmp_path, 4, 100, bad_data=BadData("skip"), has_range=True, storage=storage)
    pieces = [Piece(i, Block(shard, 0, shard.n_rows)) for i, shard in enumerate(shards)]
    pieces[2] = Piece(2, Block(shards[2], 4, 9))
    part, values = encoded(pieces, settings, encoder)
    for name, (_, dtype) in row_shapes(2, shards[0].extras, np.dtype(storage.dtype)).items():
        assert values[name][0] == dtype, "as the index declares it"
        assert h5py.check_enum_dtype(values[name][0]) == h5py.check_enum_dtype(dtype)
    assert [(each.first, each.shard, each.start) for each in part.ranges] == [
        (0, 0, 0), (5, 1, 0), (6, 2, 4), (11, 3, 0), (17, 4, 0), (29, 5, 0)
    ]  # fmt: skip
    for piece, each in zip(pieces, part.ranges, strict=True):
        own_part, own_values = encoded([piece], settings, encoder)
        assert [replace(each, first=0)] == own_part.ranges
        assert own_values.keys() == values.keys()
        for name, (dtype, own) in own_values.items():
            joint_dtype, joint = values[name]
            assert (joint_dtype, joint_dtype.metadata) == (dtype, dtype.metadata), name
            np.testing.assert_array_equal(joint[each.first : each.first + each.n_rows], own)
    bad = np.isnan(values["features"][1]).any(axis=1)
    assert np.flatnonzero(bad).tolist() == [5, *range(11, 17), 17]
    assert np.array_equal(~bad, values["valid"][1])
    assert [each.is_unreadable for each in part.ranges] == [i == 3 for i in range(6)]
    assert [each.lost for each in part.ranges] == [{"word": [[3, 6]]} if i == 4 else {} for i in range(6)]
    assert [each.extras is None for each in part.ranges] == [i in (3, 4) for i in range(6)]


def test_wide_extras_of_several_shards_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_rows = 5000
    values = np.arange(4 * n_rows).astype("S500")
    paths = [
        write_shard(tmp_path / f"{i}.h5", numbered(n_rows), extras={"word": values[i * n_rows :][:n_rows]})
        for i in range(4)
    ]
    shards = open_shards(paths)
    monkeypatch.setattr(rows_module, "_EXTRA_PIECE", 2**18)
    settings = settings_of(tmp_path, 1024, 2**20)
    pieces = [Piece(i, Block(shard, 0, n_rows)) for i, shard in enumerate(shards)]
    parts = []
    for least in (2**20, 2**30):
        monkeypatch.setattr(module, "WIDE_BYTES", least)
        with serving(settings, model_of(2), double, Disk()):
            encode_part(EncodeTask(pieces[:1], settings))  # the memory of this thread
            tracemalloc.start()
            try:
                parts.append(encode_part(EncodeTask(pieces, settings)))
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert (peak < values.nbytes / 4) == (least == 2**20), peak
    assert parts[0].entry.blake3 == parts[1].entry.blake3
    assert parts[0].ranges == parts[1].ranges
    assert None not in {each.extras for each in parts[0].ranges}
    assert np.array_equal(concatenate(tmp_path, parts[:1], "word"), values)


# -- tasks -------------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.compiler
def test_a_task_gives_the_same_results_in_a_fresh_process(tmp_path: Path) -> None:
    """The fresh process loads the model from the file that the task names."""
    rows = [numbered(n, 3, dtype=np.float32) % 190 for n in (TILE_ROWS + 40, 5, 9)]
    rows[0][7, 1] = np.nan
    rows[0][TILE_ROWS + 3, 0] = -99
    rows[1][4, 2] = 1e6
    extras = {"y": np.arange(TILE_ROWS + 40), "name": np.array([b"a", b"bc", b"d"] * 700, object)}
    paths = [
        write_shard(tmp_path / f"{i}.h5", each, extras={name: values[: len(each)] for name, values in extras.items()})
        for i, each in enumerate(rows)
    ]
    shards = open_shards(paths)
    model = model_of(3)
    bad_data = BadData("skip", -99, "clip")
    settings = settings_of(tmp_path, TILE_ROWS, TILE_ROWS, bad_data=bad_data, has_range=True, row_error=True)
    settings = dataclasses.replace(settings, model=write_file(tmp_path, Disk(), "model.h5", model.to_hdf5()))
    local = run(shards, settings, encoder=Encoders(model), unreadable={2: "broken"})
    remote = run_in_fresh_process(
        [(encode_part, EncodeTask(pieces, settings, {2: "broken"})) for pieces in planned(shards, settings)]
    )
    assert [len(part.ranges) for part in local] == [1, 3]
    assert [(each.n_bad, each.n_outside) for each in ranges_of(local)] == [(1, 0), (1, 0), (0, 1), (9, 0)]
    nameless = [[replace(part, entry=replace(part.entry, file="")) for part in parts] for parts in (local, remote)]
    assert nameless[0] == nameless[1], "all facts, and the BLAKE3 of the files"
    assert all(fault_of(tmp_path, part.entry) is None for part in remote)
    values = concatenate(tmp_path, remote, "error")
    np.testing.assert_array_equal(np.isnan(values), ~concatenate(tmp_path, remote, "valid"))


@pytest.mark.compiler
def test_features_do_not_depend_on_the_dtypes_of_other_shards() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)) * 30
    encoders = Encoders(model_of(3))
    for dtype in ("f8", "f4", "i2", "i4"):
        found = []
        for encoder in (encoders, Encoders(model_of(3))):
            features = np.empty((50, 2), np.float32)
            encoder.encode_checked(rows.astype(dtype), features)
            found.append(np.column_stack([features, encoder.errors(rows.astype(dtype), features)]))
        np.testing.assert_array_equal(*found, err_msg=dtype)


def test_lost_ranges_of_the_fields_of_a_table_are_equal() -> None:
    table = SimpleNamespace(name="table")
    one_shard: Any = SimpleNamespace(extras=[SimpleNamespace(name=name, layout=table) for name in ("a", "b")])
    reports = 2 * [{"dataset": "table", "row": row} for row in ([0, 10], [10, 20], [30, 40])]  # of each field
    expected = [[0, 20], [30, 40]]
    assert module._lost_ranges(one_shard, reports) == {"a": expected, "b": expected}
