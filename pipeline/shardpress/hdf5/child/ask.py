"""Client of the child process: start a child, ask it about an open file, and handle failures.

Messages are JSON and plain arrays, never pickles. A child serves one thread at a time. If several threads ask at the
same time, each thread starts a child. Idle children are kept for later requests.
"""

import atexit
import json
import logging
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from shardpress.base import signals
from shardpress.base.childprocess import ChildProcess
from shardpress.base.errors import STORAGE, DataError, ReadFailed, SystemLimit, printable
from shardpress.base.processcache import ProcessCache
from shardpress.hdf5.limits import MOST_ANSWER_BYTES

if TYPE_CHECKING:
    from shardpress.hdf5.child.message import Failure

log = logging.getLogger(__name__)

T = TypeVar("T")

_MODULE = "shardpress.hdf5.child.server"
_UNSAFE_VARIABLES = ("HDF5_", "LD_AUDIT", "LD_PRELOAD")  # prefixes of environment variables
_LENGTH_BYTES = 8  # of the length that precedes each message
_PIECE = 2**16  # bytes that are received at once; the kernel passes on few more, and memory for them takes longer
_TRUNCATED = re.compile(r"truncated file: eof = (\d+), .*base_addr = (\d+), stored_eof = (\d+)")  # in libhdf5's message
_MOST_WORDS = 2000  # characters of the child's message to quote
_MOST_ANSWERS = 20_000  # of one child, in case that libhdf5 leaks memory
_SECONDS_AT_LEAST = 10.0  # processor time
_SECONDS_OF_VALUES = 2.0  # the same for values: at most `ANSWER_BYTES`, which usually take milliseconds
_SECONDS_AFTER_FAILURES = 1.0  # the same at the least, because other values of a damaged file can be intact
_BYTES_PER_SECOND = 2**20  # per second of processor time; a small file has little structure to read
_CLOCK_PER_PROCESSOR = 10  # elapsed time divided by processor time on a busy machine
_MOST_ENDED = 8  # failed requests of a dataset, after which nothing more is read from it
_SECONDS_TO_CHECK = 0.5  # between checks for signals


@dataclass(frozen=True)
class _Limits:
    """Limits for one answer about a file of 110 MiB or more.

    `_limits_of` reduces them for smaller files, and for files that have ended children.
    """

    seconds: float = 120  # processor time
    patience: float = 1200  # elapsed seconds; much longer, so that a busy machine does not refuse intact files
    # Bytes of address space in addition to the size of the child when it starts. The largest chunk index takes 100 MB,
    # and twice as much while it is sent. HDF5's metadata cache takes 100 MB, and one chunk 64 MiB before and after
    # decompression.
    memory: int = 2**29
    answer_bytes: int = MOST_ANSWER_BYTES
    silent: float = 5.0  # seconds after which an unanswered request is logged
    start: float = 600.0  # elapsed seconds until a child is ready


LIMITS = _Limits()


class Refusal(DataError):
    """Raised if the child has read a file, and refuses it."""

    reason = ""  # end of the message, after the file


class MemoryExceeded(DataError):
    """Raised if the child needs more memory than it may use."""


class _Died(Exception):
    """Raised if a child has ended without an answer, or was ended because of its answer. The message says why."""

    def __init__(self, reason: str, is_killed: bool = False, is_slow: bool = False) -> None:
        super().__init__(reason)
        self.is_killed = is_killed  # perhaps by the kernel, because memory is short; no file can cause that
        self.is_slow = is_slow  # the limit of processor time ended it; no earlier file can cause that


