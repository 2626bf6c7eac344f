"""Program of the child process, which forks for each request. The fork can read only one file.

`ask` starts this program, which loads h5py once. Each fork has limits on memory and time, and exits after one answer.
If a file makes libhdf5 fail, only that fork is affected.
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

from shardpress.hdf5.child.describe import describe, listed, values
from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.child.results import check_result

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
    """Answer requests until standard input is closed. Each request is one JSON line.

    A request has the ``pid`` of the client process and two descriptors of that process: ``file`` is the open file, and
    ``answer`` is a pipe for the answer. The limits are ``seconds`` (CPU time), ``patience`` (elapsed time in seconds)
    and ``memory`` (bytes). ``ask`` is the name of a function (see `_answer`), and ``arguments`` has its
    arguments. When the fork has ended, the child writes a JSON line: ``end`` is ``answered``, ``signal``, ``exit``,
    ``time`` or ``system``, and ``detail`` explains it.
    """
    # Terminals and batch systems signal the whole process group. Ignore this: the pipe closes when the driver stops.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Leave the network namespace, if privileged. A user namespace would grant the privilege, but deny access to the
    # driver's files. Without the privilege, forks still cannot create sockets, because they can open no descriptors.
    _LIBC.unshare(_CLONE_NEWNET)
    _warm_up()
    gc.freeze()  # forks continue to share the memory of existing objects
    for line in sys.stdin.buffer:
        end, detail = _serve(json.loads(line))
        _write(1, json.dumps({"end": end, "detail": detail}).encode() + b"\n")
        if end == "system":
            break  # a new process has no leaked descriptors, and may have more resources


def _warm_up() -> None:
    """Read a small file, because a fork cannot import modules that Python and h5py load on first use."""
    with h5py.File.in_memory() as file:
        file.create_dataset("X", data=np.zeros((4, 2)), chunks=(2, 2), compression="gzip")
        file["X"].attrs["columns"] = ["a", "b"]
        file["records"] = np.array([(1, b"a", [1, 2])] * 4, [("a", "i4"), ("b", "S3"), ("c", "f8", 2)])
        file["strings"] = ["a", "b", "c", "ü"]
        file["enumeration"] = np.zeros(4, h5py.enum_dtype({"a": 0}))
        for name in (None, "nowhere", "\udcff\n"):
            _call(describe, file, (name,))
        for name in file:
            _call(values, file, (name, 0, 4, 0, 4))
        _call(listed, file, ())
        file["shardpress/array"] = [0.0]
        file["shardpress"].attrs["text"] = "a"
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("parts/a.h5", "virtual", (4,))
        file.create_virtual_dataset("virtual", layout)
        _call(check_result, file, ())


def _serve(request: dict[str, Any]) -> tuple[str, object]:
    """Answer a request in a fork, and return the ``end`` and ``detail`` of that fork."""
    try:
        writer = os.open(f"/proc/{request['pid']}/fd/{request['answer']}", os.O_WRONLY)
        exit_reader, exit_writer = os.pipe()  # the fork keeps the writing end open until it exits
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
    """Wait for a fork, and return its exit code. Kill the fork and return None if it takes too long."""
    try:
        in_time = _ends_in_time(exit_reader, seconds)
    finally:
        os.close(exit_reader)
        os.kill(child, signal.SIGKILL)  # no effect if the fork has already exited
        _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _end_of(code: int, request: dict[str, Any]) -> tuple[str, object]:
    """Return the ``end`` and ``detail`` of a fork, given its exit code."""
    if code == -signal.SIGXCPU:
        return "time", f"{request['seconds']:g} s of CPU time"
    if code < 0:
        return "signal", -code
    if code > 0:
        return "exit", code
    return "answered", None


def _ends_in_time(exit_reader: int, seconds: float) -> bool:
    waiting = select.poll()
    waiting.register(exit_reader, 0)
    waiting.register(0, 0)
    events = dict(waiting.poll(1000 * seconds))  # for both pipes, report only that the other end was closed
    if 0 in events:
        sys.exit(0)
    return bool(events)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# -- in the fork -------------------------------------------------------------------------------------------------


def _answer(request: dict[str, Any], writer: int, exit_writer: int) -> NoReturn:
    """Answer a request on a pipe, and exit. `exit_writer` stays open until the exit."""
    os.dup2(writer, 1)
    try:
        inode = _open_alone(request, exit_writer)
    except (OSError, ValueError) as error:
        _reply({"system": str(error)}, [])
        os._exit(0)
    try:
        file = _opened(inode)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # nothing can be opened from now on
        functions = {"describe": describe, "values": values, "listed": listed, "check_result": check_result}
        _reply(*_call(functions[request["ask"]], file, request["arguments"]))
    except BaseException as error:
        _reply(*_failure(error))
    os._exit(0)


def _open_alone(request: dict[str, Any], exit_writer: int) -> int:
    """Close all other descriptors, set the limits, and return a descriptor of the requested file."""
    null = os.open(os.devnull, os.O_RDWR)
    for number, descriptor in ((0, null), (2, null), (3, exit_writer)):
        os.dup2(descriptor, number)
    os.closerange(4, 256)
    with open("/proc/self/statm") as sizes:
        n_pages = int(sizes.read().split()[0])
    inode = os.open(f"/proc/{request['pid']}/fd/{request['file']}", os.O_RDONLY)
    _confine(request["seconds"], n_pages * resource.getpagesize() + request["memory"], inode)
    return inode


def _opened(inode: int) -> h5py.File:
    if os.fstat(inode).st_nlink:
        return h5py.File(f"/proc/self/fd/{inode}", "r", locking=False)
    # HDF5 looks up the path of a file that it opens by name, and a deleted file or one in memory has no path.
    return h5py.File(open(inode, "rb", buffering=0), "r")


def _call(function: Any, file: h5py.File, arguments: Sequence[Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        answer, arrays = function(file, *arguments)
        return {"answer": answer}, arrays
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Convert an error to plain values, because an exception could only be sent as a pickle."""
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
    """Write a JSON line, and then the bytes of the arrays."""
    line = {**reply, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
    _write(1, json.dumps(line).encode() + b"\n")
    for array in arrays:
        _write(1, array.reshape(-1).view(np.uint8).data)


def _confine(seconds: float, memory: int, inode: int) -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _allow_only(inode)
    next_descriptor = os.dup(inode)
    os.close(next_descriptor)
    max_seconds = max(1, int(seconds))
    _limit(resource.RLIMIT_AS, memory, memory)
    _limit(resource.RLIMIT_CPU, max_seconds, max_seconds + 1)  # SIGXCPU shows the reason, SIGKILL would not
    _limit(resource.RLIMIT_FSIZE, 0, 0)
    _limit(resource.RLIMIT_CORE, 0, 0)
    _limit(resource.RLIMIT_NPROC, 0, 0)
    _limit(resource.RLIMIT_NOFILE, next_descriptor + 1, next_descriptor + 1)  # HDF5 opens the file again


def _limit(limit: int, soft: int, hard: int) -> None:
    """Set a resource limit of this process, but do not exceed the current hard limit."""
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    resource.setrlimit(limit, (min(soft, hard), hard))


def _allow_only(inode: int) -> None:
    """Allow only reads of this file, if the kernel supports Landlock (Linux 5.13)."""
    everything = ctypes.c_uint64(_LANDLOCK_EVERYTHING)
    rules = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(everything), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    rule = struct.pack("=Qi", _LANDLOCK_READ_FILE, inode)
    _LIBC.syscall(_LANDLOCK_ADD_RULE, rules, 1, rule, 0)
    _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
    os.close(rules)
