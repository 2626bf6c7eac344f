"""A scheduler and workers of Dask, started by hand as a user or a batch system would, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.hosts import HERE, Place
from tests.support.interpreters import REPOSITORY, environment

__all__ = ["Cluster", "until"]

# What lies between a worker and its scheduler: stopped, it keeps all that is on its way, and both ends hear nothing.
_BETWEEN = """
import asyncio, sys
from pathlib import Path
async def pass_on(reader, writer):
    while data := await reader.read(2**16):
        writer.write(data)
    writer.close()
async def serve(host, port, file):
    async def connect(reader, writer):
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        both = pass_on(reader, there_writer), pass_on(there_reader, writer)
        await asyncio.gather(*both, return_exceptions=True)
    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    Path(file).write_text(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()
asyncio.run(serve(*sys.argv[1:]))
"""
_DASK = (sys.executable, "-m", "dask")
_SECONDS = 240.0  # for what takes one on a machine that is not busy


def until(is_so: Callable[[], object], what: str, seconds: float = _SECONDS) -> None:
    """Wait for something, and say what it was if it does not come."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.02)


class Cluster:
    """As long as the context lasts; what all of it says stands in files of the folder.

    Parameters
    ----------
    folder : Path
    place : Place
        Where the scheduler runs.
    variables : str, Path or None
        Of the environment; see `tests.support.interpreters.environment`.

    Attributes
    ----------
    processes : dict of str to Popen
        By name; the scheduler's is ``scheduler``.
    file : Path
        For ``--scheduler-file``.
    """

    def __init__(self, folder: Path, place: Place = HERE, **variables: str | Path | None) -> None:
        folder.mkdir(exist_ok=True)
        self._place = place
        self.folder, self.file, self._variables = folder, folder / "scheduler.json", variables
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start_scheduler()
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):  # the scheduler last: what it loses it would tell
            self.kill(name)

    def start_scheduler(self) -> None:
        """A new one, to which no worker has come yet, in the place of one that has ended."""
        if "scheduler" in self.processes:
            self.kill("scheduler")
        self.file.unlink(missing_ok=True)
        where = ("--host", self._place.address, "--port", "0", "--scheduler-file", str(self.file))
        command = [*_DASK, "scheduler", *where, "--no-dashboard", "--no-show"]
        # A run refuses a scheduler that imports from a directory of another user.
        self._run("scheduler", command, self._place, DASK_TEMPORARY_DIRECTORY=str(self.folder))
        until(lambda: self.file.exists() and self.file.stat().st_size, f"the scheduler: {self.said('scheduler')}")

    def start_worker(
        self, name: str, *flags: str, place: Place = HERE, directory: Path | None = None, **variables: str
    ) -> None:
        """One of one thread, which ends with its scheduler; without a nanny unless a flag says otherwise."""
        where = (
            "--scheduler-file",
            str(self.file),
            "--host",
            place.address,
            "--no-dashboard",
            "--death-timeout",
            "120",
        )
        nanny = () if "--nanny" in flags else ("--no-nanny",)
        scratch = ("--local-directory", str(self.folder))
        flags = (*where, *nanny, *scratch, "--nthreads", "1", "--name", name, *flags)
        self._run(name, [*_DASK, "worker", *flags], place, directory, **variables)

    def start_between(self, name: str) -> Path:
        """What passes on bytes to and from the scheduler, as a network does; the file for ``--scheduler-file``."""
        told, port = json.loads(self.file.read_text()), self.folder / f"{name}.port"
        host, _, there = told["address"].removeprefix("tcp://").partition(":")
        self._run(name, [sys.executable, "-c", _BETWEEN, host, there, str(port)])
        until(lambda: port.exists() and port.read_text(), name)
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps({**told, "address": f"tcp://{host}:{port.read_text()}"}))
        return file

    def wait_for(self, *names: str) -> None:
        """Until these workers are known to the scheduler."""
        for name in names:
            until(lambda name=name: "Registered to:" in self.said(name), f"worker {name}")

    def kill(self, name: str, by: int = signal.SIGKILL) -> None:
        """Send a process a signal; what it is killed by is waited for."""
        process = self.processes[name]
        with suppress(ProcessLookupError):
            os.kill(process.pid, by)
        if by == signal.SIGKILL:
            process.wait(_SECONDS)
            del self.processes[name]

    def said(self, name: str) -> str:
        """All that a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _run(
        self, name: str, command: Sequence[str], place: Place = HERE, directory: Path | None = None, **variables: str
    ) -> None:
        command, env = [*place.command, *command], environment(**{**self._variables, **variables})
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=directory or REPOSITORY, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
