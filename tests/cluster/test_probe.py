"""Tests of the facts that must be the same on all processes: a different package, file or processor changes a fact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardpress.cluster import probe as module
from shardpress.cluster.probe import Probe, differences
from tests.support.logged import mentions


@pytest.mark.process  # runs g++ to get its version
def test_differences_name_both_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # restores the directory, which a probe changes
    (tmp_path / "work").mkdir()
    shard = tmp_path / "a.h5"
    shard.write_bytes(b"rows")
    probe = Probe(str(tmp_path), str(tmp_path), (str(shard),)).marked()
    driver = probe.facts()
    assert differences(driver, probe.facts()) == []
    others = {"numpy": "1.25.2", "processor": "Another One", "h5py": "not installed", "g++": "4.8"}
    worker = {name: text for name, text in {**driver, **others}.items() if name != "dask"}
    found = differences(driver, worker)
    assert len(found) == 5
    for name, text in {**others, "dask": "None"}.items():
        assert any(mentions(line, f"{name} {text}", driver[name]) for line in found), name
    mixed = replace(probe, mixed_processors=True)
    of_mixed = mixed.facts()
    monkeypatch.setattr(module, "_processor", lambda: {"processor": "Another One", "instruction sets": "avx2"})
    assert len(differences(driver, probe.facts())) == 2
    assert differences(of_mixed, mixed.facts()) == []


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
