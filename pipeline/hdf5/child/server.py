"""The child process: it forks for each file, and the fork can read that file and nothing else.

`ask` starts it as a separate program, which loads h5py once. A file that makes libhdf5 fail affects only one fork,
which has limits on memory and time and exits after its answer.
"""

import ctypes
import gc
import json
import os
import re
import resource
import select
import signal
import struct
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import h5py
import numpy as np

from pipeline.hdf5.child.describe import describe, listed, values
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.child.stacked import stacked

__all__ = ["main"]

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_LANDLOCK_CREATE_RULESET = 444  # system calls, with the same numbers on every architecture
_LANDLOCK_ADD_RULE = 445
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_EVERYTHING = 2**13 - 1
_LANDLOCK_READ_FILE = 4


def main() -> None:
    """Answer requests, one JSON line each on standard input, until standard input is closed.

    A request contains the ``pid`` of its sender, and two descriptors of that process: the open ``file``, and a pipe for
    the ``answer``. Its limits are ``seconds`` of CPU time, ``patience`` in seconds of elapsed time, and ``memory``
    in bytes. ``ask`` names a function (``describe``, ``values``, ``stacked`` or ``listed``), and ``arguments`` are the
    arguments of the function. When the fork has ended, the child writes a JSON line with the kind of ``end``
    (``answered``, ``signal``, ``exit``, ``time``, ``system``) and a ``detail``.
    """
    # Terminals and batch systems send signals to the whole process group. When the driver stops, its pipe closes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Leave the network, if the process has the privilege. A user namespace would grant it, but deny access to the
    # driver's files. Without the privilege, forks still cannot create sockets, since they can open no descriptors.
    _LIBC.unshare(_CLONE_NEWNET)
    _warm_up()
    gc.freeze()  # keeps the memory of existing objects shared with every fork
    for line in sys.stdin.buffer:
        end, detail = _serve(json.loads(line))
        _write(1, json.dumps({"end": end, "detail": detail}).encode() + b"\n")
        if end == "system":
            break  # the next process may have more resources, and starts without leftover descriptors


def _warm_up() -> None:
    """Answer every kind of request once, since a fork cannot import what Python and h5py load on first use."""
    with h5py.File.in_memory() as file:
        _write_rows(file)
        _write_columns(file)
        for name in (*_ROWS, *_COLUMNS, None, "nowhere", "\udcff\n"):
            for orientation in (None, "columns"):
                _call(describe, file, (name, orientation))
        _call(values, file, ("X", 0, 2, -1))
        for name in file:
            _call(values, file, (name, 0, 4))
        _call(listed, file, ())


_ROWS = ("X", "table", "sparse", "soft", "external")


def _write_rows(file: h5py.File) -> None:
    """Write rows and extras in every form."""
    file.create_dataset("X", data=np.zeros((4, 2)), chunks=(2, 2), compression="gzip")
    file["X"].attrs["columns"] = ["a", "b"]
    file["records"] = np.array([(1, b"a", [1, 2])] * 4, [("a", "i4"), ("b", "S3"), ("c", "f8", 2)])
    file["strings"] = ["a", "b", "c", "ü"]
    file["bytes"] = [b"a"] * 4
    file["enumeration"] = np.zeros(4, h5py.enum_dtype({"a": 0}))
    file["table"] = np.zeros(4, [("a", "f8"), ("b", "f8")])
    file["sparse/data"] = np.ones(2)
    file["sparse/indices"] = np.arange(2)
    file["sparse/indptr"] = np.arange(3)
    file["sparse"].attrs.update({"encoding-type": "csr_matrix", "shape": (2, 2)})
    file["soft"] = h5py.SoftLink("nowhere")
    file["external"] = h5py.ExternalLink("nowhere", "nowhere")


_COLUMNS = ("numbers/X", "texts/X", "groups/X", "tables/X", "masked/X", "linked/X", "frame")


def _write_columns(file: h5py.File) -> None:
    """Write names and numbers of columns in every form that `find_columns` reads."""
    _write_scale(file, "numbers", [1.0, 2.0])
    _write_scale(file, "texts", ["a", "b"])
    for name in ("groups", "tables", "masked", "linked"):
        file[f"{name}/X"] = np.zeros((4, 2))
    file["groups/var/_index"] = ["a", "b"]
    file["groups/var"].attrs["_index"] = "_index"
    file["tables/var"] = np.array([(b"a", 1), (b"b", 2)], [("index", "S3"), ("n", "i4")])
    file["masked/var/_index/values"] = ["a", "b"]
    file["masked/var/_index/mask"] = np.zeros(2, bool)
    file["linked/var"] = h5py.ExternalLink("nowhere", "nowhere")
    file["frame/block0_values"] = np.zeros((4, 2))
    file["frame/block0_items"] = [1, 2]


def _write_scale(file: h5py.File, group: str, scale: Sequence[float] | Sequence[str]) -> None:
    """Write rows whose columns have a dimension scale."""
    file[f"{group}/X"] = np.zeros((4, 2))
    file[f"{group}/wavelength"] = scale
    file[f"{group}/wavelength"].make_scale("wavelength")
    file[f"{group}/X"].dims[1].attach_scale(file[f"{group}/wavelength"])


