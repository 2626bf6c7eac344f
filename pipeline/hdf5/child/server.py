"""The child: a process that waits, and forks for each file one that may look at that file and at nothing else.

`ask` starts this as a program of its own; it loads h5py once. Whatever a file does to libhdf5, it does to one
fork, which has limits on memory and time and ends with its answer.
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
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CLONE_NEWNET = 0x40000000


def main() -> None:
    """Answer requests, one JSON line each on standard input, until that is closed.

    A request has ``pid``, and of that process the descriptors of the open ``file`` and of a pipe for the ``answer``;
    ``seconds`` of the processor, ``patience`` in seconds by the clock and ``memory`` (bytes) as limits; ``ask``
    (``describe``, ``values``, ``stacked`` or ``listed``) and its ``arguments``. When the fork has ended, a JSON line
    says how: ``end`` (``answered``, ``signal``, ``exit``, ``time``, ``system``) and ``detail``.
    """
    # A terminal or a batch system tells the whole group to stop. When the driver has stopped, its pipe closes.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # No network, where we have the right to that. A user namespace would give the right, but bar the way to the
    # driver's files; and nobody makes a socket who may open nothing more.
    _LIBC.unshare(_CLONE_NEWNET)
    _warm_up()
    gc.freeze()  # what is here now is shared with every fork, and stays so
    for line in sys.stdin.buffer:
        end, detail = _attend(json.loads(line))
        _write(1, json.dumps({"end": end, "detail": detail}).encode() + b"\n")
        if end == "system":
            break  # the next one may have better luck, and has no descriptors left over


def _warm_up() -> None:
    """Do everything once: a fork cannot import any more what Python and h5py load on first use."""
    with h5py.File.in_memory() as file:
        file.create_dataset("X", data=np.zeros((4, 2)), chunks=(2, 2), compression="gzip")
        file["X"].attrs["columns"] = ["a", "b"]
        _warm_up_columns(file)
        beside = np.array([(1, b"a", [1, 2])] * 4, [("a", "i4"), ("b", "S3"), ("c", "f8", 2)])
        for values_beside in (beside, ["a", "b", "c", "ü"], [b"a"] * 4, np.zeros(4, h5py.enum_dtype({"a": 0}))):
            file[f"beside{len(file)}"] = values_beside
        file["table"] = np.zeros(4, [("a", "f8"), ("b", "f8")])
        file["sparse/data"], file["sparse/indices"], file["sparse/indptr"] = np.ones(2), np.arange(2), np.arange(3)
        file["sparse"].attrs.update({"encoding-type": "csr_matrix", "shape": (2, 2)})
        file["soft"], file["external"] = h5py.SoftLink("nowhere"), h5py.ExternalLink("nowhere", "nowhere")
        names = [None, "X", "table", "sparse", "soft", "external", "nowhere", "\udcff\n", "numbers/X"]
        names += ["texts/X", "groups/X", "tables/X", "masked/X", "linked/X", "frame"]
        asked = [(describe, (name, orientation)) for name in names for orientation in (None, "columns")]
        read = [(values, ("X", 0, 2, -1)), *((values, (name, 0, 4)) for name in file)]
        for ask, arguments in [*asked, *read, (listed, ())]:
            _answered(ask, file, arguments)


def _warm_up_columns(file: h5py.File) -> None:
    """Write columns' names and numbers in every form in which `find_columns` reads them."""
    for name, scale in (("numbers", [1.0, 2.0]), ("texts", ["a", "b"])):
        file[f"{name}/X"], file[f"{name}/wavelength"] = np.zeros((4, 2)), scale
        file[f"{name}/wavelength"].make_scale("wavelength")
        file[f"{name}/X"].dims[1].attach_scale(file[f"{name}/wavelength"])
    for name in ("groups", "tables", "masked", "linked"):
        file[f"{name}/X"] = np.zeros((4, 2))
    file["groups/var/_index"] = ["a", "b"]
    file["groups/var"].attrs["_index"] = "_index"
    file["tables/var"] = np.array([(b"a", 1), (b"b", 2)], [("index", "S3"), ("n", "i4")])
    file["masked/var/_index/values"], file["masked/var/_index/mask"] = ["a", "b"], np.zeros(2, bool)
    file["linked/var"] = h5py.ExternalLink("nowhere", "nowhere")
    file["frame/block0_values"], file["frame/block0_items"] = np.zeros((4, 2)), [1, 2]


