"""Client of the child process: start a child, ask it about an open file, and handle failures.

Messages are sent over pipes as JSON and plain arrays, never as pickles. A child serves one thread at a time. If several
threads ask at the same time, each thread starts a child. Idle children are kept for later requests.
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

from shardpress.childprocess import ChildProcess
from shardpress.errors import STORAGE, DataError, ReadFailed, SystemLimit, printable
from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.limits import MOST_ANSWER_BYTES
from shardpress.processcache import ProcessCache

log = logging.getLogger(__name__)

_MODULE = "shardpress.hdf5.child.server"
_UNSAFE_VARIABLES = ("HDF5_", "LD_AUDIT", "LD_PRELOAD")  # prefixes of environment variables
_MOST_WORDS = 2000  # characters of the child's message to quote
_SECONDS_AT_LEAST = 10.0  # CPU time
_BYTES_PER_SECOND = 2**20  # per second of CPU time; a small file has little structure to read
_CLOCK_PER_PROCESSOR = 10  # elapsed time divided by CPU time on a busy machine


@dataclass(frozen=True)
class _Limits:
    """Limits for one answer about a file of 110 MiB or more. `_limits_of` reduces them for smaller files."""

    seconds: float = 120  # CPU time
    patience: float = 1200  # elapsed seconds; much longer, so that a busy machine does not refuse intact files
    # Bytes of address space in addition to the size of the child before the request. The largest chunk index takes
    # 100 MB, and twice as much while it is sent. HDF5's metadata cache takes 32 MB, and one chunk takes 64 MiB before
    # and after decompression.
    memory: int = 2**29
    answer_bytes: int = MOST_ANSWER_BYTES
    silent: float = 5.0  # seconds after which an unanswered request is logged
    grace: float = 10.0  # seconds after `patience` until the child itself is regarded as stuck


LIMITS = _Limits()


class _Died(Exception):
    """Raised if a child process has ended or is stuck."""


class _Child:
    def __init__(self) -> None:
        # A new process, because a fork would copy locks that other threads may hold.
        self._process = ChildProcess(_MODULE, environment=_environment(), bufsize=0, stdin=PIPE, stdout=PIPE)
        self._owner = os.getpid()

    @property
    def usable(self) -> bool:
        """True if the child is alive and was started by this process, not by the parent process before a fork."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
        """Send a request, and return how the fork of the child ended, and the bytes of its answer."""
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
            ending, body = self._read(reader, request, where)
        finally:
            os.close(reader)
            os.close(writer)
        if len(body) > request["answer_bytes"]:
            self.end()  # this also kills the fork, which might never stop
            return {"end": "flood", "detail": None}, bytearray()
        return json.loads(ending), body

    def _read(self, reader: int, request: dict[str, Any], where: str) -> tuple[bytearray, bytearray]:
        """Return the line of the child and the answer of the fork. Stop early if the answer is too long."""
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
        _read_available(reader, body, request["answer_bytes"])  # the rest of the answer, after the fork has ended
        return line, body

    def end(self) -> None:
        if self._owner == os.getpid():
            self._process.end()
        else:
            self._process.returncode = 0  # only the process that started the child can wait for it
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _events(descriptors: Sequence[int], request: dict[str, Any], where: str) -> Iterator[dict[int, int]]:
    """Yield events of the descriptors. Log a long wait once, and raise `_Died` after the time limit."""
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
            log.info("%s: still reading the file; this may take up to %g s of CPU time", where, request["seconds"])
        else:
            raise _Died


def _limits_of(n_bytes: int) -> dict[str, float]:
    """Return the limits for an answer about a file of `n_bytes`. Time limits grow with the size of the file."""
    seconds = min(LIMITS.seconds, _SECONDS_AT_LEAST + n_bytes / _BYTES_PER_SECOND)
    patience = min(LIMITS.patience, _CLOCK_PER_PROCESSOR * max(seconds, _SECONDS_AT_LEAST))
    return {**asdict(LIMITS), "seconds": seconds, "patience": patience}


def _read_available(reader: int, body: bytearray, most: int) -> None:
    """Append the available bytes of a pipe to `body`, but stop soon after `most` bytes."""
    with suppress(BlockingIOError):
        while len(body) <= most and (data := os.read(reader, 2**20)):
            body += data


