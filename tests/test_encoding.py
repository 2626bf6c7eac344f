"""Encoding: every row's features stand at its place, in whole files or none."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.encoding import Encoded, Encoder, Write, encode_parts, plan_parts
from pipeline.gate import Shard
from pipeline.ledger import Entry, Record
from pipeline.plan import Plan
from pipeline.policy import Policy
from pipeline.shards import open_shards
from tests.helpers import numbered, numbered_shards, refused, write_shard


def plan(block_rows: int, part_rows: int, n_threads: int = 2) -> Plan:
    return Plan(n_threads, block_rows, part_rows, resident=True, window_rows=1, max_validation_rows=1)


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
    shards: Sequence[Shard], folder: Path, sizes: Plan, on_bad_data: str = "raise", encoder: Encoder = double
) -> tuple[list, np.ndarray]:
    parts, _ = plan_parts(shards, sizes.part_rows, [])
    done: list[Encoded] = []
    policy = Policy(on_bad_data)
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
    lines, features = encode(shards, tmp_path, plan(2, 4), "skip")
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
