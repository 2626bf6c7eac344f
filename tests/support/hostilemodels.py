"""Write models, and change files so that their footers still match."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.base.formats import digest
from shardpress.hdf5 import sealed
from shardpress.model.encoder import Model
from shardpress.model.scaler import Scaler
from shardpress_kernels.network import Network

NETWORK = Network((4, 6, 3), "relu", "linear", gain=True)
GROUP = "shardpress/model"

_Change = Callable[[h5py.Group], object]


def model_of(network: Network = NETWORK, seed: int = 0) -> Model:
    """Return a model with random parameters."""
    rng = np.random.default_rng(seed)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
    low = rng.normal(size=network.n_inputs)
    scaler = Scaler(low, low + 2, low + 1, clips=True)
    return Model(scaler, network, parameters)


def write_model(folder: Path, name: str = "model.h5") -> Path:
    """Write a valid model."""
    path = folder / name
    path.write_bytes(model_of().to_hdf5())
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


# A child that fails when it checks an index or a model.
FAILING_CHILD = """
import ctypes
from shardpress.hdf5.child import server
server._FUNCTIONS["check_result"] = lambda file: ctypes.string_at(0)
main = server.main
"""
