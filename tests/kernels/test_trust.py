"""Tests of the detection of directories that other users can replace, at any level of the path."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from shardpress_kernels.trust import UntrustedDirectory, private_directory, untrusted_above

OTHER_USER = 12345


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Return a path with three nested directories."""
    (tmp_path / "a/b/c").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(("mode", "is_safe"), [(0o755, True), (0o775, False), (0o757, False), (0o1777, True)])
@pytest.mark.parametrize("name", ["a", "a/b"])
def test_parents_writable_by_others_must_be_sticky(folders: Path, name: str, mode: int, is_safe: bool) -> None:
    (folders / name).chmod(mode)
    (folders / "a/b/c").chmod(0o777)  # is not checked itself
    problem = untrusted_above(folders / "a/b/c")
    assert (problem is None) is is_safe
    assert is_safe or str(folders / name) in str(problem)


def test_targets_of_links_are_checked(folders: Path) -> None:
    (folders / "link").symlink_to("a/b")
    (folders / "a").chmod(0o777)
    assert str(folders / "a") in str(untrusted_above(folders / "link" / "c"))


@pytest.mark.skipif(os.getuid() != 0, reason="missing on this machine: root, who can change owners")
def test_directories_and_links_of_another_user_are_not_trusted(folders: Path) -> None:
    (folders / "link").symlink_to("a/b")
    os.chown(folders / "link", OTHER_USER, -1, follow_symlinks=False)
    assert f"user {OTHER_USER}" in str(untrusted_above(folders / "link" / "c"))
    os.chown(folders / "a", OTHER_USER, -1)
    for mode in (0o755, 0o1777):  # the owner of a sticky directory can also rename everything in it
        (folders / "a").chmod(mode)
        assert f"{folders / 'a'} " in str(untrusted_above(folders / "a/b/c"))


def test_private_directory_is_made_in_safe_places_only(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(folders / "a"))
    created = private_directory("test-")
    assert created.parent == folders / "a"
    assert created.stat().st_mode & 0o777 == 0o700
    (folders / "a").chmod(0o777)
    with pytest.raises(UntrustedDirectory, match="TMPDIR"):
        private_directory("test-")