class _Child:
    """Child process that answers requests. It is ready when its first message arrives."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            # A new process, because a fork would copy locks that other threads may hold.
            self._process = ChildProcess(
                _MODULE,
                str(LIMITS.memory),
                environment=_environment(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            self._connection = ours.dup()
        self._owner = os.getpid()
        self._n_answers = 0
        self._is_ready = False

    @property
    def is_usable(self) -> bool:
        """True if the child is alive and was started by this process, not by the parent process before a fork."""
        return self._owner == os.getpid() and self._n_answers < _MOST_ANSWERS and self._process.poll() is None

    def ask(self, request: dict[str, Any], descriptor: int, limits: _Limits, where: str) -> bytearray:
        """Send a request about an open file, and return the answer. Raise `_Died` if there is none."""
        if not self._is_ready:
            self._received(replace(limits, patience=limits.start), where)
            self._is_ready = True
        self._n_answers += 1
        body = json.dumps({**request, "seconds": limits.seconds}).encode()
        message = len(body).to_bytes(_LENGTH_BYTES, "little") + body
        try:
            n_sent = socket.send_fds(self._connection, [message], [descriptor])
            self._connection.sendall(message[n_sent:])
        except OSError:
            raise self._death(limits) from None
        return self._received(limits, where)

    def _received(self, limits: _Limits, where: str) -> bytearray:
        """Return the next message of the child, which sends no other one before the next request."""
        message = bytearray()
        for _ in self._arrivals(limits, where):
            piece = b""
            with suppress(ConnectionError):  # the child has ended before it received the request
                piece = self._connection.recv(_PIECE)
            if not piece:
                raise self._death(limits)
            message += piece
            n_bytes = int.from_bytes(message[:_LENGTH_BYTES], "little")
            if len(message) >= _LENGTH_BYTES and n_bytes > limits.answer_bytes:
                raise _Died("libhdf5 returned more metadata than allowed for this file")
            if len(message) >= _LENGTH_BYTES + n_bytes:
                break
        return message[_LENGTH_BYTES:]

    def _arrivals(self, limits: _Limits, where: str) -> Iterator[None]:
        """Yield whenever bytes can be received. Log a long wait once, and raise `_Died` after the time limit.

        Raise `shardpress.base.signals.Stopped` soon after a signal, in any thread.
        """
        waiting = select.poll()
        waiting.register(self._connection, select.POLLIN)
        start = time.monotonic()
        deadline = start + limits.patience
        until = min(deadline, start + limits.silent)
        while True:
            signals.check()
            seconds = min(_SECONDS_TO_CHECK, max(0.0, until - time.monotonic()))
            if waiting.poll(1000 * seconds):
                yield
            elif time.monotonic() < until:
                continue
            elif until < deadline:
                until = deadline
                log.info("%s: still reading the file; this may take up to %g s of CPU time", where, limits.seconds)
            else:
                raise _Died(f"libhdf5 took more than {limits.patience:g} s for this file", not self._is_ready)

    def _death(self, limits: _Limits) -> _Died:
        """Return why the child has ended."""
        code = self._process.wait()
        if not self._is_ready or code == -signal.SIGKILL:
            return _Died("", is_killed=True)
        if code == -signal.SIGXCPU:
            return _Died(f"libhdf5 took more than {limits.seconds:.3g} s of CPU time for this file", is_slow=True)
        if code < 0:
            return _Died(f"libhdf5 crashed on this file (signal {-code})")
        return _Died(f"libhdf5 exited on this file (exit code {code})")

    def end(self) -> None:
        if self._owner == os.getpid():
            self._process.end()
        else:
            self._process.returncode = 0  # only the process that started the child can wait for it
        self._connection.close()


def _limits_of(function: str, n_bytes: int, n_ended: int) -> _Limits:
    """Return the limits for an answer about a file of `n_bytes`, which has ended a number of children before.

    Time limits grow with the size of the file. Each child that it has ended halves the processor
    time, down to a second.
    """
    least = _SECONDS_OF_VALUES if function == "values" else _SECONDS_AT_LEAST
    seconds = min(LIMITS.seconds, least + n_bytes / _BYTES_PER_SECOND)
    patience = min(LIMITS.patience, _CLOCK_PER_PROCESSOR * max(seconds, _SECONDS_AT_LEAST))
    seconds = max(seconds / 2**n_ended, min(seconds, _SECONDS_AFTER_FAILURES))
    return replace(LIMITS, seconds=seconds, patience=patience)


_idle = ProcessCache[int, _Child]()  # idle children by `id`
# Number of children that each dataset has ended, by the file and the function. Rows and strings have other functions,
# so that damaged strings take no time from the rows.
_ended = ProcessCache[tuple[int, int, int, str], Counter[str]](max_size=1000)


def ask(function: str, descriptor: int, arguments: Sequence[Any], kind: type[T], where: str) -> T:
    """Ask the child about an open file. The child reads the same inode, whatever the path refers to now.

    `function` is one of `child.server._FUNCTIONS`. The child calls it with the file and the `arguments`. The answer has
    the type `kind`, but its values are untrusted.

    Raises
    ------
    DataError
        If the file is refused (then it is a `Refusal`), or if the child crashes or exceeds a limit.
    ReadFailed
        If the storage fails.
    SystemLimit
        If no child can be started.
    """
    return understood(asked(function, descriptor, arguments, where), kind, where)


def asked(function: str, descriptor: int, arguments: Sequence[Any], where: str) -> bytearray:
    """Return the answer of the child as a message, for `understood`. The errors are those of `ask`."""
    return _answer_of_child({"ask": function, "arguments": arguments}, descriptor, where)


def understood(answer: bytearray, kind: type[T], where: str) -> T:
    """Return an answer of the child as a `kind`. The errors are those of `ask`."""
    from shardpress.hdf5.child.message import Failure, unpacked  # slow; a child starts before it is loaded

    try:
        reply = unpacked(answer, kind)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{where}: libhdf5 returned malformed data for this file ({printable(error)}). The file is damaged or "
            "forged: do not use it."
        ) from error
    if isinstance(reply, Failure):
        raise _error_of(reply, where)
    return reply


def start_early() -> None:
    """Start a child, which loads its libraries while this process loads others, unless an earlier run has left one."""
    if len(_idle) > 0:
        return
    with suppress(OSError):  # the first request tries again, and reports the error
        child = _Child()
        _idle.put(id(child), child)


def _answer_of_child(request: dict[str, Any], descriptor: int, where: str) -> bytearray:
    """Return the answer of a child. If it ends without one, ask a new child, because an earlier file can be the cause.

    Raise `DataError` if the new child ends, too, if the processor time is over, or if too many requests about the
    dataset have failed in these ways.
    """
    status = os.fstat(descriptor)
    function = request["ask"]
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, function)
    dataset = str(request["arguments"][:1])
    ended = _ended.get(key) or Counter()
    if ended[dataset] >= _MOST_ENDED:
        raise DataError(
            f"{where}: not read, because libhdf5 has failed {ended[dataset]} times to read from this dataset. The file "
            "is damaged or forged: do not use it."
        )
    limits = _limits_of(function, status.st_size, ended.total())
    child = _idle_or_new(where)
    try:
        return _answer(child, request, descriptor, limits, where)
    except _Died as error:
        death = error
    if not death.is_slow:
        try:
            return _answer(_new(where), request, descriptor, limits, where)
        except _Died as error:
            death = error
    if death.is_killed:
        raise SystemLimit(
            f"{where}: the process that reads the structure of files was killed or hung twice. Check the machine's "
            "memory and storage (dmesg), then run the same command again."
        ) from death
    _ended.get_or_make(key, Counter)[dataset] += 1
    advice = "The file is damaged or forged: do not use it."
    if death.is_slow:
        advice = "The file is damaged, or has very many small datasets: write their rows into one."
    raise DataError(f"{where}: {death}. {advice}") from death


def _answer(child: _Child, request: dict[str, Any], descriptor: int, limits: _Limits, where: str) -> bytearray:
    """Return the answer of a child, and keep the child. End it if there is no answer."""
    try:
        answer = child.ask(request, descriptor, limits, where)
    except BaseException:
        child.end()  # otherwise a later request would receive the rest of this answer
        raise
    _idle.put(id(child), child)
    return answer


def _idle_or_new(where: str) -> _Child:
    while (child := _idle.pop_last()) is not None:
        if child.is_usable:
            return child
        child.end()
    return _new(where)


def _new(where: str) -> _Child:
    try:
        return _Child()
    except OSError as error:
        raise SystemLimit(
            f"{where}: cannot start the process that reads the structure of files: {error.strerror}. Raise the "
            "limits (ulimit -n 4096, ulimit -u), then run the same command again."
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
    # Disable plugins from directories, which are untrusted code, and threads, which would need more memory.
    variables |= {"HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # Reuse memory, because new pages for each chunk would take half of the time.
    return {**variables, "MALLOC_MMAP_THRESHOLD_": str(2**22), "MALLOC_TRIM_THRESHOLD_": str(2**24)}


def _error_of(failure: "Failure", where: str) -> Exception:
    words = failure.words[:_MOST_WORDS] + "..." if len(failure.words) > _MOST_WORDS else failure.words
    words = printable(words)  # a forged file may determine the text
    if failure.kind == "refused":
        place = "" if failure.dataset is None else f" dataset={printable(failure.dataset)}"
        refusal = Refusal(f"{where}{place}: {words}")
        refusal.reason = f"{place}: {words}"
        return refusal
    if failure.kind == "memory":
        return MemoryExceeded(
            f"{where}: libhdf5 exceeded its memory limit of {LIMITS.memory >> 20} MiB on this file. The file is "
            "damaged or forged: do not use it."
        )
    if failure.errno in STORAGE:
        return ReadFailed(f"{where}: {words}. Check the storage, then run the same command again.")
    truncated = _TRUNCATED.search(words)
    if truncated is not None:
        n_bytes, base, expected = map(int, truncated.groups())  # the first number is without a user block
        return DataError(f"{where}: truncated: {base + n_bytes} bytes, expected {expected} bytes. Copy the file again.")
    return DataError(f"{where}: the structure cannot be read: {words}. The file is damaged: copy it again.")
