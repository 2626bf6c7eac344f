"""Tests of parts with the rows of several files: whole runs over seven small files, one of which spans two parts.

All features are compared, bit for bit, with those that the stand-in computes from the rows of each file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.records import Part
from shardpress.report.verify import verify
from shardpress.result import INDEX, Result, Use
from shardpress.run import budget, encoding_stage
from tests.support.bad_shards import NO_LIMITS, SETTINGS, Shards, bad_lines, encoded
from tests.support.damage import damage
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard
from tests.support.interruptions import FullAfter, parts
from tests.support.logged import differs, mentions, resumes_encoding
from tests.support.protocol import invalid_entries, leftovers
from tests.support.standin import PART_BYTES, UnsyncedDisk

N_ROWS = (5, 9, 3, 7, 6, 20, 4)
PARTS = [[(0, 0, 5), (1, 0, 9)], [(2, 0, 3), (3, 0, 7), (4, 0, 6)], [(5, 0, 16)], [(5, 16, 20), (6, 0, 4)]]
"""Number, first row and end of the rows of each file in each part."""
SKIP = ("--on-bad-data", "skip", *NO_LIMITS)
ONE = ("--threads", "1")  # so that parts are encoded in their order


@pytest.fixture
def files(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Return an empty folder of files. A part has up to 16 rows of up to 3 of them."""
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 3)
    return shards


def add(shards: Shards, *sizes: int) -> None:
    for n_rows in sizes:
        shards.arrays.append(np.empty(0))
        write(shards, len(shards.arrays) - 1, n_rows)


def write(shards: Shards, number: int, n_rows: int | None = None, seed: int = 0) -> None:
    """Write a file, or replace its rows."""
    rng = np.random.default_rng((seed, number))
    rows = rng.normal(size=(n_rows or len(shards.arrays[number]), 4)).astype(np.float32)
    extras = {"y": labels_of(rows)}
    write_shard(shards.folder / f"{number}.h5", rows, extras=extras, fletcher32=True)
    shards.arrays[number] = rows


def labels_of(rows: np.ndarray) -> np.ndarray:
    """Return labels that identify the rows."""
    return np.round(rows[:, 0] * 1e6).astype(np.int64)


def check(shards: Shards, bad: Sequence[int] = ()) -> None:
    """Check all rows of a finished run. `bad` are the numbers of files that cannot be read."""
    opened = open_features(shards.output)
    features, valid, y = (array.compute() for array in (opened.features, opened.valid, opened.extras["y"]))
    model = Result.open(shards.output).model
    expected = [encoded(model, rows) for rows in shards.arrays]
    for number in bad:
        expected[number][:] = np.nan
    sizes = [len(rows) for rows in shards.arrays]
    is_bad = [number in bad for number in range(len(sizes))]
    np.testing.assert_array_equal(valid, ~np.repeat(is_bad, sizes))
    np.testing.assert_array_equal(features, np.concatenate(expected))
    np.testing.assert_array_equal(y, np.concatenate([labels_of(rows) for rows in shards.arrays]))
    with h5py.File(shards.output / INDEX) as index:
        np.testing.assert_array_equal(index["features"][()], features)
        np.testing.assert_array_equal(index["y"][()], y)
    assert invalid_entries(shards.output) == leftovers(shards.output) == []
    assert not verify(str(shards.output)).faults


def rows_in(part: Part) -> list[tuple[int, int, int]]:
    return [(each.shard, each.start, each.stop) for each in part.ranges]


def contents(shards: Shards) -> dict[str, list[tuple[int, int, int]]]:
    """Return the rows in use of each part of a finished run."""
    return {part.file: rows_in(part) for part in Result.open(shards.output).parts}


def append_ids(shards: Shards) -> list[int]:
    """Return the number of the append of each file. All rows of a file must have the same one."""
    found = {each.shard: each.append_id for _, each in Result.open(shards.output).ranges}
    sizes = [len(rows) for rows in shards.arrays]
    ids = open_features(shards.output).extras["append_id"].compute()
    np.testing.assert_array_equal(ids, np.repeat([*found.values()], sizes))
    return [*found.values()]


# -- files that cannot be read -----------------------------------------------------------------------------------------


def test_an_unreadable_file_keeps_its_rows_of_a_part(files: Shards) -> None:
    add(files, *N_ROWS)
    without = files.another("without")
    for number, rows in enumerate(files.arrays):
        if number != 3:
            write_shard(without.folder / f"{number}.h5", rows, extras={"y": labels_of(rows)})
    assert without.run() == 0
    damage(files.folder / "3.h5")
    assert files.run(*SKIP) == 0
    check(files, bad=[3])
    features = open_features(files.output).features.compute()
    others = np.delete(features, range(17, 24), axis=0)
    np.testing.assert_array_equal(others, open_features(without.output).features.compute())
    assert {Path(line["file"]).name for line in bad_lines(files.output)} == {"3.h5"}

    before = contents(files)
    write(files, 3, seed=1)
    assert files.run(*SKIP, "--append") == 0
    check(files)
    after = contents(files)
    (new,) = after.keys() - before.keys()
    assert after.pop(new) == [(3, 0, 7)]
    assert list(after) == list(before)
    assert list(after.values()) == [PARTS[0], [(2, 0, 3), (4, 0, 6)], *PARTS[2:]]
    assert append_ids(files) == [0, 0, 0, 1, 0, 0, 0]
    assert bad_lines(files.output) == []


