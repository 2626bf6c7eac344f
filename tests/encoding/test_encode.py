"""Encoding: every row's features stand at its place, in whole files or none."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.encoding.bad_data import Policy
from pipeline.encoding.encode import Encoded, Encoder, Write, encode_parts, plan_parts
from pipeline.hdf5.files import FILES
from pipeline.output.records import Entry, Record
from pipeline.run.budget import Budget
from pipeline.shards.open import open_shards
from pipeline.shards.shard import Shard
from tests.support.damage import damage
from tests.support.helpers import numbered, numbered_shards, refused, write_shard

RAISE = Policy()


def plan(block_rows: int, part_rows: int, n_threads: int = 2) -> Budget:
    return Budget(n_threads, block_rows, part_rows, True, True, window_rows=1, max_validation_rows=1)


def double(rows: np.ndarray, out: np.ndarray) -> None:
    """Stands for the device: two features, twice the first two columns."""
    out[:] = 2 * rows[:, :2]


def writer(folder: Path) -> Write:
    """Puts files where they belong, as the ledger does."""
    (folder / "parts").mkdir(exist_ok=True)

    def write(stem: str, suffix: str, data: bytes) -> Entry:
        (folder / f"{stem}{suffix}").write_bytes(data)
        return Entry(f"{stem}{suffix}", len(data), "")

    return write


def encode(
    shards: Sequence[Shard],
    folder: Path,
    sizes: Budget,
    policy: Policy = RAISE,
    encoder: Encoder = double,
) -> tuple[list, np.ndarray]:
    parts, _ = plan_parts(shards, sizes.part_rows, [])
    done: list[Encoded] = []
    encode_parts(parts, writer(folder), encoder, 2, sizes, policy, {"command": "test"}, done.append)
    done.sort(key=lambda each: each.part.key)
    assert [each.part for each in done] == parts
    found = []
    for each in done:
        with h5py.File(folder / each.entry.file) as file:
            found.append(file["features"][:])
    return [{"file": each.entry.file, **each.facts} for each in done], np.concatenate(found)


@pytest.mark.parametrize("block_rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("part_rows", [1, 3, 100])
@pytest.mark.parametrize("n_threads", [1, 4])
def test_features_stand_in_the_order_of_the_rows(
    tmp_path: Path, block_rows: int, part_rows: int, n_threads: int
) -> None:
    shards = numbered_shards(tmp_path, 5, 0, 1, 7)
    lines, features = encode(shards, tmp_path, plan(block_rows, part_rows, n_threads))
    assert np.array_equal(features, 2 * numbered(13).astype(np.float32))
    assert sum(line["n_rows"] for line in lines) == 13
    assert all(line["n_rows"] <= part_rows for line in lines)


def test_the_manifest_says_which_rows_a_part_was_made_from(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 5, 2)
    lines, _ = encode(shards, tmp_path, plan(2, 3))
    found = [(line["path"], line["start"], line["stop"], line["n_bad"]) for line in lines]
    assert found == [(shards[0].path, 0, 3, 0), (shards[0].path, 3, 5, 0), (shards[1].path, 0, 2, 0)]
    with h5py.File(tmp_path / lines[1]["file"]) as file:
        assert (file.attrs["source_start"], file.attrs["source_stop"], file.attrs["command"]) == (3, 5, "test")


def test_the_encoder_is_never_entered_twice_at_once(tmp_path: Path) -> None:
    inside = threading.Lock()

    def alone(rows: np.ndarray, out: np.ndarray) -> None:
        assert inside.acquire(blocking=False), "a second thread came in"
        double(rows, out)
        inside.release()

    encode(numbered_shards(tmp_path, *[9] * 20), tmp_path, plan(1, 3, n_threads=4), encoder=alone)


def test_skipped_rows_do_not_shift_the_others(tmp_path: Path) -> None:
    rows = numbered(6, dtype=np.float32)
    rows[2, 1], rows[5, 0] = np.nan, np.inf
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    lines, features = encode(shards, tmp_path, plan(2, 4), Policy("skip"))
    bad = np.array([False, False, True, False, False, True])
    assert np.isnan(features[bad]).all()
    assert np.array_equal(features[~bad], 2 * rows[~bad])
    assert [line["n_bad"] for line in lines] == [1, 1]
    with h5py.File(tmp_path / lines[0]["file"]) as file:
        assert file["valid"][:].tolist() == [True, True, False, True]


def test_bad_rows_stop_the_run_with_their_place(tmp_path: Path) -> None:
    rows = numbered(6, dtype=np.float32)
    rows[3, 1] = np.nan
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    with refused(65, "a.h5", "dataset=X", "nan in row 3, column 1", "--on-bad-data skip"):
        encode(shards, tmp_path, plan(2, 4))


def test_an_interrupt_leaves_whole_files_or_none(tmp_path: Path) -> None:
    calls = []

    def interrupted(rows: np.ndarray, out: np.ndarray) -> None:
        calls.append(len(rows))
        if len(calls) == 4:
            raise KeyboardInterrupt
        double(rows, out)

    shards = numbered_shards(tmp_path, 6, 6, 6)
    with pytest.raises(KeyboardInterrupt):
        encode(shards, tmp_path, plan(2, 6, n_threads=1), encoder=interrupted)
    (path,) = (tmp_path / "parts").iterdir()
    first = 6 * int(path.stem.split("-")[1])
    with h5py.File(path) as file:
        assert np.array_equal(file["features"][:], 2 * numbered(6, first=first).astype(np.float32))


def test_a_failure_stops_the_other_parts_at_their_next_block(tmp_path: Path) -> None:
    def fail(stem: str, suffix: str, data: bytes) -> Entry:
        raise OSError("no")

    parts, _ = plan_parts(numbered_shards(tmp_path, 4, 4), 4, [])
    done: list[Encoded] = []
    with pytest.raises(OSError, match="no"):
        encode_parts(parts, fail, double, 2, plan(1, 4), Policy(), {}, done.append)
    assert not done


def test_parts_that_are_committed_are_not_made_again_whatever_their_size(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 10, 0, 7)
    facts = [
        {"shard": 0, "start": 2, "stop": 5},
        {"shard": 0, "start": 4, "stop": 6},
        {"shard": 2, "start": 0, "stop": 7},
    ]
    records = [Record(f"part-{i}", "", Entry("", 0, ""), fact) for i, fact in enumerate(facts)]
    parts, overlapping = plan_parts(shards, 4, records)
    assert [(part.number, part.source.start, part.source.stop) for part in parts] == [(0, 0, 2), (0, 5, 9), (0, 9, 10)]
    assert overlapping == [records[1]]


# -- committing --------------------------------------------------------------------------------------------------


def test_parts_are_committed_once_each_by_the_thread_that_asked(tmp_path: Path) -> None:
    """The others only write files: what exists is decided by one."""
    parts, _ = plan_parts(numbered_shards(tmp_path, 9, 0, 30), 3, [])
    committed = []

    def commit(done: Encoded) -> None:
        assert threading.current_thread() is threading.main_thread()
        assert (tmp_path / done.entry.file).is_file()
        committed.append(done.part)

    encode_parts(parts, writer(tmp_path), double, 2, plan(1, 3, 4), Policy(), {}, commit)
    assert sorted(committed, key=parts.index) == parts


def test_when_a_commit_fails_nothing_more_is_committed_or_under_way(tmp_path: Path) -> None:
    parts, _ = plan_parts(numbered_shards(tmp_path, 300), 1, [])
    committed = []

    def commit(done: Encoded) -> None:
        committed.append(done)
        if len(committed) == 3:
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        encode_parts(parts, writer(tmp_path), double, 2, plan(1, 1, 3), Policy(), {}, commit)
    n_files = len(list((tmp_path / "parts").iterdir()))
    assert (len(committed), n_files < 20) == (3, True)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dask")] == []


def test_without_parts_nothing_happens(tmp_path: Path) -> None:
    encode_parts([], writer(tmp_path), double, 2, plan(1, 1), Policy(), {}, pytest.fail)


# -- bad data ----------------------------------------------------------------------------------------------------


def test_only_quarantine_lists_bad_rows_and_no_policy_changes_the_features(tmp_path: Path) -> None:
    rows = numbered(50, 3, dtype=np.float32)
    rows[np.random.default_rng(0).random((50, 3)) < 0.05] = np.nan
    shards = open_shards([write_shard(tmp_path / "a.h5", rows)])
    skipped, features = encode(shards, tmp_path, plan(4, 12), Policy("skip"))
    listed, same = encode(shards, tmp_path, plan(3, 9), Policy("quarantine"))
    assert same.tobytes() == features.tobytes()
    assert not any("bad" in line for line in skipped)
    found = [bad for line in listed for bad in line["bad"]]
    assert found == [
        {"row": i, "columns": np.flatnonzero(np.isnan(row)).tolist(), "reason": "nan"}
        for i, row in enumerate(rows)
        if np.isnan(row).any()
    ]
    assert sum(line["n_bad"] for line in skipped) == sum(line["n_bad"] for line in listed) == len(found)


@pytest.mark.parametrize("part_rows", [4, 8, 100])
def test_a_shard_that_cannot_be_read_keeps_its_place_and_its_riders(tmp_path: Path, part_rows: int) -> None:
    names = [
        write_shard(tmp_path / f"{i}.h5", numbered(10, first=10 * i), fletcher32=True, riders={"y": np.arange(10) + i})
        for i in range(3)
    ]
    damage(names[1])
    policy = Policy("quarantine", unreadable={1: "broken"})
    lines, features = encode(open_shards(names), tmp_path, plan(4, part_rows), policy)
    valid, y = (whole(tmp_path, lines, name) for name in ("valid", "y"))
    assert valid.tolist() == [True] * 10 + [False] * 10 + [True] * 10
    assert np.isnan(features[~valid]).all()
    assert np.array_equal(features[valid], 2 * numbered(30)[valid])
    assert y.tolist() == [i + j for i in range(3) for j in range(10)]
    assert [bad for line in lines for bad in line["bad"]] == [
        {"row": [start, min(start + part_rows, 10)], "columns": [], "reason": "broken"}
        for start in range(0, 10, part_rows)
    ]


def whole(folder: Path, lines: list, name: str) -> np.ndarray:
    """A dataset of all parts."""
    found = []
    for line in lines:
        with h5py.File(folder / line["file"]) as file:
            found.append(file[name][:])
    return np.concatenate(found)


RIDERS = {
    "number": (np.arange(1, 31), np.iinfo(np.int64).min),
    "big": (np.arange(1, 31).astype(">f8"), np.nan),
    "code": (np.array([b"a%d" % i for i in range(30)], "S3"), b""),
    "text": (np.array([f"no. {i}" for i in range(30)], dtype=object), b""),
}


@pytest.mark.parametrize("name", RIDERS)
@pytest.mark.parametrize("part_rows", [4, 12, 100])
def test_what_cannot_be_read_of_a_rider_becomes_nothing_and_the_rest_rides_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, part_rows: int
) -> None:
    """Which values that are depends on the rider's chunks, and not on the parts."""
    path = tmp_path / "x.h5"
    values, nothing = RIDERS[name]
    write_shard(path, numbered(30), riders={"beside": np.arange(30)})
    with h5py.File(path, "a") as file:
        dtype = h5py.string_dtype() if values.dtype == object else values.dtype
        file.create_dataset(name, data=values, chunks=(7,), compression="gzip", dtype=dtype)
    damage(path, name, chunk=2)
    shards = open_shards([str(path)])
    lines, features = encode(shards, tmp_path, plan(4, part_rows), Policy("quarantine"))
    expected = values.copy()
    expected[14:21] = nothing
    found = whole(tmp_path, lines, name)
    np.testing.assert_array_equal(found, [each.encode() if isinstance(each, str) else each for each in expected])
    with h5py.File(tmp_path / lines[0]["file"]) as file:
        assert file[name].dtype == dtype
    assert whole(tmp_path, lines, "beside").tolist() == list(range(30))
    assert np.array_equal(features, 2 * numbered(30))
    assert whole(tmp_path, lines, "valid").all()
    assert sum(line["n_bad"] for line in lines) == 0
    listed = [bad for line in lines for bad in line["bad"]]
    assert sorted(row for bad in listed for row in range(*bad["row"])) == list(range(14, 21))
    assert {(bad["dataset"], f"dataset={name} rows=" in bad["reason"]) for bad in listed} == {(name, True)}
    assert (
        f"values of {name}, which rides along, cannot be read and become {nothing or 'empty'}: file={path}"
        in caplog.text
    )
    with refused(65, str(path), f"dataset={name} rows=", "cannot be read"):
        encode(shards, tmp_path, plan(4, part_rows))


