"""The fitted model as named arrays: scaling, weights, files, and a NumPy encoder that needs nothing else.

No pickle, in or out. ``model.h5`` keeps the scaling and the weights apart, and describes the network; ``encoder.npz``
holds one affine map for each layer, the first with the scaling folded in, for a short loop in plain NumPy: the README
has it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernels.activations import ACTIVATIONS
from kernels.network import Network
from kernels.reference import activated
from pipeline.columns import NO_COLUMNS, Columns
from pipeline.errors import DataError, NoInput, shown
from pipeline.modelfile import COLUMNS, FORMAT, listed_model, read_model_file
from pipeline.output.records import Entry
from pipeline.scan.scaler import Scaler

__all__ = ["Model", "load_model"]


@dataclass(frozen=True)
class Model:
    """A fitted autoencoder.

    Attributes
    ----------
    parameters : mapping
        The network's, by the names and of the shapes that it gives them, all float32.
    about : mapping
        How it came to be: plain values that JSON can hold.
    offset : ndarray of shape (n_inputs,), float64, or None
        Whole numbers to subtract from rows of integers, in their own type, before `encode`: see
        `pipeline.shards.shard.with_offset`. None where float64 holds all values of the columns.
    columns : Columns
        Names or numbers of the columns that it takes, in their order, if they are known. They are no part of the
        fingerprint: equal weights make equal features whatever the columns are called.
    """

    scaler: Scaler
    network: Network
    parameters: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)
    offset: np.ndarray | None = None
    columns: Columns = NO_COLUMNS

    @property
    def n_inputs(self) -> int:
        """Columns in."""
        return self.network.n_inputs

    @property
    def n_features(self) -> int:
        """Columns out."""
        return self.network.n_features

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network and the arrays: equal models make equal features."""
        # Not of `about`: the same weights from another training are the same model, and its features stay.
        digest = sha256()
        if self.network != Network((self.n_inputs, self.n_features)):  # that of the first format has its fingerprint
            digest.update(json.dumps(_described(self.network)).encode())
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features (n_rows, n_features) of unscaled rows (n_rows, n_inputs) of any real dtype.

        In float64 throughout: what every device is held against.
        """
        a = self.scaler.transform(rows).astype(np.float64)
        for (W, b_hidden, _), kind in zip(self.network.layers, self.network.activations, strict=True):
            a = activated(kind, a @ self._wide(W) + self._wide(b_hidden))
        return a

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Scaled rows (n_rows, n_inputs) that features (n_rows, n_features) stand for, in float64 as well."""
        network = self.network
        s = features.astype(np.float64)
        if network.gain:
            s = (s - network.center) * self._wide("gain")
        for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s = activated(kind, s @ self._wide(W).T + self._wide(b_output))
        return s

    def folded(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each layer the affine map that its activation is applied to, float64: a matrix like ``W``, and a vector.

        The first one takes rows as they are: the scaling is part of it.
        """
        maps = [(self._wide(W), self._wide(b_hidden)) for W, b_hidden, _ in self.network.layers]
        W = self.scaler.scale[:, None] * maps[0][0]
        return [(W, maps[0][1] - self.scaler.minimum @ W), *maps[1:]]

    def to_hdf5(self) -> bytes:
        """The bytes of ``model.h5``."""
        # In memory, since what goes to the disk goes there by `Disk` alone; and in the oldest format, in which a group
        # of any size is plain: `pipeline.modelfile` reads nothing else.
        with h5py.File.in_memory(libver="earliest") as file:
            file.attrs["format"] = FORMAT
            file.attrs["fingerprint"] = self.fingerprint
            file.attrs.update(_described(self.network))
            file.attrs["about"] = json.dumps(self.about)
            for name, array in self._arrays().items():
                file[name] = array
            if self.columns.is_known:
                file[COLUMNS] = np.frombuffer(self.columns.to_json(), dtype=np.uint8)
            file.flush()
            return bytes(file.id.get_file_image())

    def to_npz(self) -> bytes:
        """The bytes of ``encoder.npz``: ``W_1``, ``b_1`` and so on of `folded`, and what is applied to them.

        Rows come to them with ``fill`` for NaN, which it is where nothing is filled in, and clipped to ``low`` and
        ``high`` (all three (n_inputs,)), which are infinite where nothing is clipped.
        Where the model has an ``offset`` (n_inputs,), it is subtracted from the integers of the rows before all that.
        ``slopes`` (n_layers,) are those of the layers' activations below 0, which are 1 where there is none, and
        ``is_sigmoid`` says whether sigmoids follow the last one. If other activations are among the layers', their
        names, ``activations`` (n_layers,), take the place of both, so that a reader of slopes fails.
        """
        scaler = self.scaler
        endless = np.full(self.n_inputs, np.inf)
        low, high = (scaler.minimum, scaler.maximum) if scaler.clips else (-endless, endless)
        fill = np.full(self.n_inputs, np.nan) if scaler.fill is None else scaler.fill
        arrays: dict[str, Any] = {"low": low, "high": high, "fill": fill}
        for i, (W, b) in enumerate(self.folded(), 1):
            arrays |= {f"W_{i}": W, f"b_{i}": b}
        if self.offset is not None:
            arrays["offset"] = self.offset
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, **self._activations())
        return buffer.getvalue()

    def _activations(self) -> dict[str, np.ndarray]:
        """Return the arrays of ``encoder.npz`` that describe the activations."""
        *hidden, code = [ACTIVATIONS[kind].slope for kind in self.network.activations]
        is_sigmoid = self.network.code == "sigmoid"
        if is_sigmoid:
            code = 1.0  # of what the sigmoids take in
        slopes = [*hidden, code]
        if None in slopes:
            return {"activations": np.array(self.network.activations)}
        return {"slopes": np.array(slopes), "is_sigmoid": np.array(is_sigmoid)}

    def _arrays(self) -> dict[str, np.ndarray]:
        weights = {name: self.parameters[name] for name in self.network.shapes}
        scaling = {"minimum": self.scaler.minimum, "maximum": self.scaler.maximum}
        if self.scaler.fill is not None:
            scaling["fill"] = self.scaler.fill
        if self.scaler.clips:
            scaling["clips"] = np.array(True)
        if self.offset is not None:
            scaling["offset"] = self.offset
        return {**scaling, **weights}

    def _wide(self, name: str) -> np.ndarray:
        return np.asarray(self.parameters[name], dtype=np.float64)


def _described(network: Network) -> dict[str, Any]:
    """A network as attributes of a file."""
    return {
        "widths": list(network.widths),
        "activation": network.activation,
        "code": network.code,
        "gain": network.gain,
    }


def load_model(path: str | Path) -> Model:
    """Read ``model.h5``.

    The file is read without libhdf5, so it cannot lead elsewhere, and takes no more memory than its own size. It must
    fit the fingerprint in it; and the digest in the manifest, if the directory holds one that lists it.

    Parameters
    ----------
    path : str or Path
        The file, or an output directory that holds one.

    Raises
    ------
    NoInput
        When there is no such file.
    DataError
        When it is no model, was changed since it was written, or arrays are missing, misshapen or not finite; it names
        them.
    NewerFormat
        When a later version of shardpress wrote it.
    ReadFailed, NotPermitted, SystemLimit
        When the storage or the system fails.
    """
    path = Path(path)
    entry = listed_model(path)
    try:
        return _model(path, entry)
    except (DataError, NoInput):
        # A run that has finished since the first look has replaced both the manifest and the model.
        now = listed_model(path)
        if now == entry:
            raise
    return _model(path, now)


def _model(path: Path, entry: Entry | None) -> Model:
    stored = read_model_file(path, entry)
    arrays = stored.arrays
    scaler = Scaler(arrays["minimum"], arrays["maximum"], arrays.get("fill"), bool(arrays.get("clips", False)))
    parameters = {name: arrays[name] for name in stored.network.shapes}
    model = Model(scaler, stored.network, parameters, stored.about, arrays.get("offset"), stored.columns)
    if model.fingerprint != stored.fingerprint:
        raise DataError(
            f"model={shown(path)}: its network and arrays have the fingerprint {model.fingerprint}, expected "
            f"{shown(stored.fingerprint)[:64]} as it says: the file has changed since it was written. Use a copy of "
            "it, or train again."
        )
    return model
