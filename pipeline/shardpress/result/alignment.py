"""Linear maps from the features of one encoder to those of another, for classifiers that were trained on the latter.

A map is a ridge regression on rows that both encoders have encoded. Other rows, which choose neither its weights nor
its penalty, measure its quality. A map file contains the arrays ``W`` and ``b``: ``features @ W + b``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardpress.base.errors import DataError, NoInput, printable
from shardpress.base.formats import pack, unpack
from shardpress.base.ridge import fit_ridge
from shardpress.hdf5.files import opened, read_at, with_retries

_FORMAT = "shardpress-map/1"
_PENALTIES = 10.0 ** np.arange(-8, 5)  # small ones, because a map can be almost exact
_MOST_BYTES = 2**30  # of a file; a map of 8,000 features to as many takes half of it
_QUOTED = 300  # characters of an error about a file
_FINGERPRINT = re.compile("[0-9a-f]{64}")
_OTHER_FILE = "Expected a file that `shardpress compare --map` wrote"


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map from the features of one encoder to those of another."""

    W: np.ndarray  # float64 (n_from, n_to)
    b: np.ndarray  # float64 (n_to,)
    encoder_from: str  # fingerprint
    encoder_to: str

    @property
    def is_usable(self) -> bool:
        """Whether `W` and `b` are finite float64 of matching shapes, and the encoders are fingerprints."""
        is_possible = self.W.ndim == 2 and self.b.shape == self.W.shape[1:] and 0 not in self.W.shape
        encoders = (self.encoder_from, self.encoder_to)
        if not is_possible or not all(_FINGERPRINT.fullmatch(encoder) for encoder in encoders):
            return False
        return all(array.dtype == np.float64 and np.isfinite(array).all() for array in (self.W, self.b))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return the mapped features (n_rows, n_to), float32. Rows of NaN stay NaN."""
        return np.asarray(features.astype(np.float64) @ self.W + self.b, dtype=np.float32)

    def then(self, other: LinearMap) -> LinearMap:
        """Return the map that applies this map, and then another one. Raise `ValueError` if they do not fit."""
        if self.encoder_to != other.encoder_from or self.W.shape[1] != other.W.shape[0]:
            raise ValueError(f"a map to {self.encoder_to} cannot precede a map from {other.encoder_from}")
        return LinearMap(self.W @ other.W, self.b @ other.W + other.b, self.encoder_from, other.encoder_to)

    def to_npz(self) -> bytes:
        """Return the content of a map file."""
        encoders = {"format": _FORMAT, "encoder_from": self.encoder_from, "encoder_to": self.encoder_to}
        return pack({"W": self.W, "b": self.b}, encoders)


@dataclass(frozen=True, eq=False)
class Alignment:
    """A fitted map, and how well it predicts rows that it was not fitted to."""

    map: LinearMap
    # Coefficient of determination of each feature on the held-out rows, float64 (n_to,); NaN if it does not vary there.
    r2: np.ndarray
    n_rows: int
    n_held_out: int

    @property
    def known_r2(self) -> list[float | None]:
        """The coefficients of determination, with None instead of NaN."""
        return [None if np.isnan(value) else float(value) for value in self.r2]

    def __str__(self) -> str:
        varying = self.r2[~np.isnan(self.r2)]
        if not len(varying):
            return f"no feature varies in {self.n_held_out} held-out rows"
        return (
            f"R2 {varying.mean():.3f} (mean of {len(varying)} features), minimum {varying.min():.3f}, on "
            f"{self.n_held_out} held-out rows"
        )


def fit_map(
    source: np.ndarray, target: np.ndarray, is_held_out: np.ndarray, encoder_from: str, encoder_to: str
) -> Alignment:
    """Fit a linear map from features (n_rows, n_from) to other features (n_rows, n_to) of the same rows, float64.

    The map is not fitted again to the rows in the mask `is_held_out` (n_rows,), so that `Alignment.r2` describes it.
    """
    known = target[~is_held_out]
    spread = known.std(axis=0)
    unit = np.where(spread > 0, spread, 1)  # otherwise the features with a large spread would choose the penalty
    W, b = fit_ridge(source[~is_held_out], known / unit, _PENALTIES)
    linear = LinearMap(W * unit, b * unit, encoder_from, encoder_to)
    expected = target[is_held_out]
    errors = np.square(source[is_held_out] @ linear.W + linear.b - expected).mean(axis=0)
    variance = expected.var(axis=0)
    unknown = np.full(len(variance), np.nan)
    r2 = 1 - np.divide(errors, variance, out=unknown, where=variance > 0)
    return Alignment(linear, r2, len(source), int(is_held_out.sum()))


def load_map(path: str | Path) -> LinearMap:
    """Read a map file. Its content is checked before it is used.

    Raises
    ------
    NoInput
        If the file does not exist, or is not a regular file.
    DataError
        If it is not a map of finite numbers.
    ReadFailed, NotPermitted, SystemLimit
        If it cannot be read.
    """
    where = f"map={printable(path)}"
    data = with_retries(lambda: _read(str(path), where), where)
    try:
        arrays, about = unpack(data)
        linear = LinearMap(arrays["W"], arrays["b"], about["encoder_from"], about["encoder_to"])
        if about["format"] != _FORMAT or not linear.is_usable:
            raise ValueError(f"its format is not {_FORMAT}, or it has other arrays than finite W (n, m) and b (m,)")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a map: {printable(error)[:_QUOTED]}. {_OTHER_FILE}.") from error
    return linear


def _read(path: str, where: str) -> bytes:
    """Read the file once. Raise `OSError` if the storage fails."""
    try:
        with opened(path) as (descriptor, identity):
            if identity.size > _MOST_BYTES:
                raise DataError(f"{where}: {identity.size} bytes, expected at most {_MOST_BYTES}. {_OTHER_FILE}.")
            return read_at(descriptor, 0, identity.size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(f"{where}: {error.strerror}. {_OTHER_FILE}.") from error
