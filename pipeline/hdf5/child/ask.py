"""The parent's side of the child process: start it, ask it about an open file, and survive whatever happens to it.

Pipes only, no sockets; JSON and plain arrays, no pickle. A child serves one thread at a time: threads that ask at the
same time have one each, and keep them for the next question.
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
from pipeline.errors import STORAGE, DataError, ReadFailed, SystemLimit, shown
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.limits import MOST_ANSWER_BYTES
from pipeline.processcache import ProcessCache

__all__ = ["LIMITS", "Limits", "ask", "believed", "retire"]

log = logging.getLogger(__name__)

_MODULE = "pipeline.hdf5.child.server"
_MEDDLERS = ("HDF5_", "LD_AUDIT", "LD_PRELOAD")
_MOST_WORDS = 2000
_SECONDS_AT_LEAST = 10.0  # of processor time
_BYTES_PER_SECOND = 2**20  # of processor time: a small file has little structure to read
_CLOCK_PER_PROCESSOR = 10  # seconds by the clock for one of the processor, on a busy machine
_SILENT = 5.0  # seconds that a question may take before the log says what is waited for
_GRACE = 10.0  # seconds beyond its own patience, after which the child itself counts as stuck


@dataclass(frozen=True)
class Limits:
    """What one answer may cost, about a file of 110 MiB or more; see `_limits_of` for smaller ones."""

    seconds: float = 120  # of processor time
    patience: float = 1200  # seconds by the clock: many more, or a busy machine would have sound files refused
    # Bytes of address space beyond what the child has when it starts: the places of as many chunks as are allowed
    # (100 MB), twice while they are sent, HDF5's cache of metadata (32 MB), one chunk of 64 MiB before and after it is
    # decompressed.
    memory: int = 2**29


LIMITS = Limits()


class _Died(Exception):
    """The child has ended."""


class _Keeper:
    """One child."""

    def __init__(self) -> None:
        # Not a fork of this process, which has threads that may hold a lock.
        self._process = ChildProcess(_MODULE, environment=_environment(), bufsize=0, stdin=PIPE, stdout=PIPE)
        self._owner = os.getpid()

    @property
    def usable(self) -> bool:
        """Whether it is alive, and this process's own rather than one that it had before it was forked."""
        return self._owner == os.getpid() and self._process.poll() is None

    def ask(self, request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
        """How its fork ended, and what that has answered about the file of which `where` gives the name."""
        assert self._process.stdin is not None
        reader, writer = os.pipe()
        try:
            os.set_blocking(reader, False)
            with suppress(OSError):
                fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 2**20)
            try:
                self._process.stdin.write(json.dumps({**request, "answer": writer}).encode() + b"\n")
            except BrokenPipeError as error:
                raise _Died from error
            return self._heard(reader, request, where)
        finally:
            os.close(reader)
            os.close(writer)

    def _heard(self, reader: int, request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
        assert self._process.stdout is not None
        keeper = self._process.stdout.fileno()
        line = bytearray()
        body = bytearray()
        for events in _events([keeper, reader], request, where):
            if reader in events:
                _drain(reader, body)
            if keeper in events:
                more = os.read(keeper, 2**10)
                if not more:
                    raise _Died
                line += more
            if line.endswith(b"\n") or len(body) > MOST_ANSWER_BYTES:
                break
        _drain(reader, body)  # what was left when the fork ended
        if len(body) > MOST_ANSWER_BYTES:
            self.end()  # and with it the fork, which may never stop
            return {"end": "flood", "detail": None}, bytearray()
        return json.loads(line), body

    def end(self) -> None:
        """Take it down. Its fork dies with it."""
        if self._owner == os.getpid():
            self._process.end()
        else:
            self._process.returncode = 0  # it is not ours to wait for
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _events(descriptors: Sequence[int], request: dict[str, Any], where: str) -> Iterator[dict[int, int]]:
    """Yield what arrives on some descriptors, and log once if that takes long; `_Died` at the end of all patience."""
    waiting = select.poll()
    for descriptor in descriptors:
        waiting.register(descriptor, select.POLLIN)
    start = time.monotonic()
    deadline = start + request["patience"] + _GRACE
    until = min(deadline, start + _SILENT)
    while True:
        events = dict(waiting.poll(max(0.0, 1000 * (until - time.monotonic()))))
        if events:
            yield events
        elif until < deadline:
            until = deadline
            _log_wait(request, where)
        else:
            raise _Died


def _log_wait(request: dict[str, Any], where: str) -> None:
    """Log which file the program is waiting for, and for how long it will."""
    what = "values" if request["ask"] == "values" else "its structure"
    log.info(
        "%s: still reading %s after %g s; it may take up to %g s of processor time",
        where,
        what,
        _SILENT,
        request["seconds"],
    )


def _limits_of(n_bytes: int) -> dict[str, float]:
    """Return the limits of an answer about a file of `n_bytes`: what it may take grows with the file."""
    seconds = min(LIMITS.seconds, _SECONDS_AT_LEAST + n_bytes / _BYTES_PER_SECOND)
    patience = min(LIMITS.patience, _CLOCK_PER_PROCESSOR * max(seconds, _SECONDS_AT_LEAST))
    return {**asdict(LIMITS), "seconds": seconds, "patience": patience}


def _drain(reader: int, body: bytearray) -> None:
    """Read what is in the pipe, and stop soon after the limit."""
    with suppress(BlockingIOError):
        while len(body) <= MOST_ANSWER_BYTES and (data := os.read(reader, 2**20)):
            body += data


_idle = ProcessCache[int, _Keeper]()  # children that wait for a question, by `id`


def ask(what: str, descriptor: int, arguments: Sequence[Any], where: str) -> tuple[Any, list[np.ndarray]]:
    """Have the child look at an open file: the same inode, whatever its path leads to meanwhile.

    Parameters
    ----------
    what : str
        ``describe``, ``values``, ``stacked`` or ``listed``, functions of `child` that take the file and the
        `arguments`.
    where : str
        How an error's sentence begins.

    Returns
    -------
    answer : object
        What JSON can hold. Nothing of it is to be trusted.
    arrays : list of ndarray
        Neither.

    Raises
    ------
    DataError
        When the file is refused, with `find.Refused` as the cause; or when the child did not survive it.
    ReadFailed
        When the storage failed meanwhile.
    SystemLimit
        When no child can be started.
    """
    limits = _limits_of(os.fstat(descriptor).st_size)
    request = {"pid": os.getpid(), "file": descriptor, "ask": what, "arguments": arguments, **limits}
    head, body = _asked(request, where)
    if head["end"] != "answered":
        raise _lost(head, where)
    try:
        said, arrays = _unpacked(body)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{where}: the HDF5 library went astray on this file ({shown(error)}). Do not use it."
        ) from error
    if "answer" in said:
        return said["answer"], arrays
    if "refused" in said:
        raise _refusal(said, where) from Refused(_words(said["refused"]))
    raise _failure(said, where)


