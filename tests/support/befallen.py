"""Workers that meet with something: loaded by ``dask worker --preload``, and told by their environment what and when.

``BEFALLS`` is JSON: for the name of a shard what happens to the worker that begins to encode its rows. With
``BEFALLS_ONCE``, a folder, each kind of thing happens once, to one of them; without it everything happens always.
The device is the stand-in, as in the driver.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels.backend import Device
from pipeline import device
from pipeline.encoding import encode, worker
from tests.support.standin import install

__all__ = ["SECONDS", "dask_setup"]

SECONDS = 8  # for which a worker is silent: Dask takes none for dead before 5

BEFALLS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "crashes": lambda: ctypes.string_at(0),
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    # Called so, C code keeps the interpreter's lock: no other thread runs, and none says that the worker is alive.
    "keeps the lock": lambda: ctypes.PyDLL(None).sleep(SECONDS),
    "takes its time": lambda: time.sleep(SECONDS / 6),
    "is cut off": lambda: _cut_off(int(os.environ["BETWEEN"])),
    "loses its scheduler": lambda: os.kill(int(os.environ["SCHEDULER"]), signal.SIGKILL),
    "loses its driver": lambda: os.kill(int(Path(os.environ["DRIVER"]).read_text()), signal.SIGKILL),
}


def _cut_off(between: int) -> None:
    """For a while, in which it goes on with its work."""
    os.kill(between, signal.SIGSTOP)
    threading.Timer(SECONDS, os.kill, (between, signal.SIGCONT)).start()


def dask_setup(_worker: Any = None) -> None:
    """Make ready for it."""
    patch = pytest.MonkeyPatch()  # for as long as the process lasts
    install(patch)
    for module in (device, worker):
        patch.setattr(module, "start_device", lambda is_required=False: Device("cpu", "cpu", "stand-in"))
    befalls = json.loads(os.environ.get("BEFALLS", "{}"))
    read = encode.read

    def read_or_not(block: Any, *rest: Any) -> Any:
        name = Path(block.shard.path).name
        if name in befalls and _is_due(befalls[name]):
            BEFALLS[befalls[name]]()
        return read(block, *rest)

    patch.setattr(encode, "read", read_or_not)


def _is_due(what: str) -> bool:
    folder = os.environ.get("BEFALLS_ONCE")
    if folder is None:
        return True
    try:
        os.close(os.open(f"{folder}/{what}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
