"""The parent's side of the child process: start it, ask it about an open file, and handle its failures.

Messages are JSON and plain arrays, no pickle, and are sent over pipes. A child serves one thread at a time. If
several threads ask at the same time, each starts a child, and these children are kept for later requests.
"""

import atexit
import fcntl
import json
import logging
import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from math import prod
from subprocess import PIPE
from typing import Any

import numpy as np

from pipeline.childprocess import ChildProcess
from pipeline.errors import STORAGE, DataError, ReadFailed, SystemLimit, printable
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.limits import MOST_ANSWER_BYTES
from pipeline.processcache import ProcessCache

__all__ = ["LIMITS", "Limits", "ask", "checking_answer", "retire"]

log = logging.getLogger(__name__)

_MODULE = "pipeline.hdf5.child.server"
_UNSAFE_VARIABLES = ("HDF5_", "LD_AUDIT", "LD_PRELOAD")  # prefixes of names
_MOST_WORDS = 2000  # characters of the child's text that a message quotes
_SECONDS_AT_LEAST = 10.0  # CPU time
_BYTES_PER_SECOND = 2**20  # per second of CPU time, since a small file has little structure to read
_CLOCK_PER_PROCESSOR = 10  # seconds of elapsed time for one of CPU time, on a busy machine


@dataclass(frozen=True)
class Limits:
    """Limits of one answer about a file of 110 MiB or more; see `_limits_of` for smaller ones.

    Attributes
    ----------
    seconds : float
        CPU time.
    patience : float
        Elapsed time in seconds: much more than CPU time, so that intact files are not refused on a busy machine.
    memory : int
        Bytes of address space in addition to those that the child has at its start. They hold the index of the largest
        number of chunks (100 MB, twice while it is sent), HDF5's metadata cache (32 MB), and one chunk of 64 MiB before
        and after decompression.
    answer_bytes : int
        Bytes of the answer.
    silent : float
        Seconds after which an unanswered request is logged.
    grace : float
        Seconds after `patience` at which the child itself is regarded as stuck.
    """

    seconds: float = 120
    patience: float = 1200
    memory: int = 2**29
    answer_bytes: int = MOST_ANSWER_BYTES
    silent: float = 5.0
    grace: float = 10.0


LIMITS = Limits()


class _Died(Exception):
    """Error of a child process that has ended or is stuck."""


