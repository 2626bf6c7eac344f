"""Tests of refused or unreadable shards: they stop the run, or keep their place and affect no other results.

Sample: the disk fails at 5 moments of a run, and with TEST_CASES=all at every 4th read; each limit is combined with one
kind of bad shards, and with TEST_CASES=all with every one.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import hdf5plugin
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.hdf5.files import FILES
from shardpress.result import INDEX, Result, load_model
from tests.support import standin
from tests.support.bad_shards import NO_LIMITS, Shards, bad_lines, check, errors
from tests.support.cases import case, cross, sample
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

LIMIT = ["--on-bad-data", "skip", "--max-bad"]


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
def test_the_limit_of_bad_shards_is_exact(shards: Shards, limit: str, counts: list[tuple[int, int]]) -> None:
    for refused, unreadable in counts:
        words = f"{refused} refused, {unreadable} unreadable"
        these = shards.another(words)
        spoil(these, refused, unreadable)
        with case(words):
            if refused + unreadable > 2:
                assert these.run(*LIMIT, limit) == 65
                assert not (these.output / INDEX).exists()
                continue
            assert these.run(*LIMIT, limit) == 0
            summary = Result.open(these.output).facts.summary
            assert (summary["n_bad_shards"], summary["n_bad"]) == (2, 10 * unreadable)
            check(these.output, these.arrays[: 10 - refused], range(10 * unreadable))


@pytest.mark.process
@pytest.mark.parametrize(("refused", "unreadable"), [(3, 0), (0, 3)])
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


# -- shards that cannot be read ------------------------------------------------------------------------------------


def with_damage(shards: Shards, options: dict[str, Any]) -> None:
    """Write four shards; a chunk in the middle of the second one cannot be read."""
    shards.fill(30, 41, 0, 50, chunks=(6, 4), maxshape=(None, 4), **options)
    damage(shards.folder / "1.h5", chunk=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"compression": "gzip"}, {"fletcher32": True}, {**hdf5plugin.BZip2()}], ids=["gzip", "sum", "bzip2"]
)
def test_an_unreadable_shard_keeps_its_place_and_affects_nothing(
    shards: Shards, caplog: pytest.LogCaptureFixture, options: dict
) -> None:
    """The model is that of the other shards, no matter how much of this one could be read."""
    with_damage(shards, options)
    file = f"file={shards.folder}/1.h5 dataset=X rows="
    assert shards.run() == 65
    assert mentions(errors(caplog), f"{file}16:24", "[18, 0]")
    good = shards.another("good")
    for i in (0, 2, 3):
        good.add(shards.arrays[i])
    settings = ["--validation-fraction", "0.1", "--batch-size", "16"]
    assert good.run(*settings) == 0
    for sizes in (["block_rows=4"], ["block_rows=64"], ["--memory-budget", "16MiB"]):
        output = shards.output.with_name(" ".join(sizes))
        with case(sizes):
            assert shards.run(*LIMIT, "100%", *settings, *sizes, output=output) == 0
            check(output, shards.arrays, range(30, 71))
            assert load_model(output).fingerprint == load_model(good.output).fingerprint
            lines = bad_lines(output)
            assert {(line["file"], line["dataset"]) for line in lines} == {(f"{shards.folder}/1.h5", "X")}
            assert [i for line in lines for i in range(*line["row"])] == list(range(41))
            assert all(file in line["reason"] for line in lines)


@pytest.mark.process
def test_a_given_model_scans_shards_only_if_bad_data_is_allowed(
    shards: Shards, model: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that allows no bad data encodes the first rows of the damaged file. The next run must not use them."""
    good = shards.another("good")
    good.fill(30)
    assert good.run("--model", model) == 0
    assert "scan" not in Result.open(good.output).facts.summary["seconds"]
    with_damage(shards, {"fletcher32": True})
    flags = ["--model", model, "--threads", "1"]
    assert shards.run(*flags) == 65
    assert "46 of 121 rows" in caplog.text
    assert shards.run(*flags, *LIMIT, "100%") == 0
    check(shards.output, shards.arrays, range(30, 71), load_model(model))
    assert "scan" in Result.open(shards.output).facts.summary["seconds"]


@pytest.mark.process
def test_rows_need_no_range_of_their_own_with_a_given_model(shards: Shards, model: str) -> None:
    """Rows are scaled by the model's range: they may all be bad, or equal, or span an infinite range."""
    flags = [*LIMIT, "100%", "--model", model]
    shards.add(np.array([[1.7e308, 1, 2, np.nan], [-1.7e308, 1, 2, np.nan]]))
    assert shards.run(*flags) == 0
    check(shards.output, shards.arrays, [0, 1], load_model(model))
    shards.rewrite(0, np.array([[1.7e308, 1, 2, 3], [-1.7e308, 1, 2, 3], [0, 1, 2, 3]]))
    assert shards.run(*flags, "--overwrite") == 0
    assert Result.open(shards.output).n_rows == 3


def test_refused_shards_are_left_out_and_named(shards: Shards) -> None:
    shards.fill(20, 20, 20, 20)
    (shards.folder / "1.h5").write_bytes(b"<html>")
    write_shard(shards.folder / "2.h5", np.zeros((20, 5), np.float32))  # another number of columns
    assert shards.run(*LIMIT, "50%") == 0
    bad = Result.open(shards.output).facts.bad_shards
    assert [each["file"] for each in bad] == [f"{shards.folder}/{i}.h5" for i in (1, 2)]
    assert all(f"file={each['file']}" in each["reason"] for each in bad)
    assert open_features(shards.output).features.shape == (40, 2)
    assert bad_lines(shards.output) == [{**each, "dataset": None, "row": None, "columns": []} for each in bad]


@pytest.mark.slow
@pytest.mark.parametrize("call", ["preadv", "open"])
def test_a_failing_disk_is_never_bad_data(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, call: str
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
