"""Write malicious or damaged files and return their paths, and count how often a file is opened."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

ROWS = np.arange(12, dtype="<i4").reshape(6, 2)
_IN_OPEN = 0x20
_LIBC = ctypes.CDLL(None, use_errno=True)


# -- counting opens ---------------------------------------------------------------------------------------------------


@contextmanager
def opens(path: Path) -> Iterator[list[int]]:
    """Count how often any process opens a file in the context (by inotify). The list finally contains the count."""
    watch = _LIBC.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0
    assert _LIBC.inotify_add_watch(watch, os.fsencode(path), _IN_OPEN) >= 0
    counts: list[int] = []
    try:
        yield counts
        try:
            events = os.read(watch, 2**16)
        except BlockingIOError:
            events = b""
        counts.append(len(events) // 16)  # an event about a watched file has no name after it
    finally:
        os.close(watch)


def secret(folder: Path) -> Path:
    """Write a shard that is not an input of any run."""
    path = folder / "secret.h5"
    with h5py.File(path, "w") as file:
        file["X"] = file["group/X"] = ROWS
        file["y"] = np.arange(6)
    return path


# -- links to other files ---------------------------------------------------------------------------------------------


def external_link(folder: Path, target: Path, place: str) -> tuple[Path, str]:
    """Write a file whose dataset, or a group on its path, is in another file. Also return the name of the dataset."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        if place == "dataset":
            file["X"] = h5py.ExternalLink(target, "/X")
            return path, "X"
        if place == "group":
            file["g"] = h5py.ExternalLink(target, "/group")
            return path, "g/X"
        file["deep/er"] = h5py.ExternalLink(target, "/")
        return path, "/deep/er/group/X"


def external_extra(folder: Path, target: Path) -> Path:
    """Write a shard whose labels are in another file."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file["X"] = ROWS
        file["y"] = h5py.ExternalLink(target, "/y")
    return path


def soft_link(folder: Path, target: str) -> Path:
    """Write a dataset that is a soft link. The target need not exist."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file["rows"] = ROWS
        file["X"] = h5py.SoftLink(target)
    return path


def external_storage(folder: Path, target: Path) -> Path:
    """Write a dataset whose bytes are in another file."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", (6, 2), "u1", external=[(target, 0, 12)])
    return path


def virtual(folder: Path, target: Path, unlimited: bool = False) -> Path:
    """Write a virtual dataset over another file."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((6, 2), "<i4", maxshape=(None, 2) if unlimited else None)
        source = h5py.VirtualSource(target, "X", (6, 2), maxshape=(None, 2) if unlimited else None)
        if unlimited:
            layout[: h5py.h5s.UNLIMITED :, :] = source[: h5py.h5s.UNLIMITED :, :]
        else:
            layout[:] = source
        file.create_virtual_dataset("X", layout)
    return path


def in_several_files(folder: Path, driver: str, libver: str) -> Path:
    """Write the first file of a family, or the metadata half of a split pair."""
    names = {"family": ("x%d.h5", "x0.h5"), "split": ("x", "x-m.h5")}[driver]
    options = {"memb_size": 4096} if driver == "family" else {}
    with h5py.File(folder / names[0], "w", driver=driver, libver=libver, **options) as file:
        file["X"] = np.zeros((600, 2))
    return folder / names[1]


# -- excessive sizes --------------------------------------------------------------------------------------------------


