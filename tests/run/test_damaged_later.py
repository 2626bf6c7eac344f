"""Tests of files that are damaged after a run has encoded them: an append keeps what is known about their rows.

Anything else that has changed in such a file makes its unreadable rows bad, as in a first run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.output.folder import REPORT
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result, load_model
from shardpress.run import difference
from tests.support.bad_shards import SKIP, Shards, check, encoded
from tests.support.damage import damage
from tests.support.interruptions import FullAfter
from tests.support.logged import mentions

N_ROWS = 40
CHUNK_ROWS = 8


def write(shards: Shards, number: int, rows: np.ndarray) -> None:
    """Write a shard with two extras. The chunks of all datasets can be damaged one by one."""
    shards.rewrite(number, rows, chunks=(CHUNK_ROWS, 4), fletcher32=True)
    names = np.array([b"row %d" % i for i in range(len(rows))])
    with h5py.File(shards.folder / f"{number}.h5", "a") as file:
        for name, values in (("code", np.arange(len(rows))), ("name", names)):
            file.create_dataset(name, data=values, chunks=(CHUNK_ROWS,), fletcher32=True)


@pytest.fixture
def finished(shards: Shards) -> Shards:
    """Return two shards and their result."""
    shards.fill(N_ROWS, N_ROWS)
    for number in range(2):
        write(shards, number, shards.arrays[number])
    assert shards.run(*SKIP) == 0
    return shards


def changed(name: str, row: int) -> Callable[[Path], None]:
    """Return a function that changes the value of a row in a dataset of a file."""

    def change(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            file[name][row] = file[name][(row + CHUNK_ROWS) % N_ROWS]

    return change


def damaged(name: str, chunk: int = 1) -> Callable[[Path], None]:
    return lambda path: damage(path, name, chunk)


def extras_of(output: Path) -> list[list[object]]:
    extras = open_features(output).extras
    return [extras[name].compute().tolist() for name in ("code", "name")]


DAMAGES = {
    "rows": ([damaged("X")], CHUNK_ROWS),
    "an extra": ([damaged("code")], CHUNK_ROWS),
    "rows and another chunk of an extra": ([damaged("X"), damaged("name", 3)], 2 * CHUNK_ROWS),
    "the same rows and extras": ([damaged("X"), damaged("code")], CHUNK_ROWS),
    "all rows": ([damaged("X", i) for i in range(N_ROWS // CHUNK_ROWS)], N_ROWS),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_stored_of_a_damaged_file_stays(finished: Shards, name: str, caplog: pytest.LogCaptureFixture) -> None:
    changes, n_uncompared = DAMAGES[name]
    path = finished.folder / "1.h5"
    before = extras_of(finished.output)
    intact = path.read_bytes()
    for change in changes:
        change(path)
    assert finished.run("--append", *SKIP) == 0
    check(finished.output, finished.arrays, [])
    assert extras_of(finished.output) == before
    result = Result.open(finished.output)
    assert result.facts.rows.bad.n_uncompared == n_uncompared
    assert mentions(caplog.text, f"file={path}", "Everything else in this file is as in the result")
    assert mentions(caplog.text, f"output={finished.output}", "1.h5", f"{n_uncompared} rows could not be compared")
    assert f"{n_uncompared} earlier rows could not be compared" in (finished.output / REPORT).read_text()
    assert not verify(str(finished.output), 1000).faults

    assert result.facts.details.warnings.n > 0
    finished.arrays.append(finished.arrays[0] + 1)
    write(finished, 2, finished.arrays[2])
    assert finished.run("--append", *SKIP) == 0
    check(finished.output, finished.arrays, [])
    later = Result.open(finished.output).facts
    assert later.rows.bad.n_uncompared == n_uncompared
    assert later.details.warnings.n == 0, "a known damage is no warning every night"

    path.write_bytes(intact)
    assert finished.run("--append", *SKIP) == 0
    check(finished.output, finished.arrays, [])
    assert Result.open(finished.output).facts.rows.bad.n_uncompared == 0


def test_verify_counts_the_rows_that_it_cannot_compare(finished: Shards) -> None:
    damage(finished.folder / "1.h5")
    found = verify(str(finished.output), 1000)
    assert (found.rows.n_rows, found.rows.n_unread, found.faults) == (N_ROWS, N_ROWS, [])
    assert f"{N_ROWS} rows could not be compared" in str(found)


OTHERS = {
    "a value": [damaged("X"), changed("X", 30)],
    "a value of an extra": [damaged("X"), changed("code", 30)],
    "a value of an extra in damaged rows": [damaged("X"), changed("name", CHUNK_ROWS + 2)],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_changes_make_the_rows_of_a_damaged_file_bad(finished: Shards, name: str) -> None:
    for change in reversed(OTHERS[name]):
        change(finished.folder / "1.h5")
    assert finished.run("--append", *SKIP) == 0
    check(finished.output, finished.arrays, range(N_ROWS, 2 * N_ROWS))
    with h5py.File(finished.folder / "1.h5") as file:
        codes = file["code"][()].tolist()
    assert extras_of(finished.output)[0][N_ROWS:] == codes
    assert Result.open(finished.output).facts.rows.bad.n_uncompared == 0


def test_another_extra_in_rows_with_a_damaged_one_is_not_kept(finished: Shards) -> None:
    path = finished.folder / "1.h5"
    changed("name", CHUNK_ROWS + 2)(path)
    damage(path, "code", 1)
    assert finished.run("--append", *SKIP) == 0
    codes, names = extras_of(finished.output)
    known = [*range(N_ROWS), *range(CHUNK_ROWS), *range(2 * CHUNK_ROWS, N_ROWS)]
    assert [code for code in codes if code in range(N_ROWS)] == known
    assert names[N_ROWS + CHUNK_ROWS + 2] == f"row {2 * CHUNK_ROWS + 2}"


def test_damaged_files_with_other_rows_are_new(finished: Shards) -> None:
    """The rows of the result are in another file now, and the damaged one in its place has never been encoded."""
    (finished.folder / "1.h5").rename(finished.folder / "2.h5")
    write(finished, 1, finished.arrays[0] + 1)
    damage(finished.folder / "1.h5")
    assert finished.run("--append", *SKIP) == 0
    found = open_features(finished.output)
    assert found.valid.compute().tolist() == [True] * 2 * N_ROWS + [False] * N_ROWS
    model = load_model(finished.output)
    rows = np.concatenate([finished.arrays[0], open_rows(finished.folder / "2.h5")])
    np.testing.assert_array_equal(found.features.compute()[: 2 * N_ROWS], encoded(model, rows))


def open_rows(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return np.asarray(file["X"][()])


def test_the_rows_of_the_only_file_stay_if_bad_data_is_allowed(shards: Shards) -> None:
    shards.fill(N_ROWS)
    write(shards, 0, shards.arrays[0])
    assert shards.run() == 0
    damage(shards.folder / "0.h5", chunk=2)
    assert shards.run("--append") == 65
    assert shards.run("--append", *SKIP) == 0
    check(shards.output, shards.arrays, [])


def copy_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run copy the rows of all earlier parts, as if most of their rows were dead."""
    monkeypatch.setattr(difference, "_LIVE", 2)


def test_copies_of_rows_of_unreadable_files_stay_after_an_interruption(
    finished: Shards, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copy_all(monkeypatch)
    before = extras_of(finished.output)
    (finished.folder / "1.h5").write_bytes(b"damaged")
    finished.arrays.append(finished.arrays[0] + 1)
    write(finished, 2, finished.arrays[2])
    assert finished.run("--append", *SKIP, disk=FullAfter("part", 1)) == 74
    assert finished.run("--append", *SKIP) == 0
    assert "could not be verified" not in caplog.text
    assert Result.open(finished.output).facts.rows.verification.n_rows == N_ROWS
    check(finished.output, finished.arrays, [])
    assert [values[: 2 * N_ROWS] for values in extras_of(finished.output)] == before


def test_damaged_parts_are_encoded_again_instead_of_copied(finished: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    """An append compares parts by their sizes; before their rows are copied, by their digests."""
    copy_all(monkeypatch)
    for part in Result.open(finished.output).parts:
        path = finished.output / part.file
        path.write_bytes(bytes(path.stat().st_size))
    finished.arrays.append(finished.arrays[0] + 1)
    write(finished, 2, finished.arrays[2])
    assert finished.run("--append", *SKIP) == 0
    check(finished.output, finished.arrays, [])