def test_rows_of_a_file_that_was_damaged_later_stay(files: Shards) -> None:
    """Merging a part would read the file again, although no file has new times."""
    add(files, *N_ROWS)
    assert files.run(*SKIP) == 0
    first = parts(files.output)
    path = files.folder / "2.h5"
    times = path.stat()
    damage(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    write(files, 3, seed=1)
    write(files, 4, seed=1)
    assert files.run(*SKIP, "--append", "--verify", "sizes") == 0
    check(files)
    assert contents(files)[first[1]] == [(2, 0, 3)]


# -- changed files -----------------------------------------------------------------------------------------------------


def test_a_changed_file_changes_only_its_rows(files: Shards, caplog: pytest.LogCaptureFixture) -> None:
    add(files, *N_ROWS)
    assert files.run("--validation-fraction", "0.2") == 0
    assert list(contents(files).values()) == PARTS
    first = parts(files.output)
    use = Result.open(files.output).use()
    write(files, 3, seed=1)
    assert files.run("--append") == 0
    assert mentions(caplog.text, "3.h5")
    check(files)
    assert append_ids(files) == [0, 0, 0, 1, 0, 0, 0]
    second = contents(files)
    (replaced,) = second.keys() - set(first)
    assert second[first[1]] == [(2, 0, 3), (4, 0, 6)]
    assert second[replaced] == [(3, 0, 7)]

    write(files, 4, seed=1)  # more than half of the part is then dead
    assert files.run("--append") == 0
    check(files)
    assert append_ids(files) == [0, 0, 0, 1, 2, 0, 0]
    third = contents(files)
    (merged,) = third.keys() - second.keys()
    assert third[merged] == [(2, 0, 3), (4, 0, 6)]
    assert second.keys() - third.keys() == {first[1]}
    assert not (files.output / first[1]).exists()
    use[17:30] = Use.TRAINING  # an edited file can contain rows of the training
    np.testing.assert_array_equal(Result.open(files.output).use(), use)


# -- interruptions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_finished", "part_bytes", "flags"),
    [
        (3, PART_BYTES // 2, ONE),
        (1, PART_BYTES * 4, ["block_rows=4", "--memory-budget", "16MiB"]),
        (3, PART_BYTES, ["block_rows=1000", "--device-memory-budget", "0", "--threads", "3"]),
    ],
)
def test_a_resumed_run_encodes_only_the_other_rows(
    files: Shards,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    n_finished: int,
    part_bytes: int,
    flags: Sequence[str],
) -> None:
    add(files, *N_ROWS)
    assert files.run(*ONE, disk=FullAfter("part", n_finished)) == 74
    first = {f"parts/{path.name}" for path in (files.output / "parts").iterdir()}
    monkeypatch.setattr(budget, "_PART_BYTES", part_bytes)
    caplog.clear()
    assert files.run(*flags) == 0
    assert resumes_encoding(caplog.text)
    assert not differs(caplog.text)
    check(files)
    found = contents(files)
    assert [rows for file, rows in found.items() if file in first] == PARTS[:n_finished]
    assert all(part.n_live == part.n_rows for part in Result.open(files.output).parts), "no row is encoded twice"


def test_a_file_that_changes_after_an_interruption_is_encoded_again(files: Shards) -> None:
    flags = ("--batch-size", "10", *ONE)
    add(files, *N_ROWS[:2])
    assert files.run(*flags) == 0
    add(files, *N_ROWS[2:])
    assert files.run(*flags, "--append", disk=FullAfter("part", 1)) == 74
    write(files, 3, seed=1)
    assert files.run(*flags, "--append") == 0
    check(files)
    assert append_ids(files) == [0, 0, 1, 1, 1, 1, 1]
    first, resumed, *new = contents(files).values()
    assert first == PARTS[0]
    assert resumed == [(2, 0, 3), (4, 0, 6)]
    assert [rows for each in new for rows in each] == [(3, 0, 7), (5, 0, 8), (5, 8, 20), (6, 0, 4)]


@pytest.mark.process
def test_files_in_another_order_keep_their_features(files: Shards, model: str) -> None:
    add(files, *N_ROWS)
    paths = [str(files.folder / f"{number}.h5") for number in range(len(N_ROWS))]
    flags = ["--output", str(files.output), "--model", model, *SETTINGS, *ONE]
    assert run_with_sizes(["--input", *paths, *flags], FullAfter("part", 2)) == 74
    assert run_with_sizes(["--input", *reversed(paths), *flags], UnsyncedDisk()) == 0
    files.arrays.reverse()
    check(files)
    found = [part for part in contents(files).values() if len(part) > 1]
    assert [(4, 0, 3), (3, 0, 7), (2, 0, 6)] in found
