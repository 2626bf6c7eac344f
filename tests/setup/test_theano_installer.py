"""Tests of `shardpress setup-theano`: it installs Theano only if its files are not those of version 1.0.5."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardpress.base.errors import DeviceError
from shardpress.setup import theano_installer
from shardpress_kernels.theanofiles import TheanoDiffers

BEFORE = {"gof.py": b"before\n", "__init__.py": b"before\n"}
AFTER = {"gof.py": b"after\n", "__init__.py": b"after\n"}


@pytest.fixture
def theano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a package in place of Theano. An installation writes its files."""

    def install(_source: Path | None) -> None:
        write(BEFORE)

    def write(contents: dict[str, bytes]) -> None:
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)

    def changed_files(folder: Path) -> dict[str, bytes]:
        if contents_of(folder) != BEFORE:
            raise TheanoDiffers("gof.py differs")
        return AFTER

    write(BEFORE)
    monkeypatch.setattr(theano_installer, "_install", install)
    monkeypatch.setattr(theano_installer, "theano_folder", lambda: tmp_path)
    monkeypatch.setattr(theano_installer, "changed_files", changed_files)
    monkeypatch.setattr(theano_installer, "is_set_up", lambda: (tmp_path / "__init__.py").read_bytes() == b"after\n")
    return tmp_path


def contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def steps() -> list[str]:
    """Set up Theano, and return the first word of each line."""
    return [line.split()[0] for line in theano_installer.set_up()]


def test_files_of_the_right_version_are_changed_once(theano: Path) -> None:
    (theano / "gof.py").chmod(0o664)
    assert steps() == ["environment", "Theano"]
    assert contents_of(theano) == AFTER
    assert (theano / "gof.py").stat().st_mode & 0o777 == 0o664
    inode = (theano / "gof.py").stat().st_ino
    assert steps() == ["environment", "Theano"]
    assert (theano / "gof.py").stat().st_ino == inode


def test_interrupted_changes_are_made_again(theano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def fail(new: Path, path: Path) -> None:
        if path.name == "__init__.py":
            raise OSError("disk full")
        replace(new, path)

    with monkeypatch.context() as context:
        context.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            steps()
    assert steps() == ["environment", "replacing", "installing", "Theano"]
    assert contents_of(theano) == AFTER


def test_other_files_after_an_installation_are_refused(theano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (theano / "gof.py").write_bytes(b"another version\n")
    monkeypatch.setattr(theano_installer, "_install", lambda _: None)
    with pytest.raises(DeviceError, match=r"gof\.py.* new virtual environment"):
        steps()
