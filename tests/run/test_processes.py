"""Tests of real processes: started twice, with a clock that jumps, and in a hostile environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.killing import Victim, features_of
from tests.support.logged import COMPLETE, STARTED_NOTHING, mentions
from tests.support.processes import DEADLINE, Small, patch_program

pytestmark = pytest.mark.process

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
from shardpress.base.signals import leave
leave(main())
"""

LOADED = """
import sys
from scripts.extract import main
from shardpress.base.signals import leave
code = main()
print("loaded:", sorted({"theano", "dask", "yaml", "jinja2"} & set(sys.modules)))
leave(code)
"""


def test_a_repeated_run_loads_no_library_that_it_does_not_use(small: Small, tmp_path: Path) -> None:
    program = patch_program(small, LOADED)
    assert program.run(tmp_path / "out").has_line(r"^loaded: \['dask', .*'theano'.*\]$")
    assert program.run(tmp_path / "out").has_line(r"^loaded: \[\]$")


def test_clock_and_environment_change_no_features(small: Small, tmp_path: Path) -> None:
    """The clock runs backwards, and variables configure the libraries in other ways."""
    hostile = {
        **{"DASK_SCHEDULER": "processes", "DASK_CACHE": "1", "DASK_POOL": "1", "DASK_CHUNKSIZE": "99"},
        **{"DASK_NUM_WORKERS": "1", "DASK_OPTIMIZATION__FUSE__DELAYED": "true", "DASK_DELAYED_PURE": "true"},
        **{"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "false", "DASK_RERUN_EXCEPTIONS_LOCALLY": "true"},
        **{"HDF5_DRIVER": "nonsense", "HDF5_VOL_CONNECTOR": "nonsense", "HDF5_USE_FILE_LOCKING": "TRUE"},
        **{"HDF5_VDS_PREFIX": "/nowhere", "HDF5_PLUGIN_PATH": str(tmp_path), "HDF5_DISABLE_VERSION_CHECK": "2"},
        **{"THEANO_FLAGS": "floatX=float64", "OMP_NUM_THREADS": "1"},
    }
    program = patch_program(small, BACKWARD_CLOCK)
    program.environment |= hostile
    ended = program.run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert ended.has_line(" INFO environment: THEANO_FLAGS=floatX=float64$")
    assert features_of(tmp_path / "out") == small.features
    assert program.run(tmp_path / "out").has_line(f"^{COMPLETE}")


def test_a_second_run_in_one_output_names_the_first_one(victim: Victim, tmp_path: Path) -> None:
    processes = [victim.program.start(tmp_path / "out") for _ in range(2)]
    outputs = {process.pid: process.communicate(timeout=DEADLINE)[0].decode() for process in processes}
    codes = {process.returncode: process.pid for process in processes}
    assert sorted(codes) == [0, 75], outputs
    refusal = outputs[codes[75]].splitlines()
    assert mentions(refusal[-2], "TryAgain", f"output={tmp_path / 'out'}", f"pid {codes[0]}")
    assert f" ERROR {STARTED_NOTHING}. " in refusal[-1]
    victim.check(tmp_path / "out")
