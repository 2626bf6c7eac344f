"""Tests of the detection of files inside an output directory, by any of their paths."""

from __future__ import annotations

from pathlib import Path

from shardpress.output.inside import files_inside
from shardpress.output.journal import Journal
from tests.support.journals import add


def test_linked_paths_of_an_output_are_inside(journal: Journal, tmp_path: Path) -> None:
    part = journal.directory / add(journal).entry.file
    (tmp_path / "output").symlink_to(journal.directory)
    (tmp_path / "folder").symlink_to(part.parent)
    (tmp_path / "other.h5").symlink_to(part)
    foreign = tmp_path / "foreign.h5"
    foreign.write_bytes(b"foreign")
    paths = [
        part,
        tmp_path / "other.h5",
        tmp_path / "output" / "parts" / part.name,
        tmp_path / "folder" / part.name,
        tmp_path / "folder" / "gone.h5",
    ]
    for directory in (journal.directory, tmp_path / "output"):
        assert files_inside(directory, [foreign, *paths]) == paths
    for directory in (tmp_path / "nowhere", foreign):
        assert files_inside(directory, paths) == []
