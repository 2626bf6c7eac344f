"""Tests of the detection of files inside an output directory, by any of their paths."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardpress.output.inside import files_inside
from shardpress.output.journal import Journal
from tests.support.faulty import bind, forked
from tests.support.journals import add, index_of


def published(journal: Journal) -> Path:
    """Finish a run; return the path of its part."""
    record = add(journal)
    journal.commit(index_of(record))
    return journal.directory / record.entry.file


def hard_link(path: Path, other: Path) -> None:
    os.link(path.resolve(), other)


@pytest.mark.parametrize("name", ["part", "index.h5"])
@pytest.mark.parametrize("make", [os.symlink, hard_link])
def test_links_to_our_files_are_inside(
    journal: Journal, tmp_path: Path, make: Callable[[Path, Path], object], name: str
) -> None:
    part = published(journal)
    path = part if name == "part" else journal.directory / name
    other = tmp_path / "other.h5"
    make(path, other)
    foreign = tmp_path / "foreign.h5"
    foreign.write_bytes(b"foreign")
    assert files_inside(journal.directory, [foreign, path, other]) == [path, other]


def test_linked_paths_of_our_directories_are_inside(journal: Journal, tmp_path: Path) -> None:
    part = published(journal)
    (tmp_path / "output").symlink_to(journal.directory)
    (tmp_path / "folder").symlink_to(part.parent)
    paths = [
        tmp_path / "output" / "parts" / part.name,
        tmp_path / "folder" / part.name,
        tmp_path / "folder" / "gone.h5",
    ]
    assert files_inside(journal.directory, paths) == paths
    assert files_inside(tmp_path / "output", paths) == paths
    assert files_inside(tmp_path / "nowhere", paths) == []
    (tmp_path / "file").touch()
    assert files_inside(tmp_path / "file", paths) == []


@pytest.mark.process
@pytest.mark.parametrize("source_name", ["directory", "parts", "file"])
def test_a_bind_mount_of_the_output_is_inside(journal: Journal, tmp_path: Path, source_name: str) -> None:
    part = published(journal)
    source = {"directory": journal.directory, "parts": part.parent, "file": part}[source_name]
    target = tmp_path / "mount"
    if source_name == "file":
        target.touch()
        path = target
    else:
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
