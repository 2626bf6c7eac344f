"""The fitted model as named arrays: scaling, weights, files, and a NumPy encoder that needs nothing else.

No pickle, in or out. ``model.h5`` keeps the scaling and the weights apart; ``encoder.npz`` holds them folded into one
affine map, so that ``1 / (1 + exp(-(rows @ W + b)))`` is all that a reader of rows (n_rows, n_inputs) needs.
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

from pipeline.errors import DataError, NoInput, shown
from pipeline.scan.scaler import Scaler

__all__ = ["FORMAT", "Model", "load_model"]

FORMAT = "shardpress-model/1"
_ARRAYS = ("minimum", "maximum", "W", "b_hidden", "b_output")


@dataclass(frozen=True)
class Model:
    """A fitted autoencoder.

    Attributes
    ----------
    parameters : mapping
        ``W`` (n_inputs, n_features), ``b_hidden`` (n_features,), ``b_output`` (n_inputs,), all float32.
    about : mapping
        How it came to be: plain values that JSON can hold.
    """

    scaler: Scaler
    parameters: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_inputs(self) -> int:
        """Columns in."""
        return int(self.parameters["W"].shape[0])

    @property
    def n_features(self) -> int:
        """Columns out."""
        return int(self.parameters["W"].shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays: equal models make equal features."""
        # Not of `about`: the same weights from another training are the same model, and its features stay.
        digest = sha256()
        for name, array in self._arrays().items():
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Features (n_rows, n_features) of unscaled rows (n_rows, n_inputs) of any real dtype.

        In float64 throughout: what every device is held against.
        """
        p = {name: np.asarray(array, dtype=np.float64) for name, array in self.parameters.items()}
        with np.errstate(over="ignore"):  # beyond -709 the exponential is Inf and the feature 0, as it should be
            return 1 / (1 + np.exp(-(self.scaler.transform(rows).astype(np.float64) @ p["W"] + p["b_hidden"])))

    def folded(self) -> tuple[np.ndarray, np.ndarray]:
        """The affine map from unscaled rows to the sigmoid's argument, float64: a matrix like ``W``, and a vector."""
        W = self.scaler.scale[:, None] * self.parameters["W"].astype(np.float64)
        return W, self.parameters["b_hidden"] - self.scaler.minimum @ W

    def to_hdf5(self) -> bytes:
        """The bytes of ``model.h5``."""
        with h5py.File.in_memory() as file:  # what goes to the disk goes there by `Disk` alone
            file.attrs["format"] = FORMAT
            file.attrs["fingerprint"] = self.fingerprint
            file.attrs["about"] = json.dumps(self.about)
            for name, array in self._arrays().items():
                file[name] = array
            file.flush()
            return bytes(file.id.get_file_image())

    def to_npz(self) -> bytes:
        """The bytes of ``encoder.npz``: ``W`` and ``b`` of `folded`."""
        W, b = self.folded()
        buffer = io.BytesIO()
        np.savez(buffer, W=W, b=b)
        return buffer.getvalue()

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"minimum": self.scaler.minimum, "maximum": self.scaler.maximum, **self.parameters}


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
        When it is not a model of this format, or arrays are missing, misshapen or not finite; it names them.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.h5"
    if not path.is_file():
        raise NoInput(f"model={shown(path)}: not there, expected a model.h5 or an output directory that holds one")
    try:
        with h5py.File(path, "r", locking=False) as file:  # a lock would keep out the run that replaces it
            found_format = file.attrs.get("format")
            if found_format != FORMAT:  # first: what another format holds is not damage
                raise DataError(f"model={shown(path)}: format {found_format!r}, expected {FORMAT!r}")
            missing = [name for name in _ARRAYS if not isinstance(file.get(name), h5py.Dataset)]
            if missing:
                raise DataError(f"model={shown(path)}: arrays {missing} are missing, expected {list(_ARRAYS)}")
            arrays = {name: np.asarray(file[name][()]) for name in _ARRAYS}
            about = json.loads(file.attrs["about"])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"model={shown(path)}: cannot be read, in its arrays or in `about`: {error}") from error
    _check_arrays(path, arrays)
    return Model(Scaler(arrays.pop("minimum"), arrays.pop("maximum")), arrays, about)


def _check_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    if arrays["W"].ndim != 2:
        raise DataError(f"model={shown(path)}: W has shape {arrays['W'].shape}, expected (n_inputs, n_features)")
    n_inputs, n_features = arrays["W"].shape
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        "minimum": ((n_inputs,), np.float64),
        "maximum": ((n_inputs,), np.float64),
        "W": ((n_inputs, n_features), np.float32),
        "b_hidden": ((n_features,), np.float32),
        "b_output": ((n_inputs,), np.float32),
    }
    for name, (shape, dtype) in expected.items():
        array = arrays[name]
        # The dtype first: of text or objects, NumPy cannot even be asked whether they are finite.
        if array.shape != shape or array.dtype != dtype or not np.isfinite(array).all():
            raise DataError(
                f"model={shown(path)}: {name} is {array.dtype} of shape {array.shape}, expected finite "
                f"{np.dtype(dtype)} of shape {shape}"
            )
