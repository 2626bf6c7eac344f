"""Write malicious model files into a folder and return their paths."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

from shardpress.model import Model
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.hostile import edited

NETWORK = Network((4, 6, 3), "relu", "linear", gain=True)


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


def _changed(folder: Path, change: Callable[[h5py.File], object]) -> Path:
    path = write_model(folder)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def _replaced(folder: Path, create: Callable[[h5py.File], object], name: str = "W_1") -> Path:
    """Write a model in which an array is replaced."""

    def change(file: h5py.File) -> None:
        del file[name]
        create(file)

    return _changed(folder, change)


# -- links to other files ---------------------------------------------------------------------------------------------


def external_link(folder: Path) -> Path:
    """Write a matrix that is in another file."""
    other = write_model(folder, "other.h5")
    return _replaced(folder, lambda file: file.__setitem__("W_1", h5py.ExternalLink(str(other), "/W_1")))


def soft_link(folder: Path) -> Path:
    """Write a matrix that is a soft link to another dataset in the file."""

    def change(file: h5py.File) -> None:
        file.move("W_1", "moved")
        file["W_1"] = h5py.SoftLink("/moved")

    return _changed(folder, change)


def external_storage(folder: Path) -> Path:
    """Write a matrix whose bytes are in another file."""
    secret = folder / "secret"
    secret.write_bytes(b"\0\0\x80?" * 24)
    return _replaced(folder, lambda file: file.create_dataset("W_1", (4, 6), "<f4", external=[(str(secret), 0, 96)]))


def virtual_dataset(folder: Path) -> Path:
    """Write a virtual matrix over another file."""
    other = write_model(folder, "other.h5")
    layout = h5py.VirtualLayout((4, 6), "<f4")
    layout[:] = h5py.VirtualSource(other, "W_1", (4, 6))
    return _replaced(folder, lambda file: file.create_virtual_dataset("W_1", layout))


# -- excessive sizes --------------------------------------------------------------------------------------------------


def _with_widths(folder: Path, widths: tuple[int, ...], create: Callable[[h5py.File], object]) -> Path:
    def change(file: h5py.File) -> None:
        file.attrs["widths"] = list(widths)
        create(file)

    return _replaced(folder, change)


def compressed(folder: Path) -> Path:
    """Write a matrix of zeros, compressed a thousandfold."""
    zeros = np.zeros((2**10, 2**12), "<f4")
    return _with_widths(
        folder,
        (2**10, 2**12, 3),
        lambda file: file.create_dataset("W_1", data=zeros, chunks=zeros.shape, compression="gzip"),
    )


def never_written(folder: Path) -> Path:
    """Write a matrix of 8 GiB in chunks that were never written."""
    shape = (2**16, 2**15)
    return _with_widths(
        folder, (*shape, 3), lambda file: file.create_dataset("W_1", shape, "<f4", chunks=(2**10, 2**10))
    )


def never_allocated(folder: Path) -> Path:
    """Write only the header of a contiguous matrix of 8 TiB."""
    shape = (2**20, 2**21)
    return _with_widths(folder, (*shape, 3), lambda file: file.create_dataset("W_1", shape, "<f4"))


def forged_shape(folder: Path) -> Path:
    """Write dimensions and a size that exceed the file, at an offset inside it."""
    path = _changed(folder, lambda file: file.attrs.__setitem__("widths", [2**28, 6, 3]))
    with h5py.File(path) as file:
        place = file["W_1"].id.get_offset()
    edited(path, struct.pack("<4Q", 4, 6, 4, 6), struct.pack("<4Q", 2**28, 6, 2**28, 6))
    return edited(path, struct.pack("<QQ", place, 96), struct.pack("<QQ", place, 96 * 2**26))


def overlapping(folder: Path) -> Path:
    """Write two arrays that share their bytes."""
    path = write_model(folder)
    with h5py.File(path) as file:
        first = file["minimum"].id.get_offset()
        second = file["maximum"].id.get_offset()
    return edited(path, struct.pack("<QQ", second, 32), struct.pack("<QQ", first, 32))


def shared_matrix(folder: Path) -> Path:
    """Write a network of 200 layers that share one matrix of 4 MiB."""
    n = 2**10
    path = folder / "model.h5"
    valid_model = model_of(Network((n, n)))
    path.write_bytes(valid_model.to_hdf5())
    with h5py.File(path, "a") as file:
        file.attrs["widths"] = np.full(201, n)
        file.attrs["activation"] = "relu"
        for layer in range(1, 201):
            for name in ("W", "b_hidden", "b_output"):
                file[f"{name}_{layer}"] = file[name]
    return path


def huge_widths(folder: Path) -> Path:
    """Write a network of 2**60 columns."""
    return _changed(folder, lambda file: file.attrs.__setitem__("widths", [4, 2**60, 3]))


def many_widths(folder: Path) -> Path:
    """Write a network of a million layers."""
    path = folder / "model.h5"
    with h5py.File(write_model(folder, "other.h5")) as other, h5py.File(path, "w", libver="latest") as file:
        for name, value in other.attrs.items():
            file.attrs[name] = value
        for name in other:
            file[name] = other[name][()]
        file.attrs["widths"] = np.full(10**6, 4)
    return path


def layers_without_end(folder: Path) -> Path:
    """Write a network of 8,000 layers, whose widths fit into an attribute of the oldest format."""
    return _changed(folder, lambda file: file.attrs.__setitem__("widths", np.full(8000, 4)))


def huge_about(folder: Path) -> Path:
    """Write a description of 32 MiB."""
    text = '{"config": "' + "x" * 2**25 + '"}'
    return _changed(folder, lambda file: file.attrs.__setitem__("about", text))


def many_values(folder: Path) -> Path:
    """Write a description of 12 MB that needs 300 MB once it is parsed."""
    text = '{"x": [' + "[]," * (4 * 10**6) + "0]}"
    return _changed(folder, lambda file: file.attrs.__setitem__("about", text))


def nested_values(folder: Path) -> Path:
    """Write a description that is nested too deeply."""
    return _changed(folder, lambda file: file.attrs.__setitem__("about", "[" * 10**5))


# -- invalid content --------------------------------------------------------------------------------------------------


def _with_array(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    array = change(np.array(model_of().parameters["W_1"]))
    return _replaced(folder, lambda file: file.__setitem__("W_1", array))


def nan_weights(folder: Path) -> Path:
    """Write a matrix that contains NaN."""
    return _with_array(folder, lambda array: array * np.nan)


def other_dtype(folder: Path) -> Path:
    """Write a matrix of float64."""
    return _with_array(folder, lambda array: array.astype(np.float64))


def other_shape(folder: Path) -> Path:
    """Write a transposed matrix."""
    return _with_array(folder, lambda array: array.T)


def missing_array(folder: Path) -> Path:
    """Write a model without the matrix."""
    return _replaced(folder, lambda file: None)


def group_for_array(folder: Path) -> Path:
    """Write a group in place of the matrix."""
    return _replaced(folder, lambda file: file.create_group("W_1"))


def odd_bool(folder: Path) -> Path:
    """Write a bool that is neither true nor false."""
    path = write_model(folder)
    with h5py.File(path) as file:
        place = file["clips"].id.get_offset()
    content = bytearray(path.read_bytes())
    content[place] = 7
    path.write_bytes(content)
    return path


def list_for_about(folder: Path) -> Path:
    """Write a description that is a list."""
    return _changed(folder, lambda file: file.attrs.__setitem__("about", json.dumps([1])))


def other_weights(folder: Path) -> Path:
    """Write a matrix of another model, which does not match the fingerprint."""
    return _with_array(folder, lambda array: array + 1)


def no_fingerprint(folder: Path) -> Path:
    """Write a model without the fingerprint."""
    return _changed(folder, lambda file: file.attrs.__delitem__("fingerprint"))


def later_format(folder: Path) -> Path:
    """Write a model in a future format."""
    return _changed(folder, lambda file: file.attrs.__setitem__("format", "shardpress-model/99"))


# -- not regular files ------------------------------------------------------------------------------------------------


def fifo(folder: Path) -> Path:
    """Create a named pipe that no process writes to."""
    path = folder / "model.h5"
    os.mkfifo(path)
    return path


def directory(folder: Path) -> Path:
    """Create a directory with the name of a model."""
    path = folder / "model.h5"
    path.mkdir()
    return path


def link_loop(folder: Path) -> Path:
    """Create a symbolic link to itself."""
    path = folder / "model.h5"
    path.symlink_to(path)
    return path


def dangling_link(folder: Path) -> Path:
    """Create a dangling symbolic link."""
    path = folder / "model.h5"
    path.symlink_to(folder / "nothing")
    return path


_REFUSED = (
    external_link,
    soft_link,
    external_storage,
    virtual_dataset,
    compressed,
    never_written,
    never_allocated,
    forged_shape,
    overlapping,
    shared_matrix,
    huge_widths,
    many_widths,
    layers_without_end,
    huge_about,
    many_values,
    nested_values,
    nan_weights,
    other_dtype,
    other_shape,
    missing_array,
    group_for_array,
    odd_bool,
    list_for_about,
    other_weights,
    no_fingerprint,
)
_NO_INPUT = (fifo, directory, link_loop, dangling_link)

HOSTILE: Mapping[str, tuple[Callable[[Path], Path], int]] = {
    **{make.__name__: (make, 65) for make in _REFUSED},
    **{make.__name__: (make, 66) for make in _NO_INPUT},
    "later_format": (later_format, 76),
}
"""Functions that write malicious models, by name, each with the exit code of the refusal."""
