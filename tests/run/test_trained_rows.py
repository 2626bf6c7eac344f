"""Tests of what each row was used for: rows that may have trained the features are no test rows.

`tests/run/test_sequences.py` compares the use of each row with an independent account.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts import classify as script
from shardpress.model.labels import NONE, LabelChoice
from shardpress.report.commonrows import EncodedRows
from shardpress.report.mapquality import read_labels
from shardpress.result.features import open_features, rows_with_value
from shardpress.result.finished import Result, Use
from tests.support.bad_shards import Shards
from tests.support.damage import damage
from tests.support.helpers import write_shard
from tests.support.logged import mentions

pytestmark = pytest.mark.slow

N = 120  # rows of a file
ON_TRAIN = ("--fit-on", "split==train")
TARGET = ("--target", "y", "--optimizer", "momentum", "--epochs", "2")


def add(shards: Shards, name: str, seed: int, n: int = N, **more: Any) -> Path:
    """Add a file, or replace one, whose labels have nothing to do with the rows. Half of the rows are test rows."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    extras = {"y": rng.integers(0, 2, n), "split": np.where(np.arange(n) % 2, b"test", b"train"), **more}
    path = shards.folder / name
    write_shard(path, rows, extras=extras)
    return path


def refusal(output: Path, *more: str) -> str:
    """Return why scripts/classify.py finds no test rows."""
    with pytest.raises(SystemExit) as caught:
        script.main([str(output), *more])
    return str(caught.value)


@pytest.fixture
def trained(shards: Shards) -> Shards:
    """Return the inputs of three files."""
    for number in range(3):
        add(shards, f"{number}.h5", seed=number)
    return shards


def test_rows_of_new_files_are_test_rows_but_copies_are_not(trained: Shards, capsys: Any) -> None:
    assert trained.run(*TARGET) == 0
    assert Result.open(trained.output).facts.rows.sample.no_test
    assert mentions(refusal(trained.output), "No honest test", "y", "--test")
    add(trained, "copy.h5", seed=1)
    add(trained, "new.h5", seed=7)
    assert trained.run("--append") == 0
    rows = Result.open(trained.output).facts.rows
    assert rows.sample.no_test, "an append reads no rows of the earlier files"
    assert rows.sample_run == 1
    assert trained.run("--append", "--labels", "y") == 0
    rows = Result.open(trained.output).facts.rows
    assert rows.sample_run == 3
    probe = rows.sample.probe
    assert (probe.n_test, probe.n_train) == (N, 4 * N)
    script.main([str(trained.output)])
    assert mentions(capsys.readouterr().out, f"{N} test rows", f"{4 * N} other rows")


def test_appended_rows_may_have_trained_once_a_file_is_gone(trained: Shards) -> None:
    """A file joins the rows of two others, which are deleted later."""
    assert trained.run(*TARGET) == 0
    before = Result.open(trained.output).use()
    originals = [trained.folder / "1.h5", trained.folder / "2.h5"]
    with h5py.File(originals[0]) as one, h5py.File(originals[1]) as other:
        joined = {name: np.concatenate([one[name], other[name]]) for name in one}
    write_shard(trained.folder / "joined.h5", joined.pop("X"), extras=joined)
    assert trained.run("--append") == 0
    assert Result.open(trained.output).use().tolist() == [*before, *[Use.LATER] * 2 * N]

    for path in originals:
        path.unlink()
    assert trained.run("--append", "--drop-missing") == 0
    add(trained, "new.h5", seed=7)
    for n_rows in (2 * N, 3 * N):
        result = Result.open(trained.output)
        assert result.use().tolist() == [*before[:N], *[Use.TRAINING] * n_rows]
        assert result.facts.rows.sample.no_test
        assert mentions(refusal(trained.output), "No honest test")
        assert trained.run("--append") == 0


def test_rows_of_a_given_supervised_model_may_have_trained_it(trained: Shards, tmp_path: Path, capsys: Any) -> None:
    assert trained.run(*TARGET, *ON_TRAIN) == 0
    given = tmp_path / "given"
    assert trained.run("--model", str(trained.output), output=given) == 0
    assert Result.open(given).facts.rows.sample.no_test
    assert "--test" in refusal(given)
    assert "other rows" in refusal(trained.output, "--test", str(given))
    other = trained.another("other")
    add(other, "3.h5", seed=9)
    assert other.run("--model", str(trained.output), output=tmp_path / "new") == 0
    script.main([str(trained.output), "--test", str(tmp_path / "new")])
    assert mentions(capsys.readouterr().out, f"{N} test rows")


def test_labels_that_cannot_be_read_are_no_labels_but_their_fill_value_is_one(trained: Shards) -> None:
    """Unreadable values of uint8 become 255. Ten of them are lost in the last file."""
    for each in trained.folder.iterdir():
        with h5py.File(each, "r+") as file:
            y = np.where(file["y"][()], 255, 7).astype(np.uint8)
            del file["y"]
            file.create_dataset("y", data=y, chunks=(10,), compression="gzip")
    damage(trained.folder / "2.h5", "y", 3)
    assert trained.run("--epochs", "2", "--on-bad-data", "skip") == 0
    result = Result.open(trained.output)
    lost = [each.lost for _, each in result.ranges if each.lost]
    assert lost == [{"y": [[30, 32]]}, {"y": [[32, 40]]}]
    probe = result.facts.rows.sample.probe
    assert probe.n_train + probe.n_test == 3 * N - 10
    assert rows_with_value(open_features(trained.output), "y").sum() == 3 * N - 10
    labels = read_labels(EncodedRows.of(result), np.arange(3 * N), LabelChoice(named="y"))
    assert labels.names == ("7", "255")
    np.testing.assert_array_equal(np.flatnonzero(labels.codes == NONE), np.arange(2 * N + 30, 2 * N + 40))