def _attend(request: dict[str, Any]) -> tuple[str, object]:
    """Let a fork answer, and say how that ended."""
    try:
        writer = os.open(f"/proc/{request['pid']}/fd/{request['answer']}", os.O_WRONLY)
        alive, held = os.pipe()  # closed with the fork
        child = os.fork()
    except OSError as error:
        return "system", error.strerror
    if not child:
        try:
            _answer(request, writer, held)
        finally:
            os._exit(1)
    os.close(writer)
    os.close(held)
    try:
        in_time = _ended(alive, request["patience"])
    finally:
        os.close(alive)
        os.kill(child, signal.SIGKILL)  # without effect on one that has ended by itself
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not in_time:
        return "time", f"{request['patience']:g} s"
    if code == -signal.SIGXCPU:
        return "time", f"{request['seconds']:g} s of the processor"
    if code:
        return ("signal", -code) if code < 0 else ("exit", code)
    return "answered", None


def _ended(alive: int, seconds: float) -> bool:
    """Wait for a fork's end; False when it takes too long."""
    waiting = select.poll()
    waiting.register(alive, 0)
    waiting.register(0, 0)
    events = dict(waiting.poll(1000 * seconds))  # both tell only that their other end has gone
    if 0 in events:
        sys.exit(0)
    return bool(events)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


# -- the fork that looks -----------------------------------------------------------------------------------------


def _answer(request: dict[str, Any], writer: int, held: int) -> NoReturn:
    os.dup2(writer, 1)
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for place, descriptor in ((0, nothing), (2, nothing), (3, held)):
            os.dup2(descriptor, place)
        os.closerange(4, 256)
        with open("/proc/self/statm") as sizes:
            base = int(sizes.read().split()[0]) * resource.getpagesize()
        inode = os.open(f"/proc/{request['pid']}/fd/{request['file']}", os.O_RDONLY)
        _confine(request["seconds"], base + request["memory"], inode)
    except (OSError, ValueError) as error:
        _reply({"system": str(error)}, [])
        os._exit(0)
    try:
        file = h5py.File(f"/proc/self/fd/{inode}", "r", locking=False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))  # from here on nothing more can be opened
        ask = {"describe": describe, "values": values, "stacked": stacked, "listed": listed}[request["ask"]]
        _reply(*_answered(ask, file, request["arguments"]))
    except BaseException as error:
        _reply(*_failure(error))
    os._exit(0)


def _answered(ask: Any, file: h5py.File, arguments: Sequence[Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        answer, arrays = ask(file, *arguments)
        return {"answer": answer}, arrays
    except BaseException as error:
        return _failure(error)


def _failure(error: BaseException) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What is said instead of an answer. No exception crosses the pipe, as that would take a pickle."""
    is_hdf5s = isinstance(error, (OSError, RuntimeError, KeyError)) and error.args
    words = str(error.args[-1]) if is_hdf5s else f"{type(error).__name__}: {error}"
    if isinstance(error, Refused):
        return {"refused": str(error), "dataset": error.dataset}, []
    if isinstance(error, MemoryError) or re.search(r"(memory allocation|allocate|malloc)", words, re.IGNORECASE):
        return {"memory": words}, []
    number = re.search(r"errno = (\d+), error message", words)
    return {"failed": words, "errno": int(number[1]) if number else getattr(error, "errno", None)}, []


def _reply(said: dict[str, Any], arrays: Sequence[np.ndarray]) -> None:
    """A JSON line and the arrays' bytes."""
    line = {**said, "arrays": [[array.dtype.str, array.shape] for array in arrays]}
    _write(1, json.dumps(line).encode() + b"\n")
    for array in arrays:
        _write(1, array.reshape(-1).view(np.uint8).data)


def _confine(seconds: float, memory: int, inode: int) -> None:
    """Take away what reading one file does not need."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _see_only(inode)
    next_descriptor = os.dup(inode)
    os.close(next_descriptor)
    most_seconds = max(1, int(seconds))
    for limit, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, most_seconds, most_seconds + 1),  # at the hard one, the signal would not tell why
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_NOFILE, next_descriptor + 1, next_descriptor + 1),  # HDF5's own opening
    ):
        _, most = resource.getrlimit(limit)
        most = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(limit, (min(soft, most), most))


def _see_only(inode: int) -> None:
    """Let no file be opened, made or removed but this one be read: Landlock, where the kernel has it (Linux 5.13)."""
    create, add, restrict = 444, 445, 446  # the same numbers on every architecture
    everything, read_file = 2**13 - 1, 4
    rules = _LIBC.syscall(create, ctypes.byref(ctypes.c_uint64(everything)), ctypes.c_size_t(8), 0)
    if rules < 0:
        return
    this_one = struct.pack("=Qi", read_file, inode)
    _LIBC.syscall(add, rules, 1, this_one, 0)
    _LIBC.syscall(restrict, rules, 0)
    os.close(rules)
