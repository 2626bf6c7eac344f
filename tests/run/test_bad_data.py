"""Tests of bad shards and of rerunning over bad data: interrupted, repaired in between, or with other settings.

Refused or unreadable shards stop the run, or keep their place and affect no other results.

Sample: the disk fails at 5 moments of a run, and with TEST_CASES=all at every 4th read.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.report.summary import report_of
from shardpress.result.features import open_features
from shardpress.result.finished import INDEX, Result, Use, load_model
from tests.support import standin
from tests.support.bad_shards import SKIP, InterruptedDisk, Shards, bad_lines, check, errors, fill_with_bad_data
from tests.support.cases import case, sample
from tests.support.damage import damage
from tests.support.faulty import failing_reads
from tests.support.logged import mentions

LIMIT = ["--on-bad-data", "skip", "--max-bad"]


@pytest.mark.process
def test_a_run_interrupted_anywhere_resumes_with_the_same_bits(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A name of a file cannot forge a line of the log."""
    bad = fill_with_bad_data(shards)
    name = "x\n12:00:00 ERROR forged\x1b[31m.h5"
    (shards.folder / "x.h5").rename(shards.folder / name)
    flags = [*SKIP, "--threads", "3", "--validation-fraction", "0.2"]
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, bad)
    expected = standin.features_of(shards.output)
    use = Result.open(shards.output).use()
    assert 0 < np.count_nonzero(use == Use.VALIDATION) < 78
    lines = bad_lines(shards.output)
    assert [(Path(line["file"]).name, line["row"]) for line in lines[:3]] == [(name, None), ("0.h5", 3), ("0.h5", 17)]
    assert {Path(line["file"]).name for line in lines[3:]} == {"1.h5"}
    assert all(record.getMessage().isprintable() for record in caplog.records)
    for folder, number in (("work", 0), ("work", 3), ("parts", 1), ("parts", 5)):
        output = tmp_path / f"{folder}-{number}"
        assert shards.run(*flags, output=output, disk=InterruptedDisk(folder, number)) == 130
        assert not (output / INDEX).exists()
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == expected
        np.testing.assert_array_equal(Result.open(output).use(), use)
        assert bad_lines(output) == lines


@pytest.mark.process
@pytest.mark.parametrize(("stop", "with_model"), [(("work", 2), False), (("parts", 5), True)], ids=str)
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


@pytest.mark.process
def test_the_limit_of_bad_shards_is_exact_for_rows_and_results(shards: Shards, model: str) -> None:
    """Refused and unreadable shards count together."""
    bad = fill_with_bad_data(shards)
    flags = ["--model", model]
    assert shards.run(*flags, *LIMIT, "49.99%") == 65
    assert not (shards.output / INDEX).exists()
    assert shards.run(*flags, *LIMIT, "50%") == 0
    check(shards.output, shards.arrays, bad, load_model(model))
    assert report_of(Result.open(shards.output)).summary.n_bad_shards == 2
    before = (shards.output / INDEX).read_bytes()
    for limit in (["--on-bad-data", "raise"], [*LIMIT, "49.99%"]):
        assert shards.run(*flags, *limit) == 65
        assert (shards.output / INDEX).read_bytes() == before


@pytest.mark.process
def test_the_limit_of_bad_rows_of_an_append_refers_to_its_rows(shards: Shards) -> None:
    """Otherwise a small file of only bad rows would hardly be noticed among many good rows."""
    shards.fill(100)
    flags = [*LIMIT, "20%"]
    assert shards.run(*flags) == 0
    before = (shards.output / INDEX).read_bytes()
    shards.fill(20)
    rows = shards.arrays[1]
    for n_bad, code in ((5, 65), (4, 0)):
        shards.rewrite(1, np.where(np.arange(20)[:, None] < n_bad, np.float32(np.nan), rows))
        assert shards.run("--append", *flags) == code
        assert ((shards.output / INDEX).read_bytes() == before) == (code != 0)
    check(shards.output, shards.arrays, range(100, 104))


def add_codes(shards: Shards, number: int) -> None:
    """Add extras to a shard, whose chunks can be damaged one by one: numbers and strings of variable length."""
    with h5py.File(shards.folder / f"{number}.h5", "a") as file:
        codes = 100 * number + np.arange(len(file["X"]))
        file.create_dataset("code", data=codes, chunks=(4,), fletcher32=True)
        names = [f"row {code}" for code in codes]
        file.create_dataset("name", data=names, chunks=(4,), compression="gzip", dtype=h5py.string_dtype())