_idle = ProcessCache[int, _Child]()  # idle children by `id`


def ask(function: str, descriptor: int, arguments: Sequence[Any], where: str) -> tuple[Any, list[np.ndarray]]:
    """Ask the child about an open file. The child opens the same inode, whatever the path refers to now.

    `function` is ``describe``, ``values`` or ``listed`` of `child.describe`, or ``check_result`` of `child.results`.
    The child calls it with the file and the `arguments`. The answer, which is a value from JSON, and its arrays are
    untrusted.

    Raises
    ------
    DataError
        If the file is refused (then `find.Refused` is the cause), or if the child crashes or exceeds a limit.
    ReadFailed
        If the storage fails.
    SystemLimit
        If no child can be started.
    """
    request = {
        "pid": os.getpid(),
        "file": descriptor,
        "ask": function,
        "arguments": arguments,
        **_limits_of(os.fstat(descriptor).st_size),
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
        dataset = reply.get("dataset")
        if dataset is not None:
            where = f"{where} dataset={printable(dataset)}"
        reason = _quoted(reply["refused"])
        raise DataError(f"{where}: {reason}") from Refused(reason)
    raise _error_of_failure(reply, where)


def _answer_of_child(request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
    """Return the answer of a child. Try a second child if the first one is killed, because no file can cause that."""
    for _ in range(2):
        child = _idle_or_new(where)
        try:
            answer = child.ask(request, where)
        except _Died:
            child.end()
            continue
        except BaseException:
            child.end()  # otherwise a later request would receive the rest of this answer
            raise
        _idle.put(id(child), child)
        head, _ = answer
        if (head["end"], head["detail"]) != ("signal", signal.SIGKILL):  # perhaps from the kernel, if memory is short
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
    """Convert errors from checks of an answer to `DataError`."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StopIteration) as error:
        raise DataError(
            f"{where}: libhdf5 returned inconsistent facts{about} ({printable(error)}). The file is damaged or forged: "
            "do not use it."
        ) from error


@atexit.register
def retire(n_kept: int = 0) -> None:
    """End all idle children except `n_kept`. Each child takes about 20 MB."""
    while len(_idle) > n_kept:
        child = _idle.pop_last()
        if child is not None:  # another thread may have taken the last child
            child.end()


def _environment() -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(_UNSAFE_VARIABLES)}
    # Disable plugins, which are untrusted code, and threads, because the child forks.
    return {**variables, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# -- answers -----------------------------------------------------------------------------------------------------


def _unpack(body: bytearray) -> tuple[dict[str, Any], list[np.ndarray]]:
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
            f"{where}: cannot start a process to read the file: {head['detail']}. Raise the limits (ulimit -u, -n), "
            "then run the same command again."
        )
    words = {
        "signal": f"libhdf5 crashed on this file (signal {head['detail']})",
        "exit": f"libhdf5 exited on this file (exit code {head['detail']})",
        "time": f"libhdf5 took more than {head['detail']} for this file",
        "flood": "libhdf5 returned more metadata than allowed for this file",
    }
    return DataError(f"{where}: {words[head['end']]}. The file is damaged or forged: do not use it.")


def _error_of_failure(reply: dict[str, Any], where: str) -> Exception:
    if "memory" in reply:
        return DataError(
            f"{where}: libhdf5 exceeded its memory limit of {LIMITS.memory >> 20} MiB on this file. The file is "
            "damaged or forged: do not use it."
        )
    if "system" in reply:
        return SystemLimit(
            f"{where}: the process that reads the structure cannot open the file: {_quoted(reply['system'])}. Run the "
            "same command again."
        )
    words = _quoted(reply.get("failed"))
    if reply.get("errno") in STORAGE:
        return ReadFailed(f"{where}: {words}. Check the storage, then run the same command again.")
    return DataError(f"{where}: the structure cannot be read: {words}. The file is damaged: copy it again.")


def _quoted(value: object) -> str:
    """Shorten and escape a text from the child for a message, because a forged file may determine the text."""
    words = str(value)
    if len(words) > _MOST_WORDS:
        words = words[:_MOST_WORDS] + "..."
    return printable(words)
