"""A run in progress: its output directory, devices, worker pool and progress."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import h5py

from shardpress.base.errors import printable
from shardpress.base.packages import version_of
from shardpress.base.runlog import Warnings
from shardpress.cluster.pool import WorkerPool
from shardpress.model.device import seconds_compiling
from shardpress.output.journal import Journal
from shardpress.run.resume import EarlierResults, checkpoint_in_words, n_rows_in
from shardpress.run.watch import Watch

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

# Packages whose version can change the bits of the results or of their files.
_PACKAGES = ("shardpress", "numpy", "Theano", "dask", "h5py", "scikit-learn")


class RunState:
    """Progress of a run: finished stages, reused results and warnings.

    The times of stages exclude the compiler, because later runs find the kernels in the compile cache.
    """

    def __init__(self, warnings: Warnings | None = None, watch: Watch | None = None) -> None:
        self.warnings = warnings or Warnings()
        self.seconds: dict[str, float] = {}  # wall-clock seconds of each finished stage
        self.processor_seconds: dict[str, float] = {}
        # Shares of each finished stage's time that it spent waiting for the device, the processor or the disk; empty if
        # the stage was too short to measure.
        self.bounds: dict[str, dict[str, float]] = {}
        self.reused: dict[str, str] = {}  # results of an earlier run in words, by the stage that reuses them
        self.model_key: str | None = None  # fingerprint of the model that the run is about to make
        self.features_key: str | None = None  # fingerprint of the features that the run is about to make
        self.began = time.time()
        self.ends_by: float | None = None  # deadline, in seconds since 1970
        self._watch = watch
        self._start = time.monotonic()
        self._last = self._start
        self._compiled_at_start = seconds_compiling()
        self._compiled = self._compiled_at_start
        self._last_processor = time.process_time()

    @property
    def seconds_compiling(self) -> float:
        return seconds_compiling() - self._compiled_at_start

    @property
    def total_seconds(self) -> float:
        return time.monotonic() - self._start

    def end_stage(self, stage: str) -> None:
        """Record the times of a stage that has just finished."""
        now = time.monotonic()
        compiled = seconds_compiling()
        processor = time.process_time()
        self.seconds[stage] = now - self._last - (compiled - self._compiled)
        self.processor_seconds[stage] = processor - self._last_processor
        self.bounds[stage] = self._watch.take_shares() if self._watch else {}
        self._last = now
        self._compiled = compiled
        self._last_processor = processor


@dataclass(frozen=True)
class RunContext:
    """Objects that the stages of a run share."""

    journal: Journal  # of the locked output directory
    earlier: EarlierResults
    device: Device  # of this process
    pool: WorkerPool
    state: RunState
    command: Sequence[str]  # the command line, for the result

    @property
    def devices(self) -> str:
        """Description of the devices that encode."""
        of_workers = {worker.device for worker in self.pool.facts().workers if worker.device is not None}
        return ", ".join(sorted(of_workers)) or str(self.device)

    def progress_in_words(self, n_rows: int) -> str:
        """Return a sentence about the progress of an unfinished run of `n_rows` rows."""
        state = self.state
        stages = ", ".join(stage for stage in state.seconds if stage != "start") or "no stage"
        # The directory may also contain results of other settings.
        checkpoints = self.journal.records("checkpoint", state.model_key) if state.model_key else []
        if checkpoints:
            stages += f"; checkpoint: {checkpoint_in_words(checkpoints[-1])}"
        parts = self.journal.parts(state.features_key) if state.features_key else []
        return (
            f"Stopped after {state.total_seconds:.1f} s in {printable(self.journal.directory)}. Done: {stages}; "
            f"{n_rows_in(parts)} of {n_rows} rows encoded."
        )


@cache
def versions() -> dict[str, str]:
    """Return the versions of Python, HDF5 and the packages that compute. They are cached, since a lookup takes time."""
    packages = {name: version_of(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version, **packages}
