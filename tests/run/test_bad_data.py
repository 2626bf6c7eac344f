"""Tests of rerunning over bad data: interrupted anywhere, repaired in between, or with other settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.result import INDEX, Result, Use, load_model
from tests.support import standin
from tests.support.bad_shards import (
    NO_LIMITS,
    InterruptedDisk,
    Shards,
    bad_lines,
    check,
    fill_with_bad_data,
    results,
    state,
)
from tests.support.damage import damage
from tests.support.logged import COMPLETE, mentions

SKIP = ["--on-bad-data", "skip", *NO_LIMITS]


@pytest.mark.process
def test_a_run_interrupted_anywhere_resumes_with_the_same_bits(shards: Shards, tmp_path: Path) -> None:
    bad = fill_with_bad_data(shards)
    flags = [*SKIP, "--threads", "3", "--validation-fraction", "0.2"]
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, bad)
    expected = standin.features_of(shards.output)
    use = Result.open(shards.output).use()
    assert 0 < np.count_nonzero(use == Use.VALIDATION) < 78
    for folder, number in (("work", 0), ("work", 2), ("work", 3), ("parts", 0), ("parts", 1), ("parts", 5)):
        output = tmp_path / f"{folder}-{number}"
        assert shards.run(*flags, output=output, disk=InterruptedDisk(folder, number)) == 130
        assert not (output / INDEX).exists()
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == expected
        np.testing.assert_array_equal(Result.open(output).use(), use)
        assert bad_lines(output) == bad_lines(shards.output)


@pytest.mark.process
@pytest.mark.parametrize(
    ("stop", "with_model"), [(("work", 2), False), (("parts", 5), False), (("parts", 5), True)], ids=str
)
def test_a_shard_that_was_repaired_between_runs_is_read(
    shards: Shards, model: str, stop: tuple[str, int], with_model: bool
) -> None:
    """A copy from a backup has the same size and time; nevertheless no result without the shard is reused."""
    shards.fill(30, 41, 50, fletcher32=True)
    path = shards.folder / "1.h5"
    good = path.read_bytes()
    status = path.stat()
    damage(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    flags = [*SKIP, *(["--model", model] if with_model else [])]
    assert shards.run(*flags, disk=InterruptedDisk(*stop)) == 130
    with open(path, "r+b") as file:
        file.write(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, [], load_model(model) if with_model else None)


# -- after the run has finished ---------------------------------------------------------------------------------------


def test_bad_rows_and_shards_are_listed_and_a_rerun_is_complete(shards: Shards, capsys: Any) -> None:
    bad = fill_with_bad_data(shards)
    assert shards.run(*SKIP) == 0
    lines = bad_lines(shards.output)
    assert [Path(line["file"]).name for line in lines[:3]] == ["x.h5", "0.h5", "0.h5"]
    assert [line["row"] for line in lines[1:3]] == bad[:2]
    assert {Path(line["file"]).name for line in lines[3:]} == {"1.h5"}
    before = state(shards.output)
    capsys.readouterr()
    assert shards.run(*SKIP) == 0
    summary = capsys.readouterr().out
    assert summary.startswith(COMPLETE)
    assert mentions(summary, 121, 43, 2)
    assert state(shards.output) == before


@pytest.mark.process
@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
def test_results_with_more_bad_shards_than_allowed_are_refused(shards: Shards, model: str, with_model: bool) -> None:
    fill_with_bad_data(shards)
    flags = ["--model", model] if with_model else []
    assert shards.run(*flags, *SKIP) == 0
    before = results(shards.output)
    for limit in (["--on-bad-data", "raise"], ["--on-bad-data", "skip", "--max-bad", "49%"]):
        assert shards.run(*flags, *limit) == 65
        assert results(shards.output) == before
    assert shards.run(*flags, "--on-bad-data", "skip", "--max-bad", "50%") == 0


@pytest.mark.process
@pytest.mark.parametrize("limit", ["4", "20%"])
def test_the_limit_of_bad_rows_of_an_append_refers_to_its_rows(shards: Shards, limit: str) -> None:
    """Otherwise a small file of only bad rows would hardly be noticed among many good rows."""

    def add(n_rows: int, n_bad: int) -> None:
        rows = np.random.default_rng(n_rows).normal(size=(n_rows, 4)).astype(np.float32)
        rows[:n_bad, 1] = np.nan
        shards.add(rows)

    add(100, 4)
    flags = ["--on-bad-data", "skip", "--max-bad", limit]
    assert shards.run(*flags) == 0
    add(20, 5)
    before = results(shards.output)
    assert shards.run("--append", *flags) == 65
    assert results(shards.output) == before
    shards.rewrite(1, np.concatenate([shards.arrays[1][1:], shards.arrays[0][-1:]]))
    assert shards.run("--append", *flags) == 0
    bad = [0, 1, 2, 3, *range(100, 104)]
    check(shards.output, shards.arrays, bad)
    (shards.output / Result.open(shards.output).parts[0].file).unlink()
    assert shards.run("--append", *flags) == 0
    check(shards.output, shards.arrays, bad)


@pytest.mark.process
def test_a_limit_of_an_append_does_not_refer_to_earlier_shards(shards: Shards) -> None:
    shards.fill(30, 41, fletcher32=True)
    damage(shards.folder / "1.h5")
    assert shards.run(*SKIP) == 0
    shards.fill(20, seed=1)
    limited = ["--append", "--max-bad", "1%"]
    assert shards.run(*limited) == 0
    check(shards.output, shards.arrays, range(30, 71))
    before = state(shards.output)
    assert shards.run(*limited) == 0
    assert state(shards.output) == before


def test_names_of_bad_files_cannot_forge_lines(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(30)
    name = "x\n12:00:00 ERROR forged\x1b[31m.h5"
    (shards.folder / name).write_bytes(b"no HDF5")
    assert shards.run(*SKIP) == 0
    assert all(record.getMessage().isprintable() for record in caplog.records)
    (line,) = bad_lines(shards.output)
    assert line["file"] == f"{shards.folder}/{name}"
