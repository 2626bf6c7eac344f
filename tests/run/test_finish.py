"""What a run says at its end."""

from __future__ import annotations

import resource
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.run.summary import Summary
from tests.support.standin import Night

SUMMARY = Summary("out", 300, 9, 4, 0, 2, "cpu (C kernels)", None, {"scan": 0.25, "encoding": 61.04})


def test_a_summary_says_what_there_is_to_say_and_no_more() -> None:
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


def test_a_summary_holds_the_error_against_others() -> None:
    found = str(replace(SUMMARY, cost=0.00785, components=0.010378, mean=0.0867, n_features=64))
    assert "Mean squared error 0.00785 in scaled units (64 principal components: 0.0104, the mean: 0.0867). D" in found


def test_what_the_compiler_has_taken_stands_beside_the_stages() -> None:
    found = str(replace(SUMMARY, compiling=18.22))
    assert found.endswith("Time: scan 0.2 s, encoding 61.0 s, compiling for this machine, once, 18.2 s.")


def test_what_an_earlier_version_has_not_measured_is_not_said_again() -> None:
    before = {name: value for name, value in asdict(SUMMARY).items() if name not in ("components", "mean", "compiling")}
    told = Summary.of_manifest({"summary": {**before, "cost": 0.5}}, "out")
    assert "Mean squared error 0.5 in scaled units. D" in str(told)


def test_a_finished_run_is_told_again_of_where_it_lies_now() -> None:
    told = Summary.of_manifest({"summary": {**asdict(SUMMARY), "compiling": 18.2}, "parts": []}, "elsewhere")
    assert told == replace(SUMMARY, output="elsewhere", seconds={}, before=True)
    assert str(told).startswith("Already complete: 300 rows x 9 columns -> 4 features in elsewhere/index.h5")


@pytest.mark.parametrize(
    ("most", "flags", "is_told"), [(36, [], True), (37, [], False), (36, ["--single-file"], False)]
)
def test_more_parts_than_a_reader_may_open_are_told(
    night: Night,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    most: int,
    flags: list[str],
    is_told: bool,
) -> None:
    """For what it cannot open HDF5 gives what stands for a missing value, and no error."""
    found = resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda which: (most, most) if which == resource.RLIMIT_NOFILE else found(which)
    )
    assert night.run(out, *flags) == 0
    assert (f"index.h5 is a view of 5 files, and a process may have {most} open" in caplog.text) is is_told
