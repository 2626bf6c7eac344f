"""The program of a local worker: Dask's nanny, which starts the worker and restarts it when it has died.

Its settings, the key of a certificate among them, come as one line of standard input, which no other process can read.
The end of standard input asks it to end. It also ends with the driver: see `pipeline.childprocess`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
from typing import Any

import dask
from distributed import Nanny, Security, Worker

from pipeline.cluster.workers import OURS

__all__ = ["Deaf", "main"]

_HUSHED = logging.CRITICAL  # an error of a task is the driver's to tell
_SECONDS = 2.0  # for a worker to end by itself; what it was at is done again, if anybody wants it


class Deaf(Worker):
    """A worker without the HTTP server that Dask's own would listen with, which leaves warnings to the driver."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for name in OURS:
            logging.getLogger(name).addHandler(logging.NullHandler())
        super().__init__(*arguments, **named)

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None:
        """None."""


def main() -> None:
    """Serve until the end of standard input."""
    logging.getLogger("distributed").setLevel(_HUSHED)
    # Dask's own variables for workers, one of which has malloc give large arrays fresh pages each time.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    asyncio.run(_serve(json.loads(sys.stdin.readline())))


async def _serve(asked: dict[str, Any]) -> None:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait_for_end() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing follows the settings
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
    nanny = Nanny(
        asked["scheduler"],
        security=Security(require_encryption=True, **asked["tls"]),
        nthreads=asked["n_threads"],
        name=asked["name"],
        host="127.0.0.1",
        protocol="tls",
        worker_class=Deaf,
        memory_limit=0,  # --memory-budget bounds it
        silence_logs=_HUSHED,
        local_directory=asked["scratch"],
    )
    async with nanny:
        ends = [asyncio.create_task(each) for each in (over.wait(), nanny.finished())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await nanny.close(timeout=_SECONDS)