def declared(folder: Path, shape: tuple[int, ...], dtype: str = "f4", **options: object) -> Path:
    """Write only the header of a dataset."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("X", shape, dtype, **options)
    return path


def nested(folder: Path, depth: int) -> Path:
    """Write deeply nested groups."""
    path = folder / "x.h5"
    with h5py.File(path, "w") as file:
        group = file
        for _ in range(depth):
            group = group.create_group("g")
        group["rows"] = ROWS
    return path


def crowded(folder: Path, n: int, group: str = "/", libver: str = "latest") -> Path:
    """Write many names of one small object next to the rows."""
    path = folder / "x.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["X"] = ROWS
        group_id = file.require_group(group).id
        small = h5py.h5g.create(group_id, b"small")
        for i in range(n):
            h5py.h5o.link(small, group_id, b"n%d" % i)
    return path


# -- damaged files ----------------------------------------------------------------------------------------------------


def edited(content: bytes, found: bytes, replaced: bytes) -> bytes:
    """Return content in which some bytes, which occur once, are replaced by others of the same length."""
    assert len(found) == len(replaced)
    assert content.count(found) == 1
    return content.replace(found, replaced)


def _edit(path: Path, found: bytes, replaced: bytes) -> Path:
    path.write_bytes(edited(path.read_bytes(), found, replaced))
    return path


def plain(folder: Path, **options: object) -> Path:
    """Write a shard with labels in the oldest format, which has no checksums that an edit would break."""
    path = folder / "x.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("X", data=ROWS, **options)
        file["y"] = np.arange(6, dtype="<i8")
    return path


def moved(folder: Path, offset: int, name: str = "X") -> Path:
    """Write contiguous rows, or labels, with a wrong address."""
    path = plain(folder)
    with h5py.File(path) as file:
        before = file[name].id.get_offset()
        size = file[name].id.get_storage_size()
    return _edit(path, struct.pack("<QQ", before, size), struct.pack("<QQ", offset, size))


def of_another_chunk_rank(folder: Path, rank: int) -> Path:
    """Write a matrix whose chunks have `rank` dimensions, including the dimension of the element (CVE-2026-19025)."""
    return _edit(plain(folder, chunks=(3, 2)), struct.pack("<BBB", 3, 2, 3), struct.pack("<BBB", 3, 2, rank))


def with_chunks_of(folder: Path, n_rows: int, n_columns: int, itemsize: int) -> Path:
    """Write a chunked dataset whose header states another chunk shape."""
    stored = struct.pack("<III", 3, 2, 4)
    wanted = struct.pack("<III", n_rows, n_columns, itemsize)
    return _edit(plain(folder, chunks=(3, 2)), stored, wanted)


def endless_chunk_index(folder: Path) -> Path:
    """Write a chunk tree whose first node is its own right neighbour."""
    path = plain(folder, chunks=(1, 2))
    content = path.read_bytes()
    node = next(i for i in range(len(content)) if content[i : i + 5] == b"TREE\1")
    nowhere = b"\xff" * 8
    assert content[node + 8 : node + 24] == nowhere * 2
    path.write_bytes(content[: node + 16] + struct.pack("<Q", node) + content[node + 24 :])
    return path


def shared_chunk_nodes(folder: Path, n_levels: int) -> Path:
    """Write a chunk tree with one node at each level. All 64 entries of the parent node point to it.

    The chunks are outside the dataset.
    """
    path = plain(folder, chunks=(1, 2))
    content = bytearray(path.read_bytes())
    leaf = content.index(b"TREE\1")
    n_chunks = 6
    content[leaf + 6 : leaf + 8] = struct.pack("<H", n_chunks)
    for i in range(6):
        content[leaf + 32 + 40 * i : leaf + 40 + 40 * i] = struct.pack("<Q", 1000 + i)
    top = _with_shared_nodes(content, leaf, 1, n_levels, bytes(32))
    at = content.index(struct.pack("<BBBQ", 3, 2, 3, leaf))
    content[at + 3 : at + 11] = struct.pack("<Q", top)
    path.write_bytes(content)
    return path


def _with_shared_nodes(content: bytearray, leaf: int, kind: int, n_levels: int, key: bytes) -> int:
    """Append a node for each level above a leaf, set the end of the file, and return the address of the top node."""
    n_children = {0: 32, 1: 64}[kind]
    below = leaf
    for level in range(1, n_levels + 1):
        node = struct.pack("<4sBBHQQ", b"TREE", kind, level, n_children, 2**64 - 1, 2**64 - 1)
        node += (key + struct.pack("<Q", below)) * n_children + key
        below = len(content)
        content += node
    content[40:48] = struct.pack("<Q", len(content))
    return below


def left_open(folder: Path) -> Path:
    """Write a file, and kill the writer before it closes the file."""
    path = folder / "x.h5"
    program = (
        "import os, sys, h5py, numpy; file = h5py.File(sys.argv[1], 'w', libver='latest'); "
        "file['X'] = numpy.zeros((6, 2)); file.flush(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    return path


# -- a plugin ---------------------------------------------------------------------------------------------------------

_PLUGIN = """
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
    const char *canary = getenv("CANARY");
    if (canary) close(open(canary, O_CREAT | O_WRONLY, 0644));
}
int H5PLget_plugin_type(void) { return 0; }
const void *H5PLget_plugin_info(void) { return 0; }
"""


def plugin(folder: Path) -> dict[str, str]:
    """Build a plugin that creates a file when it is loaded. Return the environment in which HDF5 loads the plugin."""
    (folder / "plugin.c").write_text(_PLUGIN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libplugin.so", folder / "plugin.c"], check=True)
    return {"HDF5_PLUGIN_PATH": str(folder), "CANARY": str(folder / "loaded")}
