"""Tests of parts with the rows of several files: whole runs over seven small files, one of which spans two parts.

All features are compared, bit for bit, with those that the stand-in computes from the rows of each file. Files that
change, and are appended to such parts, are those of `tests/run/test_sequences.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result
from shardpress.run import budget, encoding_stage
from tests.support.bad_shards import SETTINGS, SKIP, Shards, bad_lines, encoded
from tests.support.damage import damage
from tests.support.fields import run_with_sizes
from tests.support.helpers import write_shard
from tests.support.interruptions import FullAfter
from tests.support.logged import resumes_encoding
from tests.support.protocol import invalid_entries, leftovers
from tests.support.standin import PART_BYTES, UnsyncedDisk

N_ROWS = (5, 9, 3, 7, 6, 20, 4)


@pytest.fixture
def files(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """Return a folder of files. A part has up to 16 rows of up to 3 of them."""
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 3)
    rng = np.random.default_rng(0)
    for number, n_rows in enumerate(N_ROWS):
        rows = rng.normal(size=(n_rows, 4)).astype(np.float32)
        write_shard(shards.folder / f"{number}.h5", rows, extras={"y": labels_of(rows)}, fletcher32=True)
        shards.arrays.append(rows)
    return shards


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
    np.testing.assert_array_equal(valid, np.concatenate([np.isfinite(each[:, 0]) for each in expected]))
    np.testing.assert_array_equal(features, np.concatenate(expected))
    np.testing.assert_array_equal(y, np.concatenate([labels_of(rows) for rows in shards.arrays]))
    assert invalid_entries(shards.output) == leftovers(shards.output) == []
    assert not verify(str(shards.output)).faults


def test_an_unreadable_file_keeps_its_rows_of_a_part(files: Shards) -> None:
    """Features of the other files are those of a run without it."""
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


@pytest.mark.process
def test_a_resumed_run_encodes_only_the_other_rows(
    files: Shards, model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its parts are smaller, the files are in another order, and one file has changed."""
    paths = [str(files.folder / f"{number}.h5") for number in range(len(N_ROWS))]
    flags = ["--output", str(files.output), "--model", model, *SETTINGS]
    one_thread = ["--threads", "1"]  # so that parts are encoded in their order
    assert run_with_sizes(["--input", *paths, *flags, *one_thread], FullAfter("part", 2)) == 74
    files.arrays[3] = files.arrays[3] + 1
    write_shard(files.folder / "3.h5", files.arrays[3], extras={"y": labels_of(files.arrays[3])})
    monkeypatch.setattr(budget, "_PART_BYTES", PART_BYTES // 2)
    sizes = ["--threads", "3", "block_rows=1000", "--device-memory-budget", "0"]
    assert run_with_sizes(["--input", *reversed(paths), *flags, *sizes], UnsyncedDisk()) == 0
    assert resumes_encoding(caplog.text)
    files.arrays.reverse()
    check(files)
    result = Result.open(files.output)
    numbers = {shard.id: i for i, shard in enumerate(result.shards)}
    rows = [[(numbers[used.shard], used.start, used.stop) for used in part.ranges] for part in result.parts]
    assert [(4, 0, 3), (2, 0, 6)] in rows, "the other rows of a part of the interrupted run"
    assert [(6, 0, 5), (5, 0, 9)] in rows, "another part of that run"
