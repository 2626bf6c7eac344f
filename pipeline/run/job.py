"""What every stage of a run needs to know, as plain values."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import h5py

from pipeline.formats import fingerprint
from pipeline.model import Model
from pipeline.output.ledger import Ledger
from pipeline.run.prepare import Prepared
from pipeline.scan.ranges import Scan

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = ["Clock", "Job", "versions"]

# Whose version may change a bit of the results, or of their files.
_PACKAGES = ("shardpress", "numpy", "Theano", "dask", "h5py", "scikit-learn")


class Clock:
    """How far a run has come: seconds of each stage that is over, and which model and features it is about to make."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.model: str | None = None
        self.features: str | None = None
        self._start = self._last = time.monotonic()

    @property
    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def lap(self, stage: str) -> None:
        """A stage is over."""
        now = time.monotonic()  # which no change of the time of day moves
        self.seconds[stage], self._last = now - self._last, now


@dataclass(frozen=True)
class Job(Prepared):
    """A run under way: what was prepared, and where it is at work.

    Attributes
    ----------
    command : sequence of str
        The command line, for the outputs' attributes.
    ledger : Ledger
    device : Device
    clock : Clock
    """

    command: Sequence[str]
    ledger: Ledger
    device: Device
    clock: Clock

    @property
    def resident(self) -> bool:
        """Whether training keeps all rows in memory, where its products run."""
        return self.budget.resident if self.device.used == "cpu" else self.budget.resident_on_device

    @property
    def tolerates_bad_data(self) -> bool:
        """Whether bad rows and shards are left out instead of ending the run."""
        return self.config.on_bad_data != "raise"

    def of_model(self, scan: Scan | None) -> str:
        """Fingerprint of the training's result: also of the shards that it had to do without."""
        asked, without = self.request.of_model(), _unreadable(scan)
        return fingerprint(asked, without) if without else asked  # without any, what was asked for tells it all

    def of_features(self, model: Model, scan: Scan | None) -> str:
        """Fingerprint of the features: also of the shards that have none, and whether bad rows are listed."""
        asked, without = self.request.of_features(model.fingerprint), _unreadable(scan)
        is_listed = self.config.on_bad_data == "quarantine"  # then the parts' records list them, and else they do not
        return fingerprint(asked, without, is_listed) if without or is_listed else asked

    def about(self, model: Model) -> dict[str, Any]:
        """Attributes of every output that `model` makes."""
        return {
            "command": " ".join(self.command),
            "config": asdict(self.config),
            "device": str(self.device),
            "versions": versions(),
            "model": model.fingerprint,
        }


def _unreadable(scan: Scan | None) -> list[int]:
    return sorted(scan.unreadable) if scan else []


@cache
def versions() -> dict[str, str]:
    """What was at work. Looking that up takes as long as writing a small part."""
    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version, **packages}
