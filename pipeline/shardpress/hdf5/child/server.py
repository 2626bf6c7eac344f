"""Program of the child process, which reads the structure of files, and values that need libhdf5.

`ask` starts this program, and sends it open files. It cannot open any file itself. If a file makes libhdf5 fail, this
process ends, and `ask` starts another one.
"""

import codecs
import ctypes
import io
import json
import os
import re
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from shardpress.hdf5.child.describe import describe, describe_master, listed
from shardpress.hdf5.child.find import Rejection
from shardpress.hdf5.child.message import Failure, packed
from shardpress.hdf5.child.read import chunks, values
from shardpress.hdf5.child.results import check_result
from shardpress.hdf5.filters.plugins import decoders
from shardpress.hdf5.seen import Reads

LENGTH = struct.Struct("<Q")
"""Length of a message, which precedes it."""

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "describe": describe,
    "describe_master": describe_master,
    "values": values,
    "chunks": chunks,
    "listed": listed,
    "check_result": check_result,
}
_PIECE = 2**16  # bytes that are received at once
_MOST_FAILURES = 1000  # answers of one process, because libhdf5 may leak memory with each damaged file
_MOST_CACHED = 2**23  # bytes of metadata as libhdf5 counts them. Small objects take more than ten times as much memory.
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWNET = 0x40000000
_LANDLOCK_CREATE_RULESET = 444  # system calls, with the same numbers on every architecture
_LANDLOCK_RESTRICT_SELF = 446
_LANDLOCK_EVERYTHING = 2**13 - 1


def main() -> None:
    """Answer requests until the other end of standard input, a socket, is closed.

    The argument is the number of bytes of address space that this process may use in addition to its size. A request
    is a JSON object with an open file. ``seconds`` limits the processor time, ``ask`` is the name of a function, and
    ``arguments`` has its arguments.
    """
    # Terminals and batch systems signal the whole process group. Ignore this: the socket closes when the driver stops.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(1, 0)  # the null device
    _warm_up()
    _confine(int(sys.argv[1]))
    _send(connection, b"ready")
    n_failures = 0
    while n_failures < _MOST_FAILURES:
        request, descriptor = _received(connection)
        with _File(descriptor, connection) as opened:
            n_failures += _answer(connection, request, opened)


class _File(io.FileIO):
    """Open file that libhdf5 reads. If the storage fails, the client is told so, and this process ends.

    libhdf5 would replace the error by one of its own, from which damaged data cannot be told apart.
    """

    def __init__(self, descriptor: int, connection: socket.socket) -> None:
        super().__init__(descriptor, "rb")
        self._connection = connection
        self.reads = Reads()

    def readinto(self, buffer: Any) -> int:
        try:
            start = self.tell()
            n_bytes = super().readinto(buffer) or 0
            self.reads.add(start, buffer[:n_bytes])
            return n_bytes
        except OSError as error:
            _send(self._connection, *packed(Failure("failed", error.strerror or "", errno=error.errno)))
            os._exit(0)


def _received(connection: socket.socket) -> tuple[dict[str, Any], int]:
    """Return the next request and its open file. End this process if there is none."""
    first, descriptors, _, _ = socket.recv_fds(connection, _PIECE, 1)
    if len(first) < LENGTH.size or not descriptors:
        sys.exit(0)
    message = bytearray(first)
    end = LENGTH.size + LENGTH.unpack_from(message)[0]
    while len(message) < end:
        piece = connection.recv(_PIECE)
        if not piece:
            sys.exit(0)
        message += piece
    return json.loads(message[LENGTH.size : end]), descriptors[0]


