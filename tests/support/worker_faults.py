"""Inject faults into Dask workers: load this module with ``dask worker --preload``.

The environment variable ``WORKER_FAULTS`` is a JSON object. It maps the name of a shard to a fault, which occurs in the
worker that begins to encode the shard. If ``WORKER_FAULTS_ONCE`` names a folder, each fault occurs in only one worker.
Otherwise it occurs in every worker that begins to encode the shard. The device is the stand-in, as in the driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress.encoding import encode, worker
from shardpress.model import device
from shardpress.shards.conversion import Conversion
from shardpress_kernels.backend import Device
from tests.support.standin import install

SECONDS = 8  # duration of a silence; Dask declares a worker dead after 5 s

FAULTS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": lambda: ctypes.string_at(0),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    # A call through PyDLL holds the interpreter lock, so that no thread of the worker can send a heartbeat.
    "keeps the lock": lambda: ctypes.PyDLL(None).sleep(SECONDS),
    "kills its scheduler": lambda: os.kill(int(os.environ["SCHEDULER"]), signal.SIGKILL),
    "stops its scheduler": lambda: os.kill(int(os.environ["SCHEDULER"]), signal.SIGSTOP),
}


def dask_setup(_worker: Any = None) -> None:
    """Install the stand-in device and the faults."""
    patch = pytest.MonkeyPatch()  # until the process ends
    install(patch)
    for module in (device, worker):
        patch.setattr(module, "start_device", lambda is_required=False: Device("cpu", "cpu", "stand-in"))
    faults = json.loads(os.environ.get("WORKER_FAULTS", "{}"))

    class Faulty(Conversion):
        def read(self, block: Any, *rest: Any) -> Any:
            name = Path(block.shard.path).name
            if name in faults and _is_due(faults[name]):
                FAULTS[faults[name]]()
            return super().read(block, *rest)

    patch.setattr(encode, "Conversion", Faulty)


def _is_due(what: str) -> bool:
    folder = os.environ.get("WORKER_FAULTS_ONCE")
    if folder is None:
        return True
    try:
        os.close(os.open(f"{folder}/{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