def _serve(request: dict[str, Any]) -> tuple[str, object]:
    """Let a fork answer a request, and return how it ended: ``end`` and ``detail``."""
    try:
        writer = os.open(f"/proc/{request['pid']}/fd/{request['answer']}", os.O_WRONLY)
        exit_reader, exit_writer = os.pipe()  # the fork keeps its end open until it exits
        child = os.fork()
    except OSError as error:
        return "system", error.strerror
    if not child:
        try:
            _answer(request, writer, exit_writer)
        finally:
            os._exit(1)
    os.close(writer)
    os.close(exit_writer)
    code = _exit_code(child, exit_reader, request["patience"])
    if code is None:
        return "time", f"{request['patience']:g} s"
    return _end_of(code, request)


def _exit_code(child: int, exit_reader: int, seconds: float) -> int | None:
    """Wait for a fork, end it if it takes too long, and return its exit code; None if it took too long."""
    try:
        in_time = _ends_in_time(exit_reader, seconds)
    finally:
        os.close(exit_reader)
        os.kill(child, signal.SIGKILL)  # without effect if it has exited by itself
        _, status = os.waitpid(child, 0)
    if not in_time:
        return None
    return os.waitstatus_to_exitcode(status)


def _end_of(code: int, request: dict[str, Any]) -> tuple[str, object]:
    """Return how a fork with this exit code has ended: ``end`` and ``detail``."""
    if code == -signal.SIGXCPU:
        return "time", f"{request['seconds']:g} s of CPU time"
    if code < 0:
        return "signal", -code
    if code > 0:
        return "exit", code
    return "answered", None


def _ends_in_time(exit_reader: int, seconds: float) -> bool:
    """Wait for a fork, and return whether it exits within some seconds."""
    waiting = select.poll()
    waiting.register(exit_reader, 0)
    waiting.register(0, 0)
    events = dict(waiting.poll(1000 * seconds))  # both report only that their other end is closed
    if 0 in events:
        sys.exit(0)
    return bool(events)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# -- in the fork -------------------------------------------------------------------------------------------------


def _answer(request: dict[str, Any], writer: int, exit_writer: int) -> NoReturn:
    """Answer a request on a pipe, and exit; `exit_writer` stays open until then."""
    os.dup2(writer, 1)
    try:
        inode = _open_alone(request, exit_writer)
    except (OSError, ValueError) as error:
        _reply({"system": str(error)}, [])
        os._exit(0)
    try:
        file = h5py.File(f"/proc/self/fd/{inode}", "r", locking=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # from now on nothing can be opened
        functions = {"describe": describe, "values": values, "stacked": stacked, "listed": listed}
        answer, arrays = _call(functions[request["ask"]], file, request["arguments"])
        _reply(answer, arrays)
    except BaseException as error:
        answer, arrays = _failure(error)
        _reply(answer, arrays)
    os._exit(0)


def _open_alone(request: dict[str, Any], exit_writer: int) -> int:
    """Return a descriptor of the request's file, after all other descriptors are closed and limits are set."""
    null = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in ((0, null), (2, null), (3, exit_writer)):
        os.dup2(descriptor, number)
    os.closerange(4, 256)
    with open("/proc/self/statm") as sizes:
        n_pages = int(sizes.read().split()[0])
    inode = os.open(f"/proc/{request['pid']}/fd/{request['file']}", os.O_RDONLY)
    _confine(request["seconds"], n_pages * resource.getpagesize() + request["memory"], inode)
    return inode


def _call(function: Any, file: h5py.File, arguments: Sequence[Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        answer, arrays = function(file, *arguments)
        return {"answer": answer}, arrays
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return an error in plain values, since an exception could be sent only as a pickle."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, (OSError, RuntimeError, KeyError)) and error.args:  # HDF5's message
        words = str(error.args[-1])
    if isinstance(error, Refused):
        return {"refused": str(error), "dataset": error.dataset}, []
    if isinstance(error, MemoryError) or re.search(r"(memory allocation|allocate|malloc)", words, re.IGNORECASE):
        return {"memory": words}, []
    number = getattr(error, "errno", None)
    found = re.search(r"errno = (\d+), error message", words)
    if found:
        number = int(found[1])
    return {"failed": words, "errno": number}, []


def _reply(reply: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """Write a JSON line and the bytes of the arrays."""
    line = {**reply, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
    _write(1, json.dumps(line).encode() + b"\n")
    for array in arrays:
        _write(1, array.reshape(-1).view(np.uint8).data)


def _confine(seconds: float, memory: int, inode: int) -> None:
    """Give up all rights that are not needed to read one file."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _allow_only(inode)
    next_descriptor = os.dup(inode)
    os.close(next_descriptor)
    max_seconds = max(1, int(seconds))
    _limit(resource.RLIMIT_AS, memory, memory)
    _limit(resource.RLIMIT_CPU, max_seconds, max_seconds + 1)  # SIGKILL would not show the reason
    _limit(resource.RLIMIT_FSIZE, 0, 0)
    _limit(resource.RLIMIT_CORE, 0, 0)
    _limit(resource.RLIMIT_NPROC, 0, 0)
    _limit(resource.RLIMIT_NOFILE, next_descriptor + 1, next_descriptor + 1)  # HDF5 opens the file once more


def _limit(limit: int, soft: int, hard: int) -> None:
    """Set a limit of this process, or keep the hard limit if it is lower."""
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    resource.setrlimit(limit, (min(soft, hard), hard))


def _allow_only(inode: int) -> None:
    """Allow only reads of this file, with Landlock if the kernel has it (Linux 5.13)."""
    everything = ctypes.c_uint64(_LANDLOCK_EVERYTHING)
    rules = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(everything), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    rule = struct.pack("=Qi", _LANDLOCK_READ_FILE, inode)
    _LIBC.syscall(_LANDLOCK_ADD_RULE, rules, 1, rule, 0)
    _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)
