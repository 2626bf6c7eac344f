"""Tests of the detection of files inside an output directory, by any of their paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.output.inside import files_inside
from shardpress.output.journal import Journal
from tests.support.faulty import bind, forked
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


@pytest.mark.process
@pytest.mark.parametrize("name", ["", "parts"])
def test_a_bind_mount_of_the_output_is_inside(journal: Journal, tmp_path: Path, name: str) -> None:
    source = journal.directory / name
    part = journal.directory / add(journal).entry.file
    target = tmp_path / "mount"
    target.mkdir()
    path = target / part.relative_to(source)

    def inside_after_bind() -> list[str] | None:
        if not bind(source, target):
            return None
        return [str(found) for found in files_inside(journal.directory, [path])]

    code, found = forked(inside_after_bind)
    assert code == 0
    if found is None:
        pytest.skip("this machine does not allow mounts")
    assert found == [str(path)]