def test_what_cannot_be_read_of_a_rider_is_not_said_to_be_there(tmp_path: Path) -> None:
    lacking = write_shard(tmp_path / "0.h5", numbered(3))
    path = tmp_path / "1.h5"
    write_shard(path, numbered(30))
    with h5py.File(path, "a") as file:
        for name in ("y", "kind"):
            file.create_dataset(name, data=np.zeros(30, "i1"), chunks=(7,), compression="gzip")
        file["__categories/kind"] = [b"a"]
    damage(path, "y", chunk=2)
    damage(path, "kind", chunk=1)
    lines, _ = encode(open_shards([lacking, str(path)]), tmp_path, plan(4, 12), Policy("skip"))
    for name, first, nothing in (("y", 14, -128), ("kind", 7, -1)):
        expected = np.r_[[False] * 3, [True] * 30]
        expected[3 + first : 10 + first] = False
        assert np.array_equal(whole(tmp_path, lines, f"{name}_present"), expected)
        assert np.array_equal(whole(tmp_path, lines, name), np.where(expected, 0, nothing))


def test_i9_a_rider_that_the_storage_fails_to_give_is_no_bad_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(tmp_path / "x.h5", numbered(5), riders={"y": np.arange(5)})
    shards = open_shards([str(tmp_path / "x.h5")])
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    (tmp_path / "x.h5").unlink()
    policy = Policy("skip", unreadable={0: "broken"})
    with refused(74, "dataset=y rows=0:5", "No such file"):
        encode(shards, tmp_path, plan(4, 8), policy)


def test_rows_outside_a_models_range_are_counted_for_each_part(tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 10)
    policy = Policy("raise", minimum=np.array([10.0, 0.0]), maximum=np.array([1e9, 61.0]))
    lines, _ = encode(shards, tmp_path, plan(2, 4), policy)
    assert [line["n_outside"] for line in lines] == [1, 1, 2]  # rows 0, 7, and 8 and 9