@pytest.mark.parametrize(("damages", "has_limit"), [({1: "code", 2: "name"}, False), ({0: "name", 2: "X"}, True)])
def test_files_with_damaged_extras_are_named_before_the_training(
    shards: Shards, caplog: pytest.LogCaptureFixture, damages: dict[int, str], has_limit: bool
) -> None:
    shards.fill(30, 41, 30, chunks=(6, 4), fletcher32=True)
    for number in range(3):
        add_codes(shards, number)
    for number, dataset in damages.items():
        damage(shards.folder / f"{number}.h5", dataset, chunk=3)
    assert shards.run() == 65
    message = errors(caplog)
    assert mentions(message, "2 of 3 files", *(f"{number}.h5" for number in damages))
    for number, dataset in damages.items():
        assert mentions(caplog.text, "WARNING", f"file={shards.folder}/{number}.h5 dataset={dataset}")
    assert "training:" not in caplog.text
    (flags,) = re.findall(r"--on-bad-data skip(?: --max-bad \d+%)?", message)
    assert ("--max-bad" in flags) == has_limit
    assert shards.run(*flags.split()) == 0


@pytest.mark.parametrize("is_finished", [True, False])
def test_lost_values_of_extras_are_refused_as_in_a_first_run(shards: Shards, is_finished: bool) -> None:
    shards.fill(30, 41)
    for number in range(2):
        add_codes(shards, number)
    damage(shards.folder / "1.h5", "code", chunk=3)
    first = shards.output.with_name("first")
    assert shards.run(output=first) == 65
    disk = None if is_finished else InterruptedDisk("parts", 4)
    assert shards.run(*SKIP, disk=disk) == (0 if is_finished else 130)
    assert shards.run() == 65
    assert shards.run(*SKIP) == 0
    codes = open_features(shards.output).extras["code"].compute()
    expected = np.concatenate([np.arange(30), np.arange(100, 141)])
    assert np.flatnonzero(codes != expected).tolist() == [42, 43, 44, 45]


# -- shards that cannot be read ------------------------------------------------------------------------------------


def with_damage(shards: Shards) -> None:
    """Write four shards; a chunk in the middle of the second one cannot be read."""
    shards.fill(30, 41, 0, 50, chunks=(6, 4), maxshape=(None, 4), fletcher32=True)
    damage(shards.folder / "1.h5", chunk=3)


@pytest.mark.slow
def test_an_unreadable_shard_keeps_its_place_and_affects_nothing(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is that of the other shards, no matter how much of this one could be read."""
    with_damage(shards)
    file = f"file={shards.folder}/1.h5 dataset=X rows="
    assert shards.run() == 65
    assert mentions(errors(caplog), f"{file}16:24", "[18, 0]")
    good = shards.another("good")
    for i in (0, 2, 3):
        good.add(shards.arrays[i])
    settings = ["--validation-fraction", "0.1", "--batch-size", "16"]
    assert good.run(*settings) == 0
    for sizes in (["block_rows=4"], ["--memory-budget", "16MiB"]):
        output = shards.output.with_name(" ".join(sizes))
        with case(sizes):
            assert shards.run(*LIMIT, "100%", *settings, *sizes, output=output) == 0
            check(output, shards.arrays, range(30, 71))
            assert load_model(output).fingerprint == load_model(good.output).fingerprint
            lines = bad_lines(output)
            assert [i for line in lines for i in range(*line["row"])] == list(range(41))
            assert all(file in line["reason"] for line in lines)


@pytest.mark.process
def test_rows_of_a_run_that_met_a_damaged_file_are_not_used_if_bad_data_is_allowed(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If a model is given, the first of these runs does not scan, and encodes the first rows of the damaged file."""
    with_damage(shards)
    flags = ["--model", model, "--threads", "1"]
    assert shards.run(*flags) == 65
    assert "46 of 121 rows" in caplog.text
    assert shards.run(*flags, *LIMIT, "100%") == 0
    check(shards.output, shards.arrays, range(30, 71), load_model(model))
    assert "scan" in report_of(Result.open(shards.output)).summary.seconds


@pytest.mark.slow
def test_a_failing_disk_is_never_bad_data(shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The disk may fail while shards are vetted, scanned, trained on, encoded or read for the report."""
    shards.fill(30, 30)
    with failing_reads(-1, errno.EIO) as n_calls:
        assert shards.run(*SKIP) == 0
        n_reads = n_calls()
    for number in sample(range(0, n_reads, 4), 5):
        output = tmp_path / str(number)
        caplog.clear()
        with failing_reads(number, errno.EIO, is_permanent=True):
            code = shards.run(*SKIP, output=output)
        assert os.strerror(errno.EIO) in caplog.text
        assert code == 74 or "report: " in caplog.text  # the report needs no sample
        assert shards.run(*SKIP, output=output) == 0
        assert standin.features_of(output) == standin.features_of(shards.output)
