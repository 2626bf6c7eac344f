"""Python child processes: their import path, environment and lifetime.

A child imports from the same directories as this process, with three exceptions: the current directory, the directory
of the started script, and Dask's scratch directories. Other users may have put files there that must not run. A child
ends when this process ends, for any reason; `ChildProcess` says when this is later.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shardpress.base.sourceroots import SOURCE_ROOTS

_PROGRAM = "import sys; sys.path[:] = {path!r}; from shardpress.base.childprocess import main; main()"
_SCRATCH = "dask-scratch-space"  # Dask adds directories with this name to `sys.path`


def _current_directory() -> str | None:
    try:
        return os.path.realpath(os.getcwd())
    except OSError:  # the directory has been removed
        return None


_STARTED_IN = _current_directory()  # a Dask worker changes to the driver's directory later


class ChildProcess(subprocess.Popen[bytes]):
    """Python process that runs ``main()`` of a module. The kernel kills it when this process ends.

    The two processes share a pipe, the lifeline: this process holds one end, and the child holds the other. Nothing is
    ever written to the pipe. When this process ends, the kernel closes its end of the pipe, and kills the child and all
    other processes of its process group. The child needs no thread for this. The thread that started the child can end
    earlier.

    The child gets the given environment, or that of this process, without variables ``PYTHON...``. When this process
    has ended, a thread of the child removes the directory `scratch`, if there is one, and then kills the process group.
    The thread cannot run while the child is stopped, or while a library holds the interpreter's lock.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        scratch: Path | None = None,
        bufsize: int = -1,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> None:
        reader, writer = os.pipe()  # neither end is inherited by programs that other threads start
        self._lifeline = weakref.finalize(self, os.close, writer)
        program = _PROGRAM.format(path=_import_path())
        options = [str(reader), str(scratch or ""), module]
        variables = os.environ if environment is None else environment
        try:
            super().__init__(
                [sys.executable, "-I", "-c", program, *options, *arguments],
                bufsize=bufsize,
                env={name: value for name, value in variables.items() if not name.startswith("PYTHON")},
                pass_fds=(reader,),
                start_new_session=True,  # Ctrl-C interrupts only this process, which then ends its children
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
        except BaseException:
            self._lifeline()
            raise
        finally:
            os.close(reader)

    def end(self) -> None:
        """Kill the process and all processes that it has started, and wait for its end."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self._lifeline()

    def answer(self, seconds: float | None = None) -> tuple[bytes, bytes, bool]:
        """Wait for the end, or kill the process after `seconds`. Return stdout, stderr and whether it ended in time."""
        is_in_time = True
        try:
            try:
                stdout, stderr = self.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                is_in_time = False
                os.killpg(self.pid, signal.SIGKILL)
                stdout, stderr = self.communicate()
        finally:
            self.end()
        return stdout or b"", stderr or b"", is_in_time


def collect_reports(module: str, seconds: float, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``main()`` of a module in a child process, and return all values that the child passes to `report`.

    If the child hangs or crashes, its earlier reports are still returned, and ``failed`` describes the failure. The
    last report of a child should be ``done=True``.
    """
    child = ChildProcess(module, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr, is_in_time = child.answer(seconds)
    reports = _reports_in(stdout)
    if not is_in_time:
        return {**reports, "failed": f"no answer within {seconds:.0f} s"}
    if not reports.pop("done", False):  # a crash after the last report does not matter
        lines = stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it printed nothing"
        reports["failed"] = f"the child process exited with code {child.returncode}: {last}"
    return reports


def _reports_in(output: bytes) -> dict[str, Any]:
    reports: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            reported = json.loads(line)
        except ValueError:  # a line that a library has printed
            continue
        if isinstance(reported, dict):
            reports |= reported
    return reports


def _import_path() -> list[str]:
    """Return the safe directories of the import path of this process, with our source roots after Python's library."""
    unsafe = {_STARTED_IN, _current_directory(), _script_directory()}
    standard = os.path.dirname(os.__file__)
    path = []
    for entry in sys.path:
        is_safe = os.path.isabs(entry) and os.path.realpath(entry) not in unsafe and _SCRATCH not in entry
        if entry == standard or (is_safe and entry not in SOURCE_ROOTS):
            path.append(entry)
    position = path.index(standard) + 1 if standard in path else 0
    path[position:position] = SOURCE_ROOTS
    return path


def _script_directory() -> str | None:
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if script is None else os.path.realpath(os.path.dirname(os.path.abspath(script)))


# -- in the child ------------------------------------------------------------------------------------------------------


def report(**facts: object) -> None:
    """Send results to `collect_reports`."""
    print("\n" + json.dumps(facts), flush=True)  # a library may have printed a line without a newline


def main() -> None:
    """Run the module that the command line names, and end this process when the parent process ends."""
    descriptor, scratch, module, *arguments = sys.argv[1:]
    lifeline = int(descriptor)
    os.set_inheritable(lifeline, False)
    if scratch:
        cleaner = threading.Thread(target=_clean_up_after_parent, args=(lifeline, scratch), daemon=True)
        cleaner.start()
    else:
        _end_with_parent(lifeline)
    sys.argv[:] = [module, *arguments]
    importlib.import_module(module).main()


def _end_with_parent(lifeline: int) -> None:
    """Make the kernel kill the process group of this process when the other end of the lifeline is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    if _has_hung_up(lifeline, 0.0):  # the parent may have ended before the lines above
        os.killpg(0, signal.SIGKILL)


def _clean_up_after_parent(lifeline: int, scratch: str) -> None:
    """Wait for the end of the parent process. Then remove a directory, and kill the process group of this process."""
    _has_hung_up(lifeline, None)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _has_hung_up(lifeline: int, seconds: float | None) -> bool:
    watch = select.poll()
    watch.register(lifeline, 0)  # a closed pipe is reported even if no events are requested
    return bool(watch.poll(None if seconds is None else 1000 * seconds))
