"""Tests of the messages at the end of a run."""

from __future__ import annotations

import resource
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from shardpress.run.summary import Summary
from tests.support.logged import COMPLETE, mentions
from tests.support.parts import run_facts
from tests.support.standin import Workspace

SUMMARY = Summary("out", 300, 9, 4, 0, 2, "cpu (C kernels)", None, {"scan": 0.25, "encoding": 61.04})


def test_a_summary_lists_only_what_occurred() -> None:
    assert str(SUMMARY) == (
        "Done: 300 rows x 9 columns -> 4 features in out/index.h5 (2 parts). Device: cpu (C kernels). "
        "Time: scan 0.2 s, encoding 61.0 s."
    )
    full = replace(SUMMARY, n_rows=1, n_features=1, n_parts=1, n_bad=1, n_bad_shards=1, n_outside=1, cost=0.0123456)
    assert str(full) == (
        "Done: 1 row x 9 columns -> 1 feature in out/index.h5 (1 part). Mean squared error 0.0123 in scaled units. "
        "1 bad row with NaN features. 1 bad shard. 1 row outside the model's range. Device: cpu (C kernels). "
        "Time: scan 0.2 s, encoding 61.0 s."
    )


def test_a_summary_compares_the_error_with_baselines() -> None:
    getrlimit = str(replace(SUMMARY, cost=0.00785, components=0.010378, mean=0.0867, n_features=64))
    assert mentions(getrlimit, "0.00785", "64 principal components: 0.0104", "mean: 0.0867")


def test_a_summary_lists_the_compilation_time_separately() -> None:
    getrlimit = str(replace(SUMMARY, compiling=18.22))
    assert mentions(getrlimit, "scan 0.2 s", "encoding 61.0 s", "compiling", "18.2 s")


def test_the_summary_of_a_finished_run_has_its_current_path() -> None:
    result = Mock(facts=run_facts(summary={**asdict(SUMMARY), "compiling": 18.2}))
    restored = Summary.of_result(result, "elsewhere", {})
    assert restored == replace(SUMMARY, output="elsewhere", seconds={}, before=True)
    assert mentions(str(restored), COMPLETE, 300, 9, 4, "elsewhere/index.h5")


@pytest.mark.parametrize(("max_files", "has_warning"), [(35, True), (36, False)])
def test_more_parts_than_open_files_cause_a_warning(
    workspace: Workspace,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    max_files: int,
    has_warning: bool,
) -> None:
    """HDF5 returns fill values for files that it cannot open, without an error."""
    getrlimit = resource.getrlimit
    monkeypatch.setattr(
        resource,
        "getrlimit",
        lambda which: (max_files, max_files) if which == resource.RLIMIT_NOFILE else getrlimit(which),
    )
    assert workspace.run(out) == 0
    assert mentions(caplog.text, "index.h5", 4, max_files, "export") is has_warning
