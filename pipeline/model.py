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

from kernels.network import ACTIVATIONS, CODES, SLOPES, Network
from pipeline.columns import NO_COLUMNS, Columns
from pipeline.errors import DataError, NoInput, shown
from pipeline.scan.scaler import Scaler

__all__ = ["FORMAT", "Model", "load_model"]

FORMAT = "shardpress-model/2"
_FIRST = "shardpress-model/1"  # knew one layer of sigmoids alone, and did not describe it
_COLUMNS = "columns"  # the dataset with their description, as JSON
_MOST_COLUMN_BYTES = 2**13  # of JSON for one column: its name has 1,024 bytes at most, each escaped at worst


@dataclass(frozen=True)
class Model:
    """A fitted autoencoder.

    Attributes
    ----------
    parameters : mapping
        The network's, by the names and of the shapes that it gives them, all float32.
    about : mapping
        How it came to be: plain values that JSON can hold.
    columns : Columns
        Names or numbers of the columns that it takes, in their order, if they are known. They are no part of the
        fingerprint: equal weights make equal features whatever the columns are called.
    """

    scaler: Scaler
    network: Network
    parameters: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)
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
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features (n_rows, n_features) of unscaled rows (n_rows, n_inputs) of any real dtype.

        In float64 throughout: what every device is held against.
        """
        a = self.scaler.transform(rows).astype(np.float64)
        for (W, b_hidden, _), kind in zip(self.network.layers, self.network.activations, strict=True):
            a = _activated(kind, a @ self._wide(W) + self._wide(b_hidden))
        return a

    def decode(self, features: np.ndarray) -> np.ndarray:
        """Scaled rows (n_rows, n_inputs) that features (n_rows, n_features) stand for, in float64 as well."""
        network, s = self.network, features.astype(np.float64)
        if network.gain:
            s = (s - network.center) * self._wide("gain")
        for (W, _, b_output), kind in reversed(list(zip(network.layers, network.mirrors, strict=True))):
            s = _activated(kind, s @ self._wide(W).T + self._wide(b_output))
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
        with h5py.File.in_memory() as file:  # what goes to the disk goes there by `Disk` alone
            file.attrs["format"] = FORMAT
            file.attrs["fingerprint"] = self.fingerprint
            file.attrs.update(_described(self.network))
            file.attrs["about"] = json.dumps(self.about)
            for name, array in self._arrays().items():
                file[name] = array
            if self.columns.is_known:
                file[_COLUMNS] = np.frombuffer(self.columns.to_json(), dtype=np.uint8)
            file.flush()
            return bytes(file.id.get_file_image())

    def to_npz(self) -> bytes:
        """The bytes of ``encoder.npz``: ``W_1``, ``b_1`` and so on of `folded`, and what is applied to them.

        Rows come to them with ``fill`` for NaN, which it is where nothing is filled in, and clipped to ``low`` and
        ``high`` (all three (n_inputs,)), which are infinite where nothing is clipped.
        ``slopes`` (n_layers,) are those of the layers' activations below 0, which are 1 where there is none, and
        ``is_sigmoid`` says whether sigmoids follow the last one.
        """
        scaler, endless = self.scaler, np.full(self.n_inputs, np.inf)
        low, high = (scaler.minimum, scaler.maximum) if scaler.clips else (-endless, endless)
        fill = np.full(self.n_inputs, np.nan) if scaler.fill is None else scaler.fill
        arrays: dict[str, Any] = {"low": low, "high": high, "fill": fill}
        for i, (W, b) in enumerate(self.folded(), 1):
            arrays |= {f"W_{i}": W, f"b_{i}": b}
        slopes = np.array([SLOPES.get(kind, 1.0) for kind in self.network.activations])
        buffer = io.BytesIO()
        np.savez(buffer, **arrays, slopes=slopes, is_sigmoid=np.array(self.network.code == "sigmoid"))
        return buffer.getvalue()

    def _arrays(self) -> dict[str, np.ndarray]:
        weights = {name: self.parameters[name] for name in self.network.shapes}
        scaling = {"minimum": self.scaler.minimum, "maximum": self.scaler.maximum}
        if self.scaler.fill is not None:
            scaling["fill"] = self.scaler.fill
        if self.scaler.clips:
            scaling["clips"] = np.array(True)
        return {**scaling, **weights}

    def _wide(self, name: str) -> np.ndarray:
        return np.asarray(self.parameters[name], dtype=np.float64)


def _activated(kind: str, z: np.ndarray) -> np.ndarray:
    if kind == "sigmoid":
        with np.errstate(over="ignore"):  # beyond -709 the exponential is Inf and the feature 0, as it should be
            return np.asarray(1 / (1 + np.exp(-z)))
    return np.where(z > 0, z, SLOPES[kind] * z) if kind in SLOPES else z


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

    Parameters
    ----------
    path : str or Path
        The file, or an output directory that holds one.

    Raises
    ------
    NoInput
        When there is no such file.
    DataError
        When it is not a model of a known format, or arrays are missing, misshapen or not finite; it names them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.h5"
    if not path.is_file():
        raise NoInput(f"model={shown(path)}: not there, expected a model.h5 or an output directory that holds one")
    try:
        with h5py.File(path, "r", locking=False) as file:  # a lock would keep out the run that replaces it
            network = _network(path, file)
            names = ["minimum", "maximum", *network.shapes]
            missing = [name for name in names if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                raise DataError(f"model={shown(path)}: arrays {missing} are missing, expected {names}")
            names += [name for name in ("fill", "clips") if name in file]
            arrays = {name: np.asarray(file[name][()]) for name in names}
            about = json.loads(file.attrs["about"])
            columns = _columns(file, network.n_inputs)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"model={shown(path)}: cannot be read, in its network, its arrays or in `about`: {shown(error)}"
        ) from error
    _check_arrays(path, network, arrays)
    edges, fill, clips = (arrays.pop("minimum"), arrays.pop("maximum")), arrays.pop("fill", None), "clips" in arrays
    return Model(Scaler(*edges, fill, clips and bool(arrays.pop("clips"))), network, arrays, about, columns)


def _network(path: Path, file: h5py.File) -> Network:
    """What the file says of its network."""
    found = file.attrs.get("format")
    if found not in (FORMAT, _FIRST):  # before all else: what another format holds is not damage
        raise DataError(f"model={shown(path)}: format {found!r}, expected {FORMAT!r}")
    if found == _FIRST:
        return _first_network(path, file)
    widths = tuple(int(n) for n in file.attrs["widths"])
    network = Network(widths, str(file.attrs["activation"]), str(file.attrs["code"]), bool(file.attrs["gain"]))
    known = network.activation in ACTIVATIONS and network.code in CODES
    if not known or len(widths) < 2 or min(widths) < 1:
        raise ValueError(
            f"found {network}, expected two widths or more, each 1 or more, an activation of {ACTIVATIONS} and a code "
            f"of {CODES}"
        )
    return network


def _columns(file: h5py.File, n_inputs: int) -> Columns:
    """Return the description of the columns; earlier versions stored none.

    Raises
    ------
    ValueError
        If it is damaged, or larger than one of so many columns can be.
    """
    dataset = file.get(_COLUMNS)
    if dataset is None:
        return NO_COLUMNS
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype != np.uint8 or dataset.ndim != 1:
        raise ValueError("columns: expected bytes")
    if dataset.size > _MOST_COLUMN_BYTES * (n_inputs + 1):
        raise ValueError(f"columns: {dataset.size} bytes for {n_inputs} columns")
    return Columns.from_json(dataset[()].tobytes(), n_inputs)


def _first_network(path: Path, file: h5py.File) -> Network:
    shape = getattr(file.get("W"), "shape", None)  # there may be something else than an array, or none
    if shape is None or len(shape) != 2:
        raise DataError(f"model={shown(path)}: W has shape {shape}, expected (n_inputs, n_features)")
    return Network(shape)


def _check_arrays(path: Path, network: Network, arrays: Mapping[str, np.ndarray]) -> None:
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        **dict.fromkeys(("minimum", "maximum", "fill"), ((network.n_inputs,), np.float64)),
        "clips": ((), np.bool_),
        **{name: (shape, np.float32) for name, shape in network.shapes.items()},
    }
    for name, array in arrays.items():
        shape, dtype = expected[name]
        # The dtype first: of text or objects, NumPy cannot even be asked whether they are finite.
        if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
            raise DataError(
                f"model={shown(path)}: {name} is {array.dtype} of shape {array.shape}, expected finite "
                f"{np.dtype(dtype)} of shape {shape}"
            )