class _Child:
    """A child process."""

    def __init__(self) -> None:
        # The child is not a fork of this process, whose other threads may hold a lock.
        self._process = ChildProcess(_MODULE, environment=_environment(), bufsize=0, stdin=PIPE, stdout=PIPE)
        self._owner = os.getpid()

    @property
    def usable(self) -> bool:
        """True if the child is alive and was started by this process, not by its parent before a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
        """Return how the child's fork ended, and its answer about the file that `where` names."""
        assert self._process.stdin is not None
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            with suppress(OSError):
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)
            line = json.dumps({**request, "answer": writer}).encode() + b"\n"
            try:
                self._process.stdin.write(line)
            except BrokenPipeError as error:
                raise _Died from error
            return self._receive(reader, request, where)
        finally:
            os.close(reader)
            os.close(writer)

    def _receive(self, reader: int, request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
        line, body = self._read(reader, request, where)
        if len(body) > request["answer_bytes"]:
            self.end()  # this also ends the fork, which may never stop
            return {"end": "flood", "detail": None}, bytearray()
        return json.loads(line), body

    def _read(self, reader: int, request: dict[str, Any], where: str) -> tuple[bytearray, bytearray]:
        """Return the line of the child and the answer of its fork, or the start of an answer that is too long."""
        assert self._process.stdout is not None
        child = self._process.stdout.fileno()
        line = bytearray()
        body = bytearray()
        for events in _events([child, reader], request, where):
            if reader in events:
                _read_available(reader, body, request["answer_bytes"])
            if child in events:
                more = os.read(child, 2**10)
                if not more:
                    raise _Died
                line += more
            if line.endswith(b"\n") or len(body) > request["answer_bytes"]:
                break
        _read_available(reader, body, request["answer_bytes"])  # the rest of the answer, after the end of the fork
        return line, body

    def end(self) -> None:
        """End the child, and with it its fork."""
        if self._owner == os.getpid():
            self._process.end()
        else:
            self._process.returncode = 0  # only the process that started it can wait for it
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _events(descriptors: Sequence[int], request: dict[str, Any], where: str) -> Iterator[dict[int, int]]:
    """Yield events of some descriptors; log a long wait once, and raise `_Died` after the time limit."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    start = time.monotonic()
    deadline = start + request["patience"] + request["grace"]
    until = min(deadline, start + request["silent"])
    while True:
        timeout = max(0.0, 1000 * (until - time.monotonic()))
        events = dict(waiting.poll(timeout))
        if events:
            yield events
        elif until < deadline:
            until = deadline
            _log_wait(request, where)
        else:
            raise _Died


def _log_wait(request: dict[str, Any], where: str) -> None:
    """Log which file the program is waiting for, and the time limit."""
    subject = "values" if request["ask"] == "values" else "its structure"
    log.info(
        "%s: still reading %s after %g s; this may take up to %g s of CPU time",
        where,
        subject,
        request["silent"],
        request["seconds"],
    )


def _limits_of(n_bytes: int, limits: Limits) -> dict[str, float]:
    """Return the limits of an answer about a file of `n_bytes`: they grow with the file."""
    seconds = min(limits.seconds, _SECONDS_AT_LEAST + n_bytes / _BYTES_PER_SECOND)
    patience = min(limits.patience, _CLOCK_PER_PROCESSOR * max(seconds, _SECONDS_AT_LEAST))
    return {**asdict(limits), "seconds": seconds, "patience": patience}


def _read_available(reader: int, body: bytearray, most: int) -> None:
    """Append the available bytes of a pipe to `body`, and stop soon after `most` bytes."""
    with suppress(BlockingIOError):
        while len(body) <= most and (data := os.read(reader, 2**20)):
            body += data


_idle = ProcessCache[int, _Child]()  # children that wait for a request, by `id`


def ask(
    function: str, descriptor: int, arguments: Sequence[Any], where: str, limits: Limits | None = None
) -> tuple[Any, list[np.ndarray]]:
    """Ask the child about an open file; the inode is used, not the path.

    Parameters
    ----------
    function : str
        ``describe``, ``values``, ``stacked`` or ``listed``: functions of `child` that take the file and the
        `arguments`.
    where : str
        Beginning of error messages.
    limits : Limits, optional
        Limits of an answer about a large file, by default `LIMITS`.

    Returns
    -------
    answer : object
        An untrusted value from JSON.
    arrays : list of ndarray
        Untrusted arrays.

    Raises
    ------
    DataError
        If the file is refused, with `find.Refused` as the cause; or if the child crashes on it or exceeds a limit.
    ReadFailed
        If the storage fails.
    SystemLimit
        If no child can be started.
    """
    if limits is None:
        limits = LIMITS
    request = {
        "pid": os.getpid(),
        "file": descriptor,
        "ask": function,
        "arguments": arguments,
        **_limits_of(os.fstat(descriptor).st_size, limits),
    }
    head, body = _answer_of_child(request, where)
    if head["end"] != "answered":
        raise _error_without_answer(head, where)
    try:
        reply, arrays = _unpack(body)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{where}: libhdf5 returned malformed data for this file ({printable(error)}). The file is damaged or "
            "forged: do not use it."
        ) from error
    if "answer" in reply:
        return reply["answer"], arrays
    if "refused" in reply:
        raise _error_of_refusal(reply, where) from Refused(_quoted(reply["refused"]))
    raise _error_of_failure(reply, where, limits)


def _answer_of_child(request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
    """Return the answer of a child, or of a second one if the first one or its fork is killed, which no file causes."""
    for _ in range(2):
        child = _idle_or_new(where)
        try:
            answer = child.ask(request, where)
        except _Died:
            child.end()
            continue
        except BaseException:
            child.end()  # otherwise the rest of its answer would be read as the next one
            raise
        _idle.put(id(child), child)
        head, _ = answer
        if (head["end"], head["detail"]) != ("signal", signal.SIGKILL):  # perhaps sent by the kernel for lack of memory
            return answer
    raise SystemLimit(
        f"{where}: the process that reads the structure of files was killed or hung twice. Check the machine's "
        "memory and storage (dmesg), then run the same command again."
    )


def _idle_or_new(where: str) -> _Child:
    while (child := _idle.pop_last()) is not None:
        if child.usable:
            return child
        child.end()
    try:
        return _Child()
    except OSError as error:
        raise SystemLimit(
            f"{where}: cannot start the process that reads the structure of files: {error.strerror}. Raise the "
            "limits (ulimit -n 4096, ulimit -u), then run the same command again."
        ) from error


@contextmanager
def checking_answer(where: str, about: str = "") -> Iterator[None]:
    """Turn errors of checks of an answer into `DataError`."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StopIteration) as error:
        raise DataError(
            f"{where}: libhdf5 returned inconsistent facts{about} ({printable(error)}). The file is damaged or forged: "
            "do not use it."
        ) from error


@atexit.register
def retire(n_kept: int = 0) -> None:
    """End all idle children except `n_kept`; each takes some 20 MB."""
    while len(_idle) > n_kept:
        child = _idle.pop_last()
        if child is not None:  # another thread may have taken the last one
            child.end()


def _environment() -> dict[str, str]:
    """Return the environment without variables that change the behaviour of HDF5 or of the dynamic loader."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_UNSAFE_VARIABLES)}
    # No plugins, which are untrusted code, and no threads, since the child forks.
    return {**variables, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# -- answers -----------------------------------------------------------------------------------------------------


def _unpack(body: bytearray) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the JSON line and the arrays of an answer; `ValueError` for other dtypes or a wrong number of bytes."""
    offset = body.index(b"\n") + 1
    reply = json.loads(body[:offset])
    arrays = []
    for code, shape in reply["arrays"]:
        array = _array(body, offset, code, shape)
        offset += array.nbytes
        arrays.append(array)
    if offset != len(body):
        raise ValueError(f"{len(body)} bytes, expected {offset}")
    return reply, arrays


def _array(body: bytearray, offset: int, code: Any, shape: Any) -> np.ndarray:
    if code not in ("<i8", "|u1") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("unexpected dtype or shape of an array")
    return np.frombuffer(body, np.dtype(code), prod(shape), offset).reshape(shape)


def _error_without_answer(head: dict[str, Any], where: str) -> Exception:
    if head["end"] == "system":
        return SystemLimit(
            f"{where}: cannot start a process to read it: {head['detail']}. Raise the limits (ulimit -u, -n), "
            "then run the same command again."
        )
    words = {
        "signal": f"libhdf5 crashed on this file (signal {head['detail']})",
        "exit": f"libhdf5 exited on this file (exit code {head['detail']})",
        "time": f"libhdf5 took more than {head['detail']} for this file",
        "flood": "libhdf5 returned more metadata than allowed for this file",
    }
    return DataError(f"{where}: {words[head['end']]}. The file is damaged or forged: do not use it.")


def _error_of_refusal(reply: dict[str, Any], where: str) -> Exception:
    dataset = reply.get("dataset")
    if dataset is not None:
        where = f"{where} dataset={printable(dataset)}"
    return DataError(f"{where}: {_quoted(reply['refused'])}")


def _error_of_failure(reply: dict[str, Any], where: str, limits: Limits) -> Exception:
    if "memory" in reply:
        return DataError(
            f"{where}: libhdf5 exceeded its memory limit of {limits.memory >> 20} MiB on this file. The file is "
            "damaged or forged: do not use it."
        )
    if "system" in reply:
        return SystemLimit(
            f"{where}: the process that reads its structure cannot open it: {_quoted(reply['system'])}. Run the same "
            "command again."
        )
    words = _quoted(reply.get("failed"))
    if reply.get("errno") in STORAGE:
        return ReadFailed(f"{where}: {words}. Check the storage, then run the same command again.")
    return DataError(f"{where}: its structure cannot be read: {words}. The file is damaged: copy it again.")


def _quoted(value: object) -> str:
    """Return a text of the child for a message: shortened and escaped, since a forged file may determine it."""
    words = str(value)
    if len(words) > _MOST_WORDS:
        words = words[:_MOST_WORDS] + "..."
    return printable(words)
