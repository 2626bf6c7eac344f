"""Tests of the facts that must be the same on all processes: a different package, file or processor changes a fact."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardpress.cluster import probe as module
from shardpress.cluster.probe import Probe, differences, problems_of_scratch
from tests.support.logged import mentions


@pytest.fixture
def probe(tmp_path: Path) -> Iterator[Probe]:
    """Return a probe with an existing output directory and input, and restore the working directory."""
    before = os.getcwd()
    (tmp_path / "work").mkdir()
    (tmp_path / "a.h5").write_bytes(b"rows")
    yield Probe(str(tmp_path), str(tmp_path), (str(tmp_path / "a.h5"),)).marked()
    os.chdir(before)


@pytest.mark.process  # runs g++ to get its version
def test_differences_name_both_values(probe: Probe) -> None:
    driver = probe.facts()
    assert differences(driver, probe.facts()) == []
    others = {"numpy": "1.25.2", "processor": "Another One", "h5py": "not installed", "g++": "4.8"}
    worker = {name: text for name, text in {**driver, **others}.items() if name != "dask"}
    found = differences(driver, worker)
    assert len(found) == 5
    for name, text in {**others, "dask": "None"}.items():
        assert any(mentions(line, f"{name} {text}", driver[name]) for line in found), name


@pytest.mark.process  # runs g++ to get its version
def test_other_files_under_the_same_paths_are_detected(probe: Probe, tmp_path: Path) -> None:
    driver = probe.facts()
    (tmp_path / "a.h5").write_bytes(b"others")
    (found,) = differences(driver, probe.facts())
    assert mentions(found, f"file={tmp_path / 'a.h5'}", "6 bytes")
    (tmp_path / "a.h5").write_bytes(b"rows")
    driver = probe.facts()
    Path(probe.marker).unlink()  # as in another directory with the same path
    (found,) = differences(driver, probe.facts())
    assert mentions(found, f"file={probe.marker}", os.strerror(errno.ENOENT))
    (tmp_path / "work").rename(tmp_path / "gone")
    lines = differences(driver, probe.facts())
    assert any(mentions(line, f"output={tmp_path}", os.strerror(errno.ENOENT)) for line in lines)


@pytest.mark.process  # runs g++ to get its version
def test_mixed_processors_must_be_allowed(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = replace(probe, mixed_processors=True)
    before = [each.facts() for each in (probe, mixed)]
    monkeypatch.setattr(module, "_processor", lambda: {"processor": "Another One", "instruction sets": "avx2"})
    assert len(differences(before[0], probe.facts())) == 2
    assert differences(before[1], mixed.facts()) == []


def test_another_checkout_of_the_same_version_is_different(tmp_path: Path) -> None:
    roots = (str(tmp_path / "pipeline"), str(tmp_path / "kernels"))
    files = {
        "pipeline/shardpress/run/a.py": True,
        "kernels/shardpress_kernels/native/b.h": True,
        "pipeline/theirs/c.py": False,
    }
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    digest = module._digest.__wrapped__  # without its cache
    before = digest(roots)
    for name, counts in files.items():
        (tmp_path / name).write_text("2")
        assert (digest(roots) != before) is counts, name
        before = digest(roots)


def test_a_writable_import_path_is_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "dask-scratch-space/worker-1"
    scratch.mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(scratch)])
    assert problems_of_scratch() == []
    for writable in (scratch, scratch.parent):
        writable.chmod(0o777)
        (problem,) = problems_of_scratch()
        assert mentions(problem, writable, "0777")
        writable.chmod(0o755)
