"""Python child processes: their import path, environment and lifetime.

A child imports from the same directories as this process, except the current directory, the directory of the started
script and scratch directories of Dask, where other users may have put files that must not run. It ends when this
process ends, for whatever reason and at any time.
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

__all__ = ["ChildProcess", "collect_reports", "environment_of_child", "import_path", "main", "report"]

_ROOT = str(Path(__file__).resolve().parents[1])
_PROGRAM = "import sys; sys.path[:] = {path!r}; from pipeline.childprocess import main; main()"
_SCRATCH = "dask-scratch-space"  # name of directories that Dask adds to `sys.path`


def _current_directory() -> str | None:
    try:
        return os.path.realpath(os.getcwd())
    except OSError:  # it has been removed
        return None


_STARTED_IN = _current_directory()  # a Dask worker changes to the driver's directory later


class ChildProcess(subprocess.Popen[bytes]):
    """Python process that runs ``main()`` of a module, and that the kernel ends when this process ends.

    Both ends of a pipe, the lifeline, are held by this process and by the child. Nothing is ever written to it. When
    this process ends, the kernel closes its end and kills the child with its whole process group. This needs no thread
    in the child and does not depend on the thread here that started it.

    Parameters
    ----------
    module : str
        Full name of the module.
    arguments : str
        Its ``sys.argv[1:]``.
    environment : mapping of str to str, optional
        Variables of the child, by default those of this process. Variables of Python are always left out.
    scratch : Path, optional
        A directory that the child removes when this process has ended.
    bufsize, stdin, stdout, stderr : int
        Arguments of ``Popen``.

    Raises
    ------
    OSError
        If the process cannot be started.
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
        reader, writer = os.pipe()  # programs that other threads start inherit neither end
        self._lifeline = weakref.finalize(self, os.close, writer)
        program = _PROGRAM.format(path=import_path())
        options = [str(reader), str(scratch or ""), module]
        try:
            super().__init__(
                [sys.executable, "-I", "-c", program, *options, *arguments],
                bufsize=bufsize,
                env=environment_of_child(os.environ if environment is None else environment),
                pass_fds=(reader,),
                start_new_session=True,  # Ctrl-C is for this process, which then ends its children
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
        """Kill the process, and the processes that it has started, and wait until it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        self._lifeline()

    def answer(self, seconds: float | None = None) -> tuple[bytes, bytes, bool]:
        """Wait for the end of the process, and kill it if it takes too long.

        Returns
        -------
        stdout, stderr : bytes
            Output of the process, for streams that are pipes.
        is_in_time : bool
            Whether it has ended without being killed.
        """
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
    """Run the ``main`` of a module in a child process, and return everything that it reports.

    The child may hang or crash: its reports up to then are returned nevertheless. Its last report should be
    ``done=True``.

    Parameters
    ----------
    module : str
        Full name of the module, whose ``main`` calls `report`.
    seconds : float
        Time limit.
    environment : mapping of str to str, optional
        Argument of `ChildProcess`.

    Returns
    -------
    dict
        The reports; ``failed`` describes the failure if the child did not finish.
    """
    child = ChildProcess(module, environment=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    stdout, stderr, is_in_time = child.answer(seconds)
    found = _reports_in(stdout)
    if not is_in_time:
        return {**found, "failed": f"no answer within {seconds:.0f} s"}
    if not found.pop("done", False):  # if it crashes after that, nothing is lost
        lines = stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it printed nothing"
        found["failed"] = f"the child process exited with code {child.returncode}: {last}"
    return found


def _reports_in(output: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            reported = json.loads(line)
        except ValueError:  # a line of a library
            continue
        if isinstance(reported, dict):
            found |= reported
    return found


def environment_of_child(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those that make Python import or run something else."""
    return {name: value for name, value in environment.items() if not name.startswith("PYTHON")}


def import_path() -> list[str]:
    """Return the directories that a child imports from.

    They are those of this process, so that both import the same packages wherever these are installed. The packages of
    shardpress follow the standard library.
    """
    unsafe = {_STARTED_IN, _current_directory(), _script_directory()}
    standard = os.path.dirname(os.__file__)
    found = []
    for entry in sys.path:
        is_safe = os.path.isabs(entry) and os.path.realpath(entry) not in unsafe and _SCRATCH not in entry
        if entry == standard or (is_safe and entry != _ROOT):
            found.append(entry)
    position = found.index(standard) + 1 if standard in found else 0
    found.insert(position, _ROOT)
    return found


def _script_directory() -> str | None:
    """Return the directory of the script that this process runs, or None if it runs no script."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return None if script is None else os.path.realpath(os.path.dirname(os.path.abspath(script)))


# -- in the child ------------------------------------------------------------------------------------------------------


def report(**found: Any) -> None:
    """Send results to `collect_reports`."""
    print("\n" + json.dumps(found), flush=True)  # a library may have written an incomplete line


def main() -> None:
    """Run the module that the command line names, and end when the parent does."""
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
    """Have the kernel kill the process group of this process when the other end of the lifeline is closed."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC)
    if _has_hung_up(lifeline, 0.0):  # before the kernel began to watch it
        os.killpg(0, signal.SIGKILL)


def _clean_up_after_parent(lifeline: int, scratch: str) -> None:
    """Wait for the end of the parent, remove a directory, and kill the process group of this process."""
    _has_hung_up(lifeline, None)
    shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)


def _has_hung_up(lifeline: int, seconds: float | None) -> bool:
    watch = select.poll()
    watch.register(lifeline, 0)  # the kernel reports a closed pipe in any case
    return bool(watch.poll(None if seconds is None else 1000 * seconds))