def _answer(connection: socket.socket, request: dict[str, Any], opened: _File) -> bool:
    """Answer a request. Return whether the answer is a failure."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + request["seconds"]) + 1
    _limit(resource.RLIMIT_CPU, seconds, resource.RLIM_INFINITY)  # ends this process with SIGXCPU
    failure = None
    try:
        arguments = request["arguments"]
        if request["ask"] == "describe":
            arguments.append(opened.reads)
        pieces = packed(_reply(_FUNCTIONS[request["ask"]], opened, arguments))
    except BaseException as error:
        failure = _failure(error)
        pieces = packed(failure)
    try:
        _send(connection, *pieces)
    except BrokenPipeError:
        sys.exit(0)
    if failure is not None and failure.kind == "memory":
        sys.exit(0)  # libhdf5 may be in any state
    return failure is not None


def _reply(function: Callable[..., Any], opened: _File, arguments: list[Any]) -> Any:
    """Return what a function of the child finds in a file."""
    properties = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    properties.set_fileobj_driver(h5py.h5fd.fileobj_driver, opened)
    properties.set_fclose_degree(h5py.h5f.CLOSE_STRONG)  # closes the objects in the file, too
    cache = properties.get_mdc_config()
    cache.max_size = _MOST_CACHED
    properties.set_mdc_config(cache)
    root = h5py.h5f.open(b"input", h5py.h5f.ACC_RDONLY, fapl=properties)
    try:
        return function(root, *arguments)
    finally:
        root.close()


def _failure(error: BaseException) -> Failure:
    """Convert an error to plain values, because an exception could only be sent as a pickle."""
    words = f"{type(error).__name__}: {error}"
    if isinstance(error, (OSError, RuntimeError, KeyError)) and error.args:  # HDF5's message
        words = str(error.args[-1])
    if isinstance(error, Rejection):
        return Failure("refused", str(error), dataset=error.dataset)
    if isinstance(error, MemoryError) or re.search(r"(memory allocation|allocate|malloc)", words, re.IGNORECASE):
        return Failure("memory", words)
    return Failure("failed", words)


def _send(connection: socket.socket, head: bytes, *arrays: memoryview) -> None:
    connection.sendall(LENGTH.pack(len(head) + sum(map(len, arrays))) + head)
    for array in arrays:
        connection.sendall(array)


# -- confinement ---------------------------------------------------------------------------------------------------


def _warm_up() -> None:
    """Read a small file, because this process cannot import modules that Python and h5py load on first use later."""
    for codec in ("ascii", "raw_unicode_escape"):
        codecs.lookup(codec)
    decoders()
    with h5py.File.in_memory() as file:
        file["strings"] = ["a", "b", "c", "ü"]
        file["enumeration"] = np.zeros(4, h5py.enum_dtype({"a": 0}))
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("parts/a.h5", "virtual", (4,))
        file.create_virtual_dataset("virtual", layout)
        file["X"] = np.zeros((4, 2))
        for dataset in ("X", "virtual", "nowhere", "\udcff\n"):
            _warm(describe, file.id, dataset, None, (), None, True, Reads())
        for dataset in ("strings", "enumeration"):
            _warm(values, file.id, dataset, 0, 4, 0, 4)
        _warm(listed, file.id)
        _warm(check_result, file.id)


def _warm(function: Callable[..., Any], *arguments: Any) -> None:
    with suppress(Rejection):
        packed(function(*arguments))


def _confine(memory: int) -> None:
    """Deny this process everything except its own memory, and the files and the socket that it has."""
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Leave the network namespace, if privileged. Without the privilege, no descriptor is free for a socket.
    _LIBC.unshare(_CLONE_NEWNET)
    with open("/proc/self/statm") as sizes:
        n_pages = int(sizes.read().split()[0])
    size = n_pages * resource.getpagesize() + memory
    _limit(resource.RLIMIT_AS, size, size)
    _limit(resource.RLIMIT_FSIZE, 0, 0)
    _limit(resource.RLIMIT_CORE, 0, 0)
    _limit(resource.RLIMIT_NPROC, 0, 0)
    everything = ctypes.c_uint64(_LANDLOCK_EVERYTHING)  # if the kernel supports Landlock (Linux 5.13)
    rules = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(everything), ctypes.c_size_t(8), 0)
    if rules >= 0:
        _LIBC.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
        os.close(rules)
    free = os.dup(0)  # the lowest free descriptor, which is that of the file in a request
    os.close(free)
    _limit(resource.RLIMIT_NOFILE, free + 1, free + 1)


def _limit(limit: int, soft: int, hard: int) -> None:
    """Set a resource limit of this process, but do not exceed the current hard limit."""
    _, most = resource.getrlimit(limit)
    if most != resource.RLIM_INFINITY:
        hard = most if hard == resource.RLIM_INFINITY else min(hard, most)
        soft = min(soft, hard)
    resource.setrlimit(limit, (soft, hard))
