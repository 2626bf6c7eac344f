"""Application of a fitted model to arrays. It uses the device if Theano is installed, and otherwise NumPy.

Dask arrays are processed lazily.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from shardpress.base.errors import WriteFailed, printable
from shardpress.base.processcache import ProcessCache
from shardpress.hdf5.shard import Block, array_shard
from shardpress.model.device import TILE_ROWS, start_device, theanos_errors
from shardpress.model.encoder import Model, finite_errors
from shardpress.model.scaler import Cleaning
from shardpress.result.alignment import LinearMap
from shardpress.shards.conversion import Conversion
from shardpress_kernels.theanofiles import is_set_up

if TYPE_CHECKING:
    from shardpress.encoding.worker import Encoders

_BLOCK_ROWS = 8 * TILE_ROWS  # whole tiles, as in a run
_BLOCK_BYTES = 2**26  # fewer rows at a time if they are wide
_MAX_COMPILED = 4

_encoders: ProcessCache[str, Encoders] = ProcessCache(_MAX_COMPILED)  # by the fingerprint of the model


class _NumPyEncoder:
    """The functions of `Encoders` without a device."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> None:
        out[...] = self._model.encode_cleaned(rows)

    def errors(self, rows: np.ndarray, features: np.ndarray) -> np.ndarray:
        return finite_errors(self._model.row_errors(rows, features))


@cache
def has_theano() -> bool:
    return is_set_up()


def _encoder_of(model: Model) -> Encoders | _NumPyEncoder:
    if not has_theano():
        return _NumPyEncoder(model)

    def make() -> Encoders:
        from shardpress.encoding.worker import Encoders  # NumPy needs none of the packages that this imports

        start_device()
        return Encoders(model)

    return _encoders.get_or_make(model.fingerprint, make)


# -- features and rows ---------------------------------------------------------------------------------------------


def encode(model: Model, rows: Any) -> Any:
    """Return the features (n_rows, n_features), float32, of unscaled rows: an array, a CSR matrix or a Dask array.

    If they are computed on the device, they have the same bits as the features of a run. For a Dask array, the result
    is lazy.
    """
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, encode, model), rows, model.n_features, np.float32)
    features = np.empty((rows.shape[0], model.n_features), dtype=np.float32)
    with theanos_errors():
        encoder = _encoder_of(model)
        for here, _, cleaned in _cleaned_blocks(model, rows):
            encoder.encode_checked(cleaned, features[here])
    return features


def reconstruction_errors(model: Model, rows: Any) -> Any:
    """Return the mean squared reconstruction error of each row in scaled units, shape (n_rows,), float32.

    Values are not clipped. If the errors are computed on the device, they have the same bits as those of a run. For a
    Dask array, the result is lazy.
    """
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, reconstruction_errors, model), rows, None, np.float32)
    errors = np.empty(rows.shape[0], dtype=np.float32)
    with theanos_errors():
        encoder = _encoder_of(model)
        for here, filled, cleaned in _cleaned_blocks(model, rows):
            features = np.empty((len(filled), model.n_features), dtype=np.float32)
            encoder.encode_checked(cleaned, features)
            errors[here] = encoder.errors(filled, features)
    return errors


