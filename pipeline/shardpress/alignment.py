"""Linear maps from the features of one encoder to those of another, for classifiers that were trained on the latter.

A map is fitted in closed form to rows that both encoders have encoded: a ridge regression with a constant. Its penalty
is chosen by rows that are held out. A map file contains the arrays ``W`` and ``b``: ``features @ W + b``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.errors import DataError, NoInput, printable
from shardpress.formats import pack, unpack
from shardpress.hdf5.files import opened, read_at, with_retries

_FORMAT = "shardpress-map/1"
_PENALTIES = 10.0 ** np.arange(-8, 2)  # relative to the variance of a standardized feature times the number of rows
_HELD_OUT = 3  # one row of this number is held out
_MIN_ROWS = 6
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
        """Whether the shapes of `W` and `b` match, and all their values are finite float64."""
        is_possible = self.W.ndim == 2 and self.b.shape == self.W.shape[1:] and 0 not in self.W.shape
        return is_possible and all(each.dtype == np.float64 and np.isfinite(each).all() for each in (self.W, self.b))

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
    """A fitted map, and how well it predicts held-out rows."""

    map: LinearMap  # fitted to all rows
    # Coefficient of determination of each feature on the held-out rows, float64 (n_to,); NaN if it does not vary there.
    r2: np.ndarray
    n_rows: int
    n_held_out: int  # rows that were held out to choose the penalty and to measure `r2`

    def facts(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        r2 = [None if np.isnan(value) else float(value) for value in self.r2]
        return {"r2": r2, "n_rows": self.n_rows, "n_held_out": self.n_held_out}

    def __str__(self) -> str:
        varying = self.r2[~np.isnan(self.r2)]
        if not len(varying):
            return f"no feature varies in {self.n_held_out} held-out rows"
        n = len(varying)
        return (
            f"R2 {varying.mean():.3f} (mean of {n} features), minimum {varying.min():.3f}, on {self.n_held_out} "
            "held-out rows"
        )


def fit_map(source: np.ndarray, target: np.ndarray, encoder_from: str, encoder_to: str) -> Alignment:
    """Fit a linear map from features (n_rows, n_from) to other features (n_rows, n_to) of the same rows.

    Raise `DataError` if there are too few rows.
    """
    n_rows = len(source)
    if n_rows < _MIN_ROWS:
        raise DataError(f"found {n_rows} common rows with features, expected at least {_MIN_ROWS} to fit a map")
    x = source.astype(np.float64)
    y = target.astype(np.float64)
    is_held_out = np.random.default_rng(0).permutation(n_rows) % _HELD_OUT == 0
    train = ~is_held_out
    solutions = _ridge(x[train], y[train], _PENALTIES)
    errors = [np.square(x[is_held_out] @ W + b - y[is_held_out]) for W, b in solutions]
    spread = y[train].std(axis=0)
    weights = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0) ** 2
    best = int(np.argmin([float((error.mean(axis=0) * weights).sum()) for error in errors]))
    variance = y[is_held_out].var(axis=0)
    unknown = np.full(len(variance), np.nan)
    r2 = 1 - np.divide(errors[best].mean(axis=0), variance, out=unknown, where=variance > 0)
    ((W, b),) = _ridge(x, y, _PENALTIES[best : best + 1])
    return Alignment(LinearMap(W, b, encoder_from, encoder_to), r2, n_rows, int(is_held_out.sum()))


def _ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the matrix and the constant of a ridge regression of y on standardized x, for each penalty.

    Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970, equation 2.1.
    """
    mean = x.mean(axis=0)
    deviation = x.std(axis=0)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    z = (x - mean) * scale
    offset = y.mean(axis=0)
    variances, axes = np.linalg.eigh(z.T @ z / len(z))
    projected = axes.T @ (z.T @ (y - offset) / len(z))
    found = []
    for penalty in penalties:
        W = scale[:, None] * (axes @ (projected / (np.maximum(variances, 0) + penalty)[:, None]))
        found.append((W, offset - mean @ W))
    return found


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
        _check_about(about)
        found = LinearMap(arrays["W"], arrays["b"], about["encoder_from"], about["encoder_to"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a map: {printable(error)[:_QUOTED]}. {_OTHER_FILE}.") from error
    if not found.is_usable:
        raise DataError(
            f"{where}: arrays W of shape {found.W.shape} and b of shape {found.b.shape}, expected finite float64 of "
            f"shapes (n_from, n_to) and (n_to,). {_OTHER_FILE}."
        )
    return found


def _read(path: str, where: str) -> bytes:
    """Read the file once. Raise `OSError` if the storage fails."""
    try:
        with opened(path) as (descriptor, identity):
            if identity.size > _MOST_BYTES:
                raise DataError(f"{where}: {identity.size} bytes, expected at most {_MOST_BYTES}. {_OTHER_FILE}.")
            return read_at(descriptor, 0, identity.size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(f"{where}: {error.strerror}. {_OTHER_FILE}.") from error


def _check_about(about: Any) -> None:
    """Raise `ValueError`, `KeyError` or `TypeError` unless plain values describe a map of two encoders."""
    if about["format"] != _FORMAT:
        raise ValueError(f"its format is {about['format']!r}")
    for name in ("encoder_from", "encoder_to"):
        if not _FINGERPRINT.fullmatch(about[name]):
            raise ValueError(f"{name} is not a fingerprint")
