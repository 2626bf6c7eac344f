"""Write malicious or damaged files and return their paths, and count how often a file is opened."""

from __future__ import annotations

import ctypes
import os
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


def add_references(file: h5py.File, target: Path) -> None:
    """Write every kind of reference to another file."""
    for name, n_most in (("virtual", 6), ("unlimited", None)):
        layout = h5py.VirtualLayout((6, 2), "<i4", maxshape=(n_most, 2))
        source = h5py.VirtualSource(target, "X", (6, 2), maxshape=(n_most, 2))
        n = n_most or h5py.h5s.UNLIMITED
        layout[:n, :] = source[:n, :]
        file.create_virtual_dataset(f"entry/{name}", layout)
    file["entry/mask"] = np.zeros((2, 2), "u4")  # the only array in the file itself, as in files of detectors
    file.create_dataset("external", (6, 2), "u1", external=[(target, 0, 12)])
    file["link"] = h5py.ExternalLink(target, "/X")
    file["group"] = file["var"] = h5py.ExternalLink(target, "/group")  # AnnData has names of columns in var
    file["obs/_index"] = h5py.ExternalLink(target, "/y")  # names of rows
    file["deep/er"] = h5py.ExternalLink(target, "/")
    file["name"] = h5py.SoftLink(str(target))
    file["inside"] = h5py.SoftLink("/entry/mask")
    file["data/data_0"] = file["frame/table"] = h5py.ExternalLink(target, "/X")


# -- damaged files ----------------------------------------------------------------------------------------------------


def edited(content: bytes, found: bytes, replaced: bytes) -> bytes:
    """Return content in which some bytes, which occur once, are replaced by others of the same length."""
    assert len(found) == len(replaced)
    assert content.count(found) == 1
    return content.replace(found, replaced)