def _cleaned_blocks(model: Model, rows: Any) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield a few thousand rows at a time: their positions, filled rows, and filled and clipped rows."""
    shard = array_shard(rows)
    conversion = Conversion(preparation=model.preparation)
    cleaning = Cleaning(model.scaler)
    n_tiles = max(1, _BLOCK_BYTES // (conversion.row_bytes(shard) * TILE_ROWS))
    for block in Block(shard, 0, shard.n_rows).cut(min(_BLOCK_ROWS, n_tiles * TILE_ROWS)):
        filled = cleaning.filled(conversion.read(block))
        yield slice(block.start, block.stop), filled, cleaning.clipped(filled)


def decode(model: Model, features: Any) -> Any:
    """Return the unscaled float64 rows (n_rows, n_columns) that the model reconstructs from features.

    Row scaling is not undone, since features do not contain the size of a row. For a Dask array, the result is lazy.
    """
    if is_lazy(features):
        return _apply_lazily(partial(decode, model), features, model.n_columns, np.float64)
    rows = np.empty((len(features), model.n_columns))
    for start in range(0, len(rows), _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        rows[here] = model.scaler.restore(model.decode(features[here]))
        if model.preparation is not None:
            rows[here] = model.preparation.restore(rows[here])
    return rows


def mapped(to_other: LinearMap, features: Any) -> Any:
    """Return features mapped to those of another model, float32. For a Dask array, the result is lazy."""
    if is_lazy(features):
        return _apply_lazily(to_other.apply, features, to_other.W.shape[1], np.float32)
    return to_other.apply(features)


# -- Dask arrays ---------------------------------------------------------------------------------------------------


def is_lazy(rows: object) -> bool:
    """Return whether `rows` is a Dask array, without importing Dask."""
    return type(rows).__module__.startswith("dask.array")


def compute(rows: Any, max_bytes: float = np.inf) -> Any:
    """Compute a Dask array, and return any other array unchanged. Each block is computed once.

    A Dask array above `max_bytes` is written to a temporary file and memory-mapped.
    """
    if not is_lazy(rows):
        return rows
    if np.isnan(rows.shape[0]):
        raise ValueError("the Dask array has an unknown number of rows. Call X.compute_chunk_sizes() first.")
    if rows.nbytes > max_bytes:
        return _compute_to_file(rows)
    return rows.compute()


def flattened(rows: Any) -> Any:
    """Return rows (n_rows, n_columns) whose axes after the first are flattened, as in a run.

    Dask arrays stay lazy. Anything else than an array or a sequence is returned unchanged.
    """
    array: Any = np.asarray(rows) if isinstance(rows, list | tuple) else rows
    if getattr(array, "ndim", 2) <= 2:
        return rows
    width = prod(array.shape[1:])
    if not is_lazy(array):
        return array.reshape(len(array), width)
    whole = array.rechunk(dict.fromkeys(range(1, array.ndim), -1))
    chunks = (whole.chunks[0], (width,))
    axes = list(range(2, array.ndim))
    return whole.map_blocks(_flattened_block, width, drop_axis=axes, chunks=chunks, dtype=array.dtype)


def _flattened_block(block: np.ndarray, width: int) -> np.ndarray:
    return block.reshape(len(block), width)


def _compute_to_file(rows: Any) -> np.ndarray:
    """Compute rows into a temporary file, which is deleted when the array is freed."""
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, rows.nbytes)  # otherwise a full disk would kill the process
        except OSError as error:
            raise WriteFailed(
                f"{printable(tempfile.gettempdir())}: no space for the {rows.nbytes} bytes of a Dask array that "
                f"exceeds half the memory budget: {error.strerror}. Set TMPDIR to another directory, or write shards "
                "of the array."
            ) from error
        array: np.ndarray = np.memmap(file, rows.dtype, "r+", shape=rows.shape)
        rows.store(array, lock=False)  # blocks do not overlap
    return array


def _apply_lazily(function: Callable[[np.ndarray], np.ndarray], rows: Any, width: int | None, dtype: type) -> Any:
    """Apply a function to each block of complete rows, and return (n_rows, width), or (n_rows,) if `width` is None."""
    whole = rows.rechunk({1: -1})
    if width is None:
        one_axis: np.ndarray = np.empty(0, dtype)
        return whole.map_blocks(function, drop_axis=1, dtype=one_axis.dtype, meta=one_axis)
    two_axes: np.ndarray = np.empty((0, width), dtype)
    chunks = (whole.chunks[0], (width,))
    return whole.map_blocks(function, chunks=chunks, dtype=two_axes.dtype, meta=two_axes)


def _apply_to_block(apply: Callable[[Model, np.ndarray], np.ndarray], model: Model, rows: np.ndarray) -> np.ndarray:
    # The caller checks arrays in memory, but lazy arrays can only be checked here.
    if model.scaler.fill is None and rows.dtype.kind == "f" and not np.isfinite(rows).all():
        first = int(np.argmax(~np.isfinite(rows).all(axis=1)))
        raise ValueError(
            f"row {first} of a block contains NaN or Inf, expected finite numbers. Remove such rows, or fit with "
            'impute="median", which fills in NaN.'
        )
    return apply(model, rows)
