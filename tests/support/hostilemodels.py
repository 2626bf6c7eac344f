"""Write malicious model files into a folder and return their paths."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress import sealed
from shardpress.formats import digest
from shardpress.model import Model
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.hostile import edited

NETWORK = Network((4, 6, 3), "relu", "linear", gain=True)
GROUP = "shardpress/model"

_Change = Callable[[h5py.Group], object]


def model_of(network: Network = NETWORK, seed: int = 0) -> Model:
    """Return a model with random parameters."""
    rng = np.random.default_rng(seed)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
    low = rng.normal(size=network.n_inputs)
    scaler = Scaler(low, low + 2, low + 1, clips=True)
    return Model(scaler, network, parameters, {"config": {}, "training": {"history": []}})


def write_model(folder: Path, name: str = "model.h5", seed: int = 0) -> Path:
    """Write a valid model."""
    path = folder / name
    path.write_bytes(model_of(seed=seed).to_hdf5())
    return path


# -- footers ----------------------------------------------------------------------------------------------------------


def without_footer(data: bytes) -> bytes:
    return data[: -sealed._FOOTER.size]


def with_footer(content: bytes, form: str = sealed.FORMAT) -> bytes:
    """Return the content of a file with a footer that matches it."""
    return content + sealed._FOOTER.pack(form.encode(), len(content), bytes.fromhex(digest([content])))


def changed(data: bytes, change: Callable[[h5py.File], object]) -> bytes:
    """Return a file after a change of its datasets and attributes, with a footer that matches."""
    with h5py.File.in_memory(without_footer(data)) as file:
        change(file)
        file.flush()
        return with_footer(bytes(file.id.get_file_image()))


def forge(path: Path, change: _Change, group: str = GROUP) -> Path:
    """Change a group in a file, and correct the footer."""
    path.write_bytes(changed(path.read_bytes(), lambda file: change(file[group])))
    return path


def edit_json(group: h5py.Group, name: str, change: Callable[[Any], object]) -> None:
    """Change the plain values in a dataset of JSON."""
    content = json.loads(group[name][()].tobytes())
    change(content)
    del group[name]
    group[name] = np.frombuffer(json.dumps(content).encode(), np.uint8)


def _forged(folder: Path, change: _Change) -> Path:
    return forge(write_model(folder), change)


def _replaced(folder: Path, create: _Change, name: str = "W_1") -> Path:
    """Write a model in which an array is replaced."""

    def change(group: h5py.Group) -> None:
        del group[name]
        create(group)

    return _forged(folder, change)


def _edited(path: Path, found: bytes, replaced: bytes) -> Path:
    """Replace bytes by others of the same length, and correct the footer."""
    path.write_bytes(with_footer(edited(without_footer(path.read_bytes()), found, replaced)))
    return path


# -- malicious models --------------------------------------------------------------------------------------------------


def _link(group: h5py.Group) -> None:
    """Replace a matrix by a soft link to another dataset in the file."""
    group.move("W_1", "moved")
    group["W_1"] = h5py.SoftLink(f"/{GROUP}/moved")


def external_link(folder: Path) -> Path:
    """Write a matrix that is in another file."""
    other = write_model(folder, "other.h5")
    return _replaced(folder, lambda group: group.__setitem__("W_1", h5py.ExternalLink(str(other), f"/{GROUP}/W_1")))


def external_storage(folder: Path) -> Path:
    """Write a matrix whose bytes are in another file."""
    secret = folder / "secret"
    secret.write_bytes(b"\0\0\x80?" * 24)
    return _replaced(folder, lambda group: group.create_dataset("W_1", (4, 6), "<f4", external=[(str(secret), 0, 96)]))


def virtual_dataset(folder: Path) -> Path:
    """Write a virtual matrix over another file."""
    other = write_model(folder, "other.h5")
    layout = h5py.VirtualLayout((4, 6), "<f4")
    layout[:] = h5py.VirtualSource(other, f"{GROUP}/W_1", (4, 6))
    return _replaced(folder, lambda group: group.create_virtual_dataset("W_1", layout))


def _with_widths(folder: Path, widths: tuple[int, ...], **options: Any) -> Path:
    """Write another width, and a matrix of this width that is not written."""

    def change(group: h5py.Group) -> None:
        group.attrs["widths"] = list(widths)
        group.create_dataset("W_1", widths[:2], "<f4", **options)

    return _replaced(folder, change)


def forged_shape(folder: Path) -> Path:
    """Write dimensions and a size that exceed the file, at an offset inside it."""
    path = _forged(folder, lambda group: group.attrs.__setitem__("widths", [2**28, 6, 3]))
    with h5py.File(path) as file:
        place = file[GROUP]["W_1"].id.get_offset()
    _edited(path, struct.pack("<4Q", 4, 6, 4, 6), struct.pack("<4Q", 2**28, 6, 2**28, 6))
    return _edited(path, struct.pack("<QQ", place, 96), struct.pack("<QQ", place, 96 * 2**26))


def overlapping(folder: Path) -> Path:
    """Write two arrays that share their bytes."""
    path = write_model(folder)
    with h5py.File(path) as file:
        first = file[GROUP]["minimum"].id.get_offset()
        second = file[GROUP]["maximum"].id.get_offset()
    return _edited(path, struct.pack("<QQ", second, 32), struct.pack("<QQ", first, 32))


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


def _with_about(folder: Path, text: bytes) -> Path:
    """Write another description."""
    return _replaced(folder, lambda group: group.__setitem__("about", np.frombuffer(text, np.uint8)), "about")


def _resealed(folder: Path, form: str | None) -> Path:
    """Write a model with the footer of another format, or without a footer."""
    path = write_model(folder)
    content = without_footer(path.read_bytes())
    path.write_bytes(content if form is None else with_footer(content, form))
    return path


def _written(folder: Path, make: Callable[[Path], object]) -> Path:
    """Create something else under the name of a model."""
    path = folder / "model.h5"
    make(path)
    return path


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


HOSTILE: Mapping[str, tuple[Callable[[Path], Path], int]] = {
    "external_link": (external_link, 65),
    "soft_link": (lambda folder: _forged(folder, _link), 65),
    "external_storage": (external_storage, 65),
    "virtual_dataset": (virtual_dataset, 65),
    "compressed zeros": (
        lambda folder: _with_widths(folder, (2**20, 2**10, 3), chunks=(2**10, 2**10), compression="gzip"),
        65,
    ),
    "never allocated": (lambda folder: _with_widths(folder, (2**20, 2**21, 3)), 65),
    "forged shape": (forged_shape, 65),
    "overlapping arrays": (overlapping, 65),
    "shared matrix": (shared_matrix, 65),
    "many widths": (lambda folder: _forged(folder, lambda group: group.attrs.update(widths=np.full(8000, 4))), 65),
    "huge description": (lambda folder: _with_about(folder, b'{"config": "' + b"x" * 2**25 + b'"}'), 65),
    "many values": (lambda folder: _with_about(folder, b'{"x": [' + b"[]," * (4 * 10**6) + b"0]}"), 65),
    "nested values": (lambda folder: _with_about(folder, b"[" * 10**5), 65),
    "later format": (lambda folder: _resealed(folder, "shardpress-output/99"), 76),
    "no footer": (lambda folder: _resealed(folder, None), 65),
    "no HDF5": (lambda folder: _written(folder, lambda path: path.write_bytes(with_footer(b"no HDF5"))), 65),
    "huge_file": (lambda folder: _written(folder, _huge), 65),
    "FIFO": (lambda folder: _written(folder, os.mkfifo), 66),
    "directory": (lambda folder: _written(folder, Path.mkdir), 66),
    "link to itself": (lambda folder: _written(folder, lambda path: path.symlink_to(path)), 66),
}
"""Functions that write malicious models, by name, each with the exit code of the refusal."""

# A child that fails when it checks an index or a model.
FAILING_CHILD = """
import ctypes, os
import numpy as np
from shardpress.hdf5.child import server
warm_up = server._warm_up
def check_result(file):
    {act}
def start():
    warm_up()
    server._FUNCTIONS['check_result'] = check_result
server._warm_up = start
main = server.main
"""