def _asked(request: dict[str, Any], where: str) -> tuple[dict[str, Any], bytearray]:
    """Return the answer of an idle child, or of another one if it or its fork is killed, which no file causes."""
    for _ in range(2):
        keeper = _taken(where)
        try:
            answer = keeper.ask(request, where)
        except _Died:
            keeper.end()
            continue
        except BaseException:
            keeper.end()  # the rest of its answer would be taken for the next one
            raise
        _idle.put(id(keeper), keeper)
        head, _ = answer
        if (head["end"], head["detail"]) != ("signal", signal.SIGKILL):  # which comes from outside: out of memory?
            return answer
    raise SystemLimit(
        f"{where}: the process that looks at files was killed or got stuck twice, expected it to answer. Check the "
        "machine's memory and storage (dmesg), then type the same command again."
    )


def _taken(where: str) -> _Keeper:
    while (keeper := _idle.pop_last()) is not None:
        if keeper.usable:
            return keeper
        keeper.end()
    try:
        return _Keeper()
    except OSError as error:
        raise SystemLimit(
            f"{where}: the process that looks at files cannot be started: {error.strerror}. Raise the limits "
            "(ulimit -n 4096, ulimit -u), then type the same command again."
        ) from error


@contextmanager
def believed(where: str, about: str = "") -> Iterator[None]:
    """Around the checks of what the child has said: `DataError` for whatever they stumble over."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StopIteration) as error:
        raise DataError(
            f"{where}: what the HDF5 library says{about} makes no sense ({shown(error)}). The file is damaged or "
            "forged: do not use it."
        ) from error


@atexit.register
def retire(n_kept: int = 0) -> None:
    """End idle children, which take some 20 MB each, but for a few."""
    while len(_idle) > n_kept:
        keeper = _idle.pop_last()
        if keeper is not None:  # another thread may have taken the last one
            keeper.end()


def _environment() -> dict[str, str]:
    """Return our variables without those that make HDF5 or the loader do something else."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_MEDDLERS)}
    # No plugins; and no threads, since it forks.
    return {**kept, "HDF5_PLUGIN_PRELOAD": "::", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


# -- answers -----------------------------------------------------------------------------------------------------


def _unpacked(body: bytearray) -> tuple[dict[str, Any], list[np.ndarray]]:
    """A JSON line, and the arrays that it announces: of two dtypes only, and exactly as many bytes."""
    offset = body.index(b"\n") + 1
    said = json.loads(body[:offset])
    arrays = []
    for code, shape in said["arrays"]:
        if code not in ("<i8", "|u1") or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("an array of another kind")
        array = np.frombuffer(body, np.dtype(code), prod(shape), offset).reshape(shape)
        offset += array.nbytes
        arrays.append(array)
    if offset != len(body):
        raise ValueError(f"{len(body)} bytes")
    return said, arrays


def _lost(head: dict[str, Any], where: str) -> Exception:
    if head["end"] == "system":
        return SystemLimit(f"{where}: no process to look at it: {head['detail']}. Raise the limits (ulimit -u, -n).")
    words = {
        "signal": f"the HDF5 library crashed on this file (signal {head['detail']})",
        "exit": f"the HDF5 library gave up on this file (exit code {head['detail']})",
        "time": f"the HDF5 library took more than {head['detail']} for this file",
        "flood": "the HDF5 library does not stop talking about this file",
    }
    return DataError(f"{where}: {words[head['end']]}. The file is damaged or forged: do not use it.")


def _refusal(said: dict[str, Any], where: str) -> Exception:
    dataset = said.get("dataset")
    if dataset is not None:
        where = f"{where} dataset={shown(dataset)}"
    return DataError(f"{where}: {_words(said['refused'])}")


def _failure(said: dict[str, Any], where: str) -> Exception:
    if "memory" in said:
        return DataError(
            f"{where}: the HDF5 library ran out of its memory limit of {LIMITS.memory >> 20} MiB on this file. It is "
            "damaged or forged: do not use it."
        )
    if "system" in said:
        return SystemLimit(f"{where}: the process that looks at it cannot open it: {_words(said['system'])}.")
    words = _words(said.get("failed"))
    if said.get("errno") in STORAGE:
        return ReadFailed(f"{where}: {words}. Check the storage, then type the same command again.")
    return DataError(f"{where}: its structure cannot be read: {words}. The file is damaged: copy it again.")


def _words(said: object) -> str:
    """Return words of the child for a message: it may have been made to say anything."""
    words = str(said)
    if len(words) > _MOST_WORDS:
        words = words[:_MOST_WORDS] + "..."
    return shown(words)
