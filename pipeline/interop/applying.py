"""A fitted model applied to arrays: on the device if Theano is installed, in NumPy otherwise; arrays of Dask lazily."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from pipeline.errors import WriteFailed, shown
from pipeline.model import Model
from pipeline.processcache import ProcessCache
from pipeline.shards.shard import read_dtype

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["computed", "decoded", "encoded", "errors", "has_theano", "is_lazy", "keep"]

_BLOCK_ROWS = 8 * TILE_ROWS  # whole tiles, as a run encodes them
_MAX_COMPILED = 4


# Models that are compiled for the device, by fingerprint and dtype of the rows.
_compiled: ProcessCache[tuple[str, str], Autoencoder] = ProcessCache(_MAX_COMPILED)


@cache
def has_theano() -> bool:
    """Return whether Theano is installed; there is none for Pythons after 3.11."""
    return find_spec("theano") is not None


def keep(model: Model, dtype: np.dtype, autoencoder: Autoencoder) -> None:
    """Keep what has trained a model on rows of `dtype`, since it is compiled already."""
    _compiled.put((model.fingerprint, dtype.name), autoencoder)


def _on_device(model: Model, stored: np.dtype) -> Autoencoder:
    """Return a model, compiled for rows of a dtype."""
    dtype = np.dtype(read_dtype(stored))
    found = _compiled.get((model.fingerprint, dtype.name))
    if found is None:
        start_device()
        found = autoencoder_of(model.scaler, model.network, dtype)
        found.set_parameters(model.parameters)
        keep(model, dtype, found)
    return found


# -- what a model computes -----------------------------------------------------------------------------------------


def encoded(model: Model, rows: Any) -> Any:
    """Return features of rows.

    Parameters
    ----------
    rows : array of shape (n_rows, n_inputs), any real dtype
        Unscaled; an array of Dask is encoded block by block when the result is computed.

    Returns
    -------
    array of shape (n_rows, n_features), float32
        On the device the same bits that a run computes for them.
    """
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, encoded, model), rows, model.n_features, np.float32)
    found = np.empty((len(rows), model.n_features), dtype=np.float32)
    if not has_theano():
        return _by_blocks(partial(_encode_in_numpy, model), rows, found)
    with theanos_errors():
        encode = _on_device(model, rows.dtype).encode_checked  # as in a run, so nothing else has to be compiled
        return _by_blocks(lambda block, out: encode(model.scaler.cleaned(block), out), rows, found)


def errors(model: Model, rows: Any) -> Any:
    """Return each row's mean squared reconstruction error in scaled units, (n_rows,) float32; lazily like `encoded`."""
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, errors, model), rows, None, np.float32)
    found = np.empty(len(rows), dtype=np.float32)
    if not has_theano():
        return _by_blocks(partial(_errors_in_numpy, model), rows, found)
    with theanos_errors():
        compute = _on_device(model, rows.dtype).errors
        return _by_blocks(lambda block, out: np.copyto(out, compute(model.scaler.cleaned(block))), rows, found)


def decoded(model: Model, features: Any) -> Any:
    """Return the unscaled rows (n_rows, n_inputs), float64, of features (n_rows, n_features); lazily like `encoded`."""
    if is_lazy(features):
        return _apply_lazily(partial(decoded, model), features, model.n_inputs, np.float64)
    found = np.empty((len(features), model.n_inputs))
    low = model.scaler.minimum
    width = model.scaler.maximum - low
    return _by_blocks(lambda block, out: np.copyto(out, model.decode(block) * width + low), features, found)


def _encode_in_numpy(model: Model, rows: np.ndarray, out: np.ndarray) -> None:
    out[...] = model.encode(rows)


def _errors_in_numpy(model: Model, rows: np.ndarray, out: np.ndarray) -> None:
    x = model.scaler.transform(rows)
    reconstructions = model.decode(model.encode(rows))
    out[...] = np.square(x - reconstructions).mean(axis=1)


def _by_blocks(fill: Callable[[np.ndarray, np.ndarray], object], rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill `out` a few thousand rows at a time, so that intermediate results need little memory."""
    dtype = read_dtype(rows.dtype)
    for start in range(0, len(rows), _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        fill(np.ascontiguousarray(rows[here], dtype=dtype), out[here])
    return out


# -- arrays of Dask, which are recognized without loading it -------------------------------------------------------


def is_lazy(rows: object) -> bool:
    """Return whether rows are an array of Dask."""
    return type(rows).__module__.startswith("dask.array")


def computed(rows: Any, most_bytes: float = np.inf) -> Any:
    """Compute an array of Dask, each block once; other arrays are returned as they are.

    Parameters
    ----------
    rows : array of shape (n_rows, n_inputs)
    most_bytes : float
        A larger array is written to a temporary file, and mapped.

    Raises
    ------
    ValueError
        For an array of an unknown number of rows.
    WriteFailed
        When there is no space for the file.
    """
    if not is_lazy(rows):
        return rows
    if np.isnan(rows.shape[0]):
        raise ValueError("a Dask array of an unknown number of rows: X.compute_chunk_sizes() finds it out")
    if rows.nbytes > most_bytes:
        return _spooled(rows)
    return rows.compute()


def _spooled(rows: Any) -> np.ndarray:
    """Compute rows into a temporary file, which is deleted with the array."""
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, rows.nbytes)  # otherwise a full disk would end the process
        except OSError as error:
            raise WriteFailed(
                f"{shown(tempfile.gettempdir())}: no room for {rows.nbytes} bytes of a Dask array that is larger than "
                f"half the memory budget: {error.strerror}. Set TMPDIR to another place, or write shards of it."
            ) from error
        found: np.ndarray = np.memmap(file, rows.dtype, "r+", shape=rows.shape)
        rows.store(found, lock=False)  # blocks do not overlap
    return found


def _apply_lazily(function: Callable[[np.ndarray], np.ndarray], rows: Any, width: int | None, dtype: type) -> Any:
    """Apply a function to each block of whole rows: its results are (n_rows, width), or (n_rows,) if that is None."""
    whole = rows.rechunk({1: -1})
    if width is None:
        one_axis: np.ndarray = np.empty(0, dtype)
        return whole.map_blocks(function, drop_axis=1, dtype=one_axis.dtype, meta=one_axis)
    two_axes: np.ndarray = np.empty((0, width), dtype)
    chunks = (whole.chunks[0], (width,))
    return whole.map_blocks(function, chunks=chunks, dtype=two_axes.dtype, meta=two_axes)


def _apply_to_block(apply: Callable[[Model, np.ndarray], np.ndarray], model: Model, rows: np.ndarray) -> np.ndarray:
    # Arrays in memory are checked by the caller; lazy ones can only be checked here.
    if model.scaler.fill is None and rows.dtype.kind == "f" and not np.isfinite(rows).all():
        first = int(np.argmax(~np.isfinite(rows).all(axis=1)))
        raise ValueError(f"row {first} of a block holds NaN or Inf, expected finite numbers. Leave such rows out.")
    return apply(model, rows)
