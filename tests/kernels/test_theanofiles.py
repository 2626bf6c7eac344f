"""Tests of the check that the files of Theano are those of version 1.0.5."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from shardpress_kernels import compilecache, theanofiles


def test_changed_and_missing_files_are_named(tmp_path: Path) -> None:
    spec = find_spec("theano")
    assert spec is not None
    assert spec.origin is not None
    for name in theanofiles._DIGESTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(spec.origin).parent / name, tmp_path / name)
    assert theanofiles.changed_files() == theanofiles.changed_files(tmp_path) == []
    with open(tmp_path / "gof/cmodule.py", "a") as file:
        file.write("# a patch\n")
    (tmp_path / "tensor/blas.py").unlink()
    assert theanofiles.changed_files(tmp_path) == ["gof/cmodule.py", "tensor/blas.py"]


def test_changed_theano_is_refused_in_later_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theanofiles, "changed_files", lambda: ["gof/cc.py"])
    monkeypatch.setattr(sys, "version_info", (3, 12))
    with pytest.raises(theanofiles.TheanoChanged, match=r"gof/cc\.py.* setup-theano"):
        compilecache._check_theano()
