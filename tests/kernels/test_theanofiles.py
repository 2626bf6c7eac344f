"""Tests of the changes of Theano's files: only files of version 1.0.5 are changed, and the last one has the mark."""

from __future__ import annotations

import hashlib
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from shardpress_kernels import backend, theanofiles
from shardpress_kernels.theanofiles import TheanoDiffers, TheanoNotSetUp, _Change, changed_files, is_set_up
from tests.support.interpreters import run_python


@pytest.fixture
def theano(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a package with two files, which this process would import."""
    contents = {"a.py": b"one\ntwo\nthree\nfour\n", "__init__.py": b"import a\n"}
    lines = {"a.py": {(2, 3): "2", (1, 1): "0\n1"}, "__init__.py": {}}
    changes = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        changes[name] = _Change(hashlib.sha256(content).hexdigest()[:32], lines[name])
    monkeypatch.setattr(theanofiles, "_CHANGES", changes)
    spec = ModuleSpec("theano", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(theanofiles, "find_spec", lambda _: spec)
    return tmp_path


def test_lines_are_replaced_and_the_last_file_has_the_mark(theano: Path) -> None:
    assert not is_set_up()
    contents = changed_files(theano)
    assert contents["a.py"] == b"0\n1\n2\nfour\n"
    assert list(contents)[-1] == "__init__.py"
    for name, content in contents.items():
        assert not is_set_up()
        (theano / name).write_bytes(content)
    assert is_set_up()
    with pytest.raises(TheanoDiffers):
        changed_files(theano)


@pytest.mark.parametrize("name", ["a.py", "__init__.py"])
def test_other_and_missing_files_are_named(theano: Path, name: str) -> None:
    (theano / name).write_bytes(b"another\n")
    with pytest.raises(TheanoDiffers, match=name):
        changed_files(theano)
    (theano / name).unlink()
    with pytest.raises(TheanoDiffers, match=name):
        changed_files(theano)


def test_theano_without_the_mark_is_refused(theano: Path) -> None:
    with pytest.raises(TheanoNotSetUp, match="shardpress setup-theano"):
        backend.load.__wrapped__()


LOAD = """
import sys
from shardpress_kernels.backend import load
load()
import theano.gpuarray
facts["modules"] = sorted({"distutils", "imp", "numpy.distutils", "pkg_resources", "scipy"} & set(sys.modules))
"""


@pytest.mark.process
@pytest.mark.compiler
def test_theano_loads_no_removed_or_slow_packages() -> None:
    assert run_python(LOAD, warnings="ignore").facts == {"modules": []}
