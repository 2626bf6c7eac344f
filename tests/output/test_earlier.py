"""Tests of an earlier layout: once a run with --restart has replaced its results, only user files stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.errors import EarlierVersion
from shardpress.output.lock import locked
from shardpress.result import Result
from tests.support.journals import HEX, KEY, add, contents, fill, index_of, is_published, reopen

FILES = [
    "run.json",
    "model-last-good.h5",
    f"index-{HEX}.h5",
    f"index-{HEX}.h5.{HEX}.writing",
    f"parts/{KEY}-{HEX}.h5",
    f"stages/scan-{HEX}.npz",
    f"commits/part-{HEX}.json",
    f"published/{HEX}/manifest.json",
    f"published/{HEX}/model.h5",
]
FOREIGN = ["notes.txt", "index-of-mine.h5", "stages/mine.txt", f"published/{HEX}/thesis.tex", "published/mine/model.h5"]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """Return an output directory of the earlier layout, with user files in it."""
    directory = tmp_path / "out"
    fill(directory, *FILES, *FOREIGN)
    (directory / ".shardpress").write_text("shardpress-output/2\n")
    (directory / "published/current").symlink_to(HEX)
    for name in ("manifest.json", "model.h5", "index.h5"):
        (directory / name).symlink_to(f"published/current/{name}")
    return directory


def test_an_earlier_layout_is_refused_and_unchanged(earlier: Path) -> None:
    before = contents(earlier)
    with pytest.raises(EarlierVersion), locked(earlier):
        pytest.fail("the directory was locked")
    with pytest.raises(EarlierVersion):
        Result.open(earlier)
    assert contents(earlier) == before


def test_a_restart_removes_an_earlier_layout_after_its_commit(earlier: Path) -> None:
    before = contents(earlier)
    with locked(earlier, restarts=True) as journal:
        journal.sweep()
        record = add(journal)
        assert before.items() <= contents(earlier).items()
    with locked(earlier) as journal:  # the run was interrupted, and is resumed
        assert journal.records() == [record]
        journal.commit(index_of(record))
        journal.sweep()
        assert set(contents(earlier)) == {"index.h5", record.entry.file, *FOREIGN}
        assert is_published(journal, record)
        reopen(journal).sweep()
        assert {*FOREIGN} <= set(contents(earlier))
