"""Tests of real processes: started twice, with a clock that jumps, in a hostile environment; and their last lines."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shardpress.run.training_stage import TrainingStage
from tests.support import standin
from tests.support.helpers import write_shard
from tests.support.interruptions import undisturbed_features
from tests.support.killing import Program, Victim, features_of
from tests.support.logged import COMPLETE, STARTED_NOTHING, mentions
from tests.support.processes import DEADLINE, LAST_LINE, Small, ends_well, patch_program
from tests.support.standin import Workspace

pytestmark = pytest.mark.process

# -- the clock ---------------------------------------------------------------------------------------------------

BACKWARD_CLOCK = """
import time
now = time.time
n = 0
def backwards():
    global n
    n += 1
    return now() - 100 * n
time.time = backwards
from scripts.extract import main
from shardpress.signals import leave
leave(main())
"""


def test_a_clock_that_runs_backwards_changes_nothing(small: Small, tmp_path: Path) -> None:
    assert patch_program(small, BACKWARD_CLOCK).run(tmp_path / "out").code == 0
    assert features_of(tmp_path / "out") == small.features
    assert patch_program(small, BACKWARD_CLOCK).run(tmp_path / "out").has_line(f"^{COMPLETE}")


# -- two at once -------------------------------------------------------------------------------------------------


def test_a_second_run_in_one_output_names_the_first_one(victim: Victim, tmp_path: Path) -> None:
    processes = [victim.program.start(tmp_path / "out") for _ in range(2)]
    outputs = {process.pid: process.communicate(timeout=DEADLINE)[0].decode() for process in processes}
    codes = {process.returncode: process.pid for process in processes}
    assert sorted(codes) == [0, 75], outputs
    refusal = outputs[codes[75]].splitlines()
    assert mentions(refusal[-2], "TryAgain", f"output={tmp_path / 'out'}", f"pid {codes[0]}")
    assert f" ERROR {STARTED_NOTHING}. " in refusal[-1]
    victim.check(tmp_path / "out")


def test_a_killed_run_does_not_block_the_next_run(victim: Victim, tmp_path: Path) -> None:
    ended = victim.program.run(tmp_path / "out", at="scan")
    assert ended.code == -signal.SIGKILL
    assert (tmp_path / "out" / "work/lock").read_text().startswith("pid "), "the text of a dead process is ignored"
    victim.resume(tmp_path / "out")


def test_two_runs_can_fill_one_compile_cache(small: Small, tmp_path: Path) -> None:
    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    processes = [program.start(tmp_path / name, *small.with_model) for name in ("a", "b")]
    for process in processes:
        ends_well(process)
    assert features_of(tmp_path / "a") == features_of(tmp_path / "b") == small.features


# -- a hostile environment ---------------------------------------------------------------------------------------


def test_environment_variables_of_hdf5_and_dask_have_no_effect(small: Small, tmp_path: Path) -> None:
    hostile = {
        **{"DASK_SCHEDULER": "processes", "DASK_CACHE": "1", "DASK_POOL": "1", "DASK_CHUNKSIZE": "99"},
        **{"DASK_NUM_WORKERS": "1", "DASK_OPTIMIZATION__FUSE__DELAYED": "true", "DASK_DELAYED_PURE": "true"},
        **{"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "false", "DASK_RERUN_EXCEPTIONS_LOCALLY": "true"},
        **{"HDF5_DRIVER": "nonsense", "HDF5_VOL_CONNECTOR": "nonsense", "HDF5_USE_FILE_LOCKING": "TRUE"},
        **{"HDF5_VDS_PREFIX": "/nowhere", "HDF5_PLUGIN_PATH": str(tmp_path), "HDF5_DISABLE_VERSION_CHECK": "2"},
    }
    ended = small.program(**hostile).run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_environment_variables_of_theano_are_logged(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="floatX=float64", OMP_NUM_THREADS="1").run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert ended.has_line(" INFO environment: THEANO_FLAGS=floatX=float64$")
    assert ended.has_line(" INFO environment: OMP_NUM_THREADS=1$")
    assert features_of(tmp_path / "out") == small.features


# -- the end -----------------------------------------------------------------------------------------------------


def test_a_finished_run_is_recognized_within_two_seconds(victim: Victim) -> None:
    seconds: list[float] = []  # processor time
    while len(seconds) < 3 and min(seconds, default=2) >= 2:  # up to three runs, because the machine may be busy
        process = victim.program.start(victim.undisturbed)
        assert process.stdout is not None
        outputs = process.stdout.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        assert process.returncode == 0
        assert mentions(outputs.splitlines()[-1], COMPLETE, victim.n_rows, 64, 32)
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < 2


def test_an_internal_error_asks_for_a_report(workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("impossible")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingStage, "make", broken)
        assert workspace.run(out) == 70
    log = (out / "run.log").read_text()
    assert re.search(r" CRITICAL .*\breport\b", log)
    assert "AssertionError: impossible" in log
    assert LAST_LINE.search(log.splitlines()[-1])
    assert workspace.run(out) == 0
    assert standin.features_of(out) == undisturbed_features(workspace)


def no_input(folder: Path) -> list[str]:
    return ["--input", str(folder / "nowhere")]


def no_shard(folder: Path) -> list[str]:
    (folder / "x.h5").write_text("<!DOCTYPE html>")
    return ["--input", str(folder / "x.h5")]


def bad_row(folder: Path) -> list[str]:
    rows = np.ones((50, 4))
    rows[3, 1] = np.nan
    return ["--input", write_shard(folder / "x.h5", rows)]


def foreign_output(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").touch()
    return ["--input", write_shard(folder / "x.h5", np.ones((50, 4)))]


@pytest.mark.parametrize(
    ("prepare", "code"), [(no_input, 66), (no_shard, 65), (bad_row, 65), (foreign_output, 73)], ids=lambda value: value
)
def test_a_failed_run_ends_with_its_progress_and_advice(
    tmp_path: Path, prepare: Callable[[Path], list[str]], code: int
) -> None:
    ended = Program(prepare(tmp_path)).run(tmp_path / "out")
    assert ended.code == code
    assert LAST_LINE.search(ended.lines[-1]), ended.lines
    assert not ended.has_line("Traceback")
