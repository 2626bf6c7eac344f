"""What every stage of a run needs to know, as plain values."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipeline.formats import fingerprint
from pipeline.model import Model
from pipeline.output.ledger import Ledger
from pipeline.run.budget import Plan
from pipeline.run.fingerprints import Request
from pipeline.scan.ranges import Scan
from pipeline.settings.config import Config
from pipeline.shards.shard import Shard

if TYPE_CHECKING:
    from kernels.backend import Device

__all__ = ["Clock", "Job", "versions"]

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
        now = time.monotonic()
        self.seconds[stage], self._last = now - self._last, now


@dataclass(frozen=True)
class Job:
    """A run under way.

    Attributes
    ----------
    config : Config
        With its defaults filled in.
    command : sequence of str
        The command line, for the outputs' attributes.
    shards : tuple of Shard
    bad_shards : list of dict
        Files of the input that were refused and left out: ``file`` and ``reason``.
    request : Request
        What decides the results.
    plan : Plan
    ledger : Ledger
    device : Device
    clock : Clock
    """

    config: Config
    command: Sequence[str]
    shards: tuple[Shard, ...]
    bad_shards: list[dict[str, str]]
    request: Request
    plan: Plan
    ledger: Ledger
    device: Device
    clock: Clock = field(default_factory=Clock)

    @property
    def n_features(self) -> int:
        """Columns out."""
        assert self.config.n_features is not None
        return self.config.n_features

    @property
    def tolerates_bad_data(self) -> bool:
        """Whether bad rows and shards are left out instead of ending the run."""
        return self.config.on_bad_data != "raise"

    def of_model(self, found: Scan) -> str:
        """Fingerprint of the training's result: also of the shards that it had to do without."""
        asked = self.request.of_model()
        return fingerprint(asked, sorted(found.unreadable)) if found.unreadable else asked

    def of_features(self, model: Model, found: Scan | None) -> str:
        """Fingerprint of the features: also of the shards that have none, and whether bad rows are listed."""
        asked = self.request.of_features(model.fingerprint)
        without, is_listed = sorted(found.unreadable if found else []), self.config.on_bad_data == "quarantine"
        return fingerprint(asked, without, is_listed) if without or is_listed else asked

    def about(self) -> dict[str, Any]:
        """Attributes of every output."""
        return {
            "command": " ".join(self.command),
            "config": asdict(self.config),
            "device": str(self.device),
            "versions": versions(),
        }


@cache
def versions() -> dict[str, str]:
    """What was at work. Looking that up takes as long as writing a small part."""
    import h5py

    packages = {name: version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "hdf5": h5py.version.hdf5_version, **packages}
