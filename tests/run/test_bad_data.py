"""Tests of rerunning over bad data: interrupted anywhere, repaired in between, or with other settings.

Sample: each policy for bad data with one number of threads; with TEST_CASES=all with both. One or two checkpoints are
damaged in two ways; with TEST_CASES=all in every way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.result import INDEX, load_model
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
from tests.support.cases import ALL_CASES
from tests.support.damage import damage
from tests.support.logged import COMPLETE, mentions, n_recomputed, resumed_step, reuses
from tests.support.soak_protocol import records


@pytest.mark.process
@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_run_interrupted_anywhere_resumes_with_the_same_bits(shards: Shards, tmp_path: Path, threads: str) -> None:
    bad = fill_with_bad_data(shards)
    flags = ["--on-bad-data", "skip", "--threads", threads, *NO_LIMITS]
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, bad)
    expected = standin.features_of(shards.output)
    lines = bad_lines(shards.output)
    for folder, number in (("work", 0), ("work", 2), ("work", 3), ("parts", 0), ("parts", 1), ("parts", 5)):
        output = tmp_path / f"{folder}-{number}"
        assert shards.run(*flags, output=output, disk=InterruptedDisk(folder, number)) == 130
        assert not (output / INDEX).exists()
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == expected
        assert lines == bad_lines(output)
        assert shards.run(*flags, output=output) == 0


@pytest.mark.process
def test_allowing_the_bad_rows_resumes_with_the_same_scan(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "shardpress")
    shards.fill(30, 30)
    rows = shards.arrays[1].copy()
    rows[20] = np.nan
    shards.rewrite(1, rows)
    assert shards.run() == 65
    (before,) = (shards.output / "work").glob("scan-*")
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    assert reuses(caplog.text, "scan")
    assert list((shards.output / "work").glob("scan-*")) == [before]
    check(shards.output, shards.arrays, [50])


def test_a_rerun_over_unreadable_shards_is_already_complete(shards: Shards, capsys: Any) -> None:
    fill_with_bad_data(shards)
    flags = ["--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags) == 0
    before = state(shards.output)
    capsys.readouterr()
    assert shards.run(*flags) == 0
    summary = capsys.readouterr().out
    assert summary.startswith(COMPLETE)
    assert mentions(summary, 121, 43, 2)
    assert state(shards.output) == before


@pytest.mark.process
@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
@pytest.mark.parametrize("stop", [("work", 2), ("parts", 5)], ids=str)
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
    flags = ["--on-bad-data", "skip", *NO_LIMITS, *(["--model", model] if with_model else [])]
    if with_model:
        stop = ("parts", 5)
    assert shards.run(*flags, disk=InterruptedDisk(*stop)) == 130
    with open(path, "r+b") as file:
        file.write(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, [], load_model(model) if with_model else None)


DAMAGE = {
    "flipped": lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    "truncated": lambda data: data[:-10],
    "emptied": lambda data: b"",
    "gone": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("n_damaged", [1, 2])
def test_training_resumes_from_the_last_intact_checkpoint(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture, n_damaged: int
) -> None:
    caplog.set_level("INFO", "shardpress")
    shards.fill(100)
    flags = ["checkpoint_seconds=0", "--epochs", "4"]
    assert shards.run(*flags, output=tmp_path / "undisturbed") == 0
    # Without TEST_CASES=all, each kind of damage is tested with one number of damaged checkpoints.
    for fault in DAMAGE if ALL_CASES else [*DAMAGE][n_damaged - 1 :: 2]:
        output = tmp_path / fault
        assert shards.run(*flags, output=output, disk=InterruptedDisk("work", 12)) == 130, fault
        found = [record for record in records(output) if record["key"].startswith("checkpoint")]
        earlier, last = sorted(found, key=lambda record: record["key"])
        for record in (earlier, last)[-n_damaged:]:
            path = output / record["entry"]["file"]
            if DAMAGE[fault] is None:
                path.unlink()
            else:
                path.write_bytes(DAMAGE[fault](path.read_bytes()))
        caplog.clear()
        assert shards.run(*flags, output=output) == 0, fault
        assert n_recomputed(caplog.text) == n_damaged, fault
        step = int(earlier["key"].split("-")[1])
        assert (resumed_step(caplog.text) == step) == (n_damaged == 1), fault
        assert standin.features_of(output) == standin.features_of(tmp_path / "undisturbed"), fault


# -- another policy after the run has finished ------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("with_model", [False, True], ids=["trained", "given"])
@pytest.mark.parametrize(
    "flags",
    [["--on-bad-data", "raise"], ["--on-bad-data", "skip", "--max-bad", "35%"]],
    ids=["raise", "rows"],
)
def test_results_with_more_bad_data_than_allowed_are_refused(
    shards: Shards, model: str, flags: list[str], with_model: bool
) -> None:
    fill_with_bad_data(shards)
    (shards.folder / "x.h5").unlink()
    flags = [*flags, *(["--model", model] if with_model else [])]
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS, *flags[4 if flags[1] == "skip" else 2 :]) == 0
    before = results(shards.output)
    assert shards.run(*flags) == 65
    assert results(shards.output) == before


def test_results_with_more_bad_shards_than_allowed_are_refused(shards: Shards) -> None:
    fill_with_bad_data(shards)
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    before = results(shards.output)
    assert shards.run("--on-bad-data", "skip", "--max-bad", "49%") == 65
    assert results(shards.output) == before
    assert shards.run("--on-bad-data", "skip", "--max-bad", "50%") == 0


def test_bad_rows_and_shards_are_listed(shards: Shards, capsys: Any) -> None:
    bad = fill_with_bad_data(shards)
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    lines = bad_lines(shards.output)
    assert [line["row"] for line in lines[1:3]] == bad[:2]
    assert lines[0]["file"].endswith("x.h5")
    assert {Path(line["file"]).name for line in lines[3:]} == {"1.h5"}
    before = results(shards.output)
    capsys.readouterr()
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    assert capsys.readouterr().out.startswith(COMPLETE)
    assert results(shards.output) == before


def test_the_list_of_bad_rows_is_removed_with_its_results(shards: Shards) -> None:
    shards.fill(30)
    assert shards.run("--on-bad-data", "skip") == 0
    assert bad_lines(shards.output) == []
    assert shards.run("--seed", "1", "--overwrite") == 0
    assert not (shards.output / "bad_rows.jsonl").exists()


def test_names_of_bad_files_cannot_forge_lines(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(30)
    name = "x\n12:00:00 ERROR forged\x1b[31m.h5"
    (shards.folder / name).write_bytes(b"no HDF5")
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    assert all(record.getMessage().isprintable() for record in caplog.records)
    (line,) = bad_lines(shards.output)
    assert line["file"] == f"{shards.folder}/{name}"
    assert len((shards.output / "bad_rows.jsonl").read_text().splitlines()) == 1
