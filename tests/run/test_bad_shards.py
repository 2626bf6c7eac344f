"""Tests of refused or unreadable shards: they stop the run, or keep their place and affect no other results.

Sample: the disk fails at 5 moments of a run, and with TEST_CASES=all at every 4th read; each limit and each storage
layout is combined with one policy for bad data and one kind of bad shards, and with TEST_CASES=all with every one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.hdf5.files import FILES
from shardpress.result import INDEX, Result, load_model
from tests.support import standin
from tests.support.bad_shards import (
    NO_LIMITS,
    Shards,
    bad_lines,
    check,
    errors,
)
from tests.support.cases import cross, sample
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions


def spoil(shards: Shards, refused: int, unreadable: int) -> None:
    """Write ten shards. Some are refused when they are vetted, and some cannot be read."""
    shards.fill(*[10] * 10, fletcher32=True)
    for i in range(refused):
        (shards.folder / f"{9 - i}.h5").write_bytes(b"no HDF5 at all")
    for i in range(unreadable):
        damage(shards.folder / f"{i}.h5")


# Numbers of refused and of unreadable shards; two in all are allowed.
COUNTS = [[(2, 0), (3, 0)], [(0, 2), (0, 3)], [(1, 1), (2, 1), (1, 2)]]


@pytest.mark.process
@pytest.mark.parametrize(("limit", "counts"), cross(["20%", "29.99%"], COUNTS))
def test_the_limit_of_bad_shards_is_exact(
    shards: Shards, caplog: pytest.LogCaptureFixture, limit: str, counts: list[tuple[int, int]]
) -> None:
    for refused, unreadable in counts:
        words = f"{refused} refused, {unreadable} unreadable"
        these = shards.another(words)
        spoil(these, refused, unreadable)
        found = these.run("--on-bad-data", "skip", "--max-bad", limit)
        assert found == (0 if refused + unreadable == 2 else 65), words
        if found:
            assert "--max-bad" in errors(caplog), words
            assert not (these.output / INDEX).exists(), words
            continue
        summary = Result.open(these.output).facts.summary
        assert (summary["n_bad_shards"], summary["n_bad"]) == (2, 10 * unreadable), words
        check(these.output, these.arrays[: 10 - refused], range(10 * unreadable))


@pytest.mark.process
@pytest.mark.parametrize(("refused", "unreadable"), [(1, 0), (0, 1), (3, 0), (0, 3)])
def test_all_damaged_files_are_named_with_sufficient_flags(
    shards: Shards, caplog: pytest.LogCaptureFixture, refused: int, unreadable: int
) -> None:
    spoil(shards, refused, unreadable)
    assert shards.run() == 65
    message = errors(caplog)
    for i in [*range(unreadable), *range(10 - refused, 10)]:
        assert f"{shards.folder}/{i}.h5" in message
    (flags,) = re.findall(r"--on-bad-data skip --max-bad \d+%", message)
    assert shards.run(*flags.split()) == 0


def test_all_rows_of_an_unreadable_shard_count_as_bad(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    spoil(shards, 0, 1)
    flags = ["--on-bad-data", "skip", "--max-bad"]
    assert shards.run(*flags, "9") == 65
    assert mentions(errors(caplog), "10 of 100", 9)
    assert shards.run(*flags, "10") == 0


def test_a_number_of_rows_allows_no_shard_that_cannot_be_opened(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(shards, 1, 0)
    assert shards.run("--on-bad-data", "skip", "--max-bad", "100") == 65
    assert mentions(errors(caplog), "1 of 10 shards", "percentage", "9.h5")
    assert shards.run("--on-bad-data", "skip", "--max-bad", "10%") == 0


# -- shards that cannot be read ------------------------------------------------------------------------------------

WAYS_TO_STORE = [{"compression": "gzip"}, {"fletcher32": True}, {**hdf5plugin.BZip2()}]
STORED = pytest.mark.parametrize("options", WAYS_TO_STORE, ids=["gzip", "fletcher32", "bzip2"])


def with_damage(shards: Shards, options: dict[str, Any]) -> None:
    """Write four shards; a chunk in the middle of the second one cannot be read."""
    shards.fill(30, 41, 0, 50, chunks=(6, 4), maxshape=(None, 4), **options)
    damage(shards.folder / "1.h5", chunk=3)


@STORED
def test_the_error_about_a_damaged_chunk_names_its_rows(
    shards: Shards, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    with_damage(shards, options)
    assert shards.run() == 65
    assert mentions(errors(caplog), f"file={shards.folder}/1.h5 dataset=X rows=16:24", "[18, 0]")


def good_rows_only(shards: Shards) -> Shards:
    """Write the same shards without the damaged one."""
    good = shards.another("good")
    for i in (0, 2, 3):
        good.add(shards.arrays[i])
    return good


@pytest.mark.slow
@STORED
def test_an_unreadable_shard_keeps_its_place_and_affects_nothing(
    shards: Shards, caplog: pytest.LogCaptureFixture, options: dict
) -> None:
    """The model is that of the other shards, no matter how much of this one could be read."""
    with_damage(shards, options)
    good = good_rows_only(shards)
    settings = ["--validation-fraction", "0.1", "--batch-size", "16"]
    assert good.run(*settings) == 0
    for rows in (["block_rows=4"], ["block_rows=64"], ["--memory-budget", "16MiB"]):
        output = shards.output.with_name(" ".join(rows))
        caplog.clear()
        assert shards.run("--on-bad-data", "skip", *NO_LIMITS, *settings, *rows, output=output) == 0, rows
        check(output, shards.arrays, range(30, 71))
        assert f"file={shards.folder}/1.h5 dataset=X rows=" in caplog.text, rows
        assert load_model(output).fingerprint == load_model(good.output).fingerprint, rows
        lines = bad_lines(output)
        assert {(line["file"], line["dataset"]) for line in lines} == {(f"{shards.folder}/1.h5", "X")}, rows
        assert [i for line in lines for i in range(*line["row"])] == list(range(41)), rows
        assert all(f"file={shards.folder}/1.h5 dataset=X rows=" in line["reason"] for line in lines), rows


@pytest.mark.process
def test_a_given_model_scans_shards_if_bad_data_is_allowed(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that allows no bad data encodes the first rows of the damaged file. The next run must not use them."""
    with_damage(shards, {"fletcher32": True})
    flags = ["--model", model, "--threads", "1"]
    assert shards.run(*flags) == 65
    assert "46 of 121 rows" in caplog.text
    (more_flags,) = re.findall(r"--on-bad-data skip --max-bad \d+%", errors(caplog))
    assert shards.run(*flags, *more_flags.split()) == 0
    check(shards.output, shards.arrays, range(30, 71), load_model(model))
    assert "scan" in Result.open(shards.output).facts.summary["seconds"]


