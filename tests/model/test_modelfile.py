"""Tests of untrusted model files: they open no other file, take limited memory, and are refused if damaged."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.base.errors import ShardpressError
from shardpress.result.finished import load_model
from shardpress_kernels.network import Network
from tests.support.hostile import edited, opens
from tests.support.hostilemodels import GROUP, forge, model_of, with_footer, without_footer, write_model
from tests.support.interpreters import REPOSITORY

pytestmark = pytest.mark.process


Change = Callable[[h5py.Group], object]


def forged(folder: Path, change: Change) -> Path:
    return forge(write_model(folder), change)


def replaced(folder: Path, create: Change, name: str = "W_1") -> Path:
    """Write a model in which an array is replaced."""

    def change(group: h5py.Group) -> None:
        del group[name]
        create(group)

    return forged(folder, change)


def edited_model(path: Path, found: bytes, replaced: bytes) -> Path:
    """Replace bytes by others of the same length, and correct the footer."""
    path.write_bytes(with_footer(edited(without_footer(path.read_bytes()), found, replaced)))
    return path


# -- malicious models --------------------------------------------------------------------------------------------------


def link(group: h5py.Group) -> None:
    """Replace a matrix by a soft link to another dataset in the file."""
    group.move("W_1", "moved")
    group["W_1"] = h5py.SoftLink(f"/{GROUP}/moved")


def external_link(folder: Path) -> Path:
    """Write a matrix that is in another file."""
    other = write_model(folder, "other.h5")
    return replaced(folder, lambda group: group.__setitem__("W_1", h5py.ExternalLink(str(other), f"/{GROUP}/W_1")))


def external_storage(folder: Path) -> Path:
    """Write a matrix whose bytes are in another file."""
    secret = folder / "secret"
    secret.write_bytes(b"\0\0\x80?" * 24)
    return replaced(folder, lambda group: group.create_dataset("W_1", (4, 6), "<f4", external=[(str(secret), 0, 96)]))


def virtual_dataset(folder: Path) -> Path:
    """Write a virtual matrix over another file."""
    other = write_model(folder, "other.h5")
    layout = h5py.VirtualLayout((4, 6), "<f4")
    layout[:] = h5py.VirtualSource(other, f"{GROUP}/W_1", (4, 6))
    return replaced(folder, lambda group: group.create_virtual_dataset("W_1", layout))


def with_widths(folder: Path, widths: tuple[int, ...], **options: Any) -> Path:
    """Write another width, and a matrix of this width that is not written."""

    def change(group: h5py.Group) -> None:
        group.attrs["widths"] = list(widths)
        group.create_dataset("W_1", widths[:2], "<f4", **options)

    return replaced(folder, change)


def forged_shape(folder: Path) -> Path:
    """Write dimensions and a size that exceed the file, at an offset inside it."""
    path = forged(folder, lambda group: group.attrs.__setitem__("widths", [2**28, 6, 3]))
    with h5py.File(path) as file:
        place = file[GROUP]["W_1"].id.get_offset()
    edited_model(path, struct.pack("<4Q", 4, 6, 4, 6), struct.pack("<4Q", 2**28, 6, 2**28, 6))
    return edited_model(path, struct.pack("<QQ", place, 96), struct.pack("<QQ", place, 96 * 2**26))


def overlapping(folder: Path) -> Path:
    """Write two arrays that share their bytes."""
    path = write_model(folder)
    with h5py.File(path) as file:
        first = file[GROUP]["minimum"].id.get_offset()
        second = file[GROUP]["maximum"].id.get_offset()
    return edited_model(path, struct.pack("<QQ", second, 32), struct.pack("<QQ", first, 32))


def shared_matrix(folder: Path) -> Path:
    """Write a network of 200 layers that share one matrix of 4 MiB."""
    n = 2**10
    path = folder / "model.h5"
    path.write_bytes(model_of(Network((n, n))).to_hdf5())

    def share(group: h5py.Group) -> None:
        group.attrs["widths"] = np.full(201, n)
        group.attrs["activation"] = "relu"
        for layer in range(1, 201):
            for name in ("W", "b_hidden", "b_output"):
                group[f"{name}_{layer}"] = group[name]

    return forge(path, share)


def with_about(folder: Path, text: bytes) -> Path:
    """Write another description."""
    return replaced(folder, lambda group: group.__setitem__("about", np.frombuffer(text, np.uint8)), "about")


def resealed(folder: Path, form: str | None) -> Path:
    """Write a model with the footer of another format, or without a footer."""
    path = write_model(folder)
    content = without_footer(path.read_bytes())
    path.write_bytes(content if form is None else with_footer(content, form))
    return path


def written(folder: Path, make: Callable[[Path], object]) -> Path:
    """Create something else under the name of a model."""
    path = folder / "model.h5"
    make(path)
    return path


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


HOSTILE: Mapping[str, tuple[Callable[[Path], Path], int]] = {
    "external_link": (external_link, 65),
    "soft_link": (lambda folder: forged(folder, link), 65),
    "external_storage": (external_storage, 65),
    "virtual_dataset": (virtual_dataset, 65),
    "compressed zeros": (
        lambda folder: with_widths(folder, (2**20, 2**10, 3), chunks=(2**10, 2**10), compression="gzip"),
        65,
    ),
    "never allocated": (lambda folder: with_widths(folder, (2**20, 2**21, 3)), 65),
    "forged shape": (forged_shape, 65),
    "overlapping arrays": (overlapping, 65),
    "shared matrix": (shared_matrix, 65),
    "many widths": (lambda folder: forged(folder, lambda group: group.attrs.update(widths=np.full(8000, 4))), 65),
    "huge description": (lambda folder: with_about(folder, b'{"config": "' + b"x" * 2**25 + b'"}'), 65),
    "many values": (lambda folder: with_about(folder, b'{"x": [' + b"[]," * (4 * 10**6) + b"0]}"), 65),
    "nested values": (lambda folder: with_about(folder, b"[" * 10**5), 65),
    "later format": (lambda folder: resealed(folder, "shardpress-output/99"), 76),
    "no footer": (lambda folder: resealed(folder, None), 65),
    "no HDF5": (lambda folder: written(folder, lambda path: path.write_bytes(with_footer(b"no HDF5"))), 65),
    "huge_file": (lambda folder: written(folder, huge), 65),
    "FIFO": (lambda folder: written(folder, os.mkfifo), 66),
    "directory": (lambda folder: written(folder, Path.mkdir), 66),
    "link to itself": (lambda folder: written(folder, lambda path: path.symlink_to(path)), 66),
}
"""Functions that write malicious models, by name, each with the exit code of the refusal."""


@pytest.mark.parametrize("name", ["external_link", "external_storage", "virtual_dataset"])
def test_no_other_file_is_opened(tmp_path: Path, name: str) -> None:
    make, _ = HOSTILE[name]
    path = make(tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    with opens(other) as counts, pytest.raises(ShardpressError):
        load_model(path)
    assert counts == [0]


LOADER = """
import json, os, sys
from shardpress.base.errors import ShardpressError
from shardpress.result.finished import load_model

def peak():
    with open("/proc/self/status") as status:  # ru_maxrss would start at the value of the parent process
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

load_model(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = peak()
    try:
        load_model(path)
        code = 0
    except ShardpressError as error:
        code = error.exit_code
    found[path] = (code, (peak() - before) / 1024)
print(json.dumps(found))
"""


def test_hostile_models_take_little_memory(tmp_path: Path) -> None:
    expected = {}
    for name, (make, exit_code) in HOSTILE.items():
        folder = tmp_path / name
        folder.mkdir()
        expected[str(make(folder))] = exit_code
    valid_model = write_model(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LOADER, valid_model, *expected],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[str, tuple[int, float]] = json.loads(result.stdout)
    assert {path: code for path, (code, _) in found.items()} == expected
    # The content of a file that has a footer is in memory up to four times.
    sizes = {path: Path(path).stat().st_size / 2**20 for path in found if Path(path).is_file()}
    sizes |= {path: 0 for path in sizes if "huge_file" in path}
    assert {path: peak for path, (_, peak) in found.items() if peak > 8 + 4 * sizes.get(path, 0)} == {}