@pytest.mark.process
def test_rows_need_no_range_of_their_own_with_a_given_model(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows are scaled by the model's range: they may all be bad, or equal, or span an infinite range."""
    caplog.set_level("INFO", "shardpress")
    shards.add(np.array([[1.7e308, 1, 2, np.nan], [-1.7e308, 1, 2, np.nan]]))
    assert shards.run("--on-bad-data", "skip", "--model", model, *NO_LIMITS) == 0
    check(shards.output, shards.arrays, [0, 1], load_model(model))
    shards.rewrite(0, np.array([[1.7e308, 1, 2, 3], [-1.7e308, 1, 2, 3], [0, 1, 2, 3]]))
    assert shards.run("--on-bad-data", "skip", "--model", model, *NO_LIMITS, "--overwrite") == 0
    assert Result.open(shards.output).n_rows == 3
    assert "constant" not in caplog.text


@pytest.mark.process
def test_a_given_model_and_good_data_need_no_scan(shards: Shards, model: str) -> None:
    shards.fill(30)
    assert shards.run("--model", model) == 0
    assert "scan" not in Result.open(shards.output).facts.summary["seconds"]
    assert list((shards.output / "work").glob("*.npz")) == []


def test_unreadable_values_of_an_extra_dataset_are_filled(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    """This holds for shards whose rows are readable, and for those whose rows are not."""
    with_damage(shards, {"fletcher32": True})
    labels = np.arange(121)
    for number, first, size in ((1, 30, 41), (3, 71, 50)):
        with h5py.File(shards.folder / f"{number}.h5", "a") as file:
            del file["y"]
            file.create_dataset("y", data=labels[first : first + size], chunks=(9,), compression="gzip")
        damage(shards.folder / f"{number}.h5", "y", chunk=2)
        labels[first + 18 : first + 27] = np.iinfo(np.int64).min
    assert shards.run("--on-bad-data", "skip", *NO_LIMITS) == 0
    found = open_features(shards.output)
    assert found.extras["y"].compute().tolist() == labels.tolist()
    assert np.flatnonzero(~found.valid.compute()).tolist() == list(range(30, 71))
    assert mentions(caplog.text, "y", np.iinfo(np.int64).min)
    lines = [line for line in bad_lines(shards.output) if line["dataset"] == "y"]
    rows = {(Path(line["file"]).name, row) for line in lines for row in range(*line["row"])}
    assert rows == {(name, row) for name in ("1.h5", "3.h5") for row in range(18, 27)}


def test_refused_shards_are_left_out_and_named(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(20, 20, 20, 20)
    (shards.folder / "1.h5").write_bytes(b"<html>")
    write_shard(shards.folder / "2.h5", np.zeros((20, 5), np.float32))  # another number of columns
    assert shards.run("--on-bad-data", "skip", "--max-bad", "50%") == 0
    names = [f"{shards.folder}/{i}.h5" for i in (1, 2)]
    bad = Result.open(shards.output).facts.bad_shards
    assert [each["file"] for each in bad] == names
    for each in bad:
        assert f"file={each['file']}" in each["reason"]
        assert each["reason"] in caplog.text
    assert open_features(shards.output).features.shape == (40, 2)
    assert Result.open(shards.output).facts.summary["n_bad_shards"] == 2
    assert bad_lines(shards.output) == [{**each, "dataset": None, "row": None, "columns": []} for each in bad]


def test_a_shard_with_another_width_stops_the_run(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    shards.fill(20)
    shards.add(np.zeros((20, 5), np.float32))
    assert shards.run() == 65
    assert mentions(errors(caplog), f"file={shards.folder}/1.h5", 5, 4, f"file={shards.folder}/0.h5")
    assert not shards.output.exists()


@pytest.mark.process
def test_empty_shards_and_mixed_dtypes_are_not_bad_data(shards: Shards, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    for dtype, size in (("u1", 20), ("f4", 0), (">i2", 20), ("f8", 20), ("?", 9), ("f2", 20)):
        shards.add(rng.integers(0, 2, (size, 4)).astype(dtype))
    assert shards.run() == 0
    assert mentions(capsys.readouterr().out, 89, 4)
    read = {"?": "u1", ">i2": "i2", "f2": "f4"}
    arrays = [rows.astype(read.get(rows.dtype.str.lstrip("|<"), rows.dtype)) for rows in shards.arrays]
    check(shards.output, arrays, [])


@pytest.mark.slow
@pytest.mark.parametrize("call", ["preadv", "open"])
def test_a_failing_disk_is_never_bad_data(
    shards: Shards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
) -> None:
    """The disk may fail while shards are vetted, scanned, trained on, encoded or read for the report."""
    shards.fill(30, 30)
    monkeypatch.setattr(FILES, "sleep", lambda seconds: None)
    original = getattr(FILES, call)
    n_left = [10**9]

    def fail_later(*arguments: Any) -> Any:
        n_left[0] -= 1
        if n_left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*arguments)

    monkeypatch.setattr(FILES, call, fail_later)
    flags = ["--on-bad-data", "skip", *NO_LIMITS]
    assert shards.run(*flags) == 0
    n_calls = 10**9 - n_left[0]
    for n_good in sample(range(0, n_calls, 4), 5):
        output = tmp_path / str(n_good)
        n_left[0] = n_good
        caplog.clear()
        code = shards.run(*flags, output=output)
        assert os.strerror(errno.EIO) in caplog.text
        assert code == 74 or "report: " in caplog.text  # the report needs no sample
        n_left[0] = 10**9
        assert shards.run(*flags, output=output) == 0
        assert standin.features_of(output) == standin.features_of(shards.output)
