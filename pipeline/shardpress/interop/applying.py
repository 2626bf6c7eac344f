"""Application of a fitted model to arrays. It uses the device if Theano is installed, and otherwise NumPy.

Dask arrays are processed lazily.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from shardpress.alignment import LinearMap
from shardpress.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from shardpress.errors import WriteFailed, printable
from shardpress.model import Model, finite_errors
from shardpress.preparation import PREPARED_DTYPE
from shardpress.processcache import ProcessCache
from shardpress.shards.shard import read_dtype

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder

_BLOCK_ROWS = 8 * TILE_ROWS  # whole tiles, as in a run
_SPARSE_BLOCK = 2**26  # bytes of sparse rows that are made dense at a time
_MAX_COMPILED = 4


# Models that are compiled for the device. Keys are the fingerprint of the model and the dtype of the rows.
_compiled: ProcessCache[tuple[str, str], Autoencoder] = ProcessCache(_MAX_COMPILED)


@cache
def has_theano() -> bool:
    return find_spec("theano") is not None


def keep_compiled(model: Model, dtype: np.dtype, autoencoder: Autoencoder) -> None:
    """Cache an autoencoder that was compiled for rows of `dtype`, to apply the model later."""
    _compiled.put((model.fingerprint, dtype.name), autoencoder)


def _on_device(model: Model, stored: np.dtype) -> Autoencoder:
    dtype = np.dtype(read_dtype(stored)) if model.preparation is None else PREPARED_DTYPE
    autoencoder = _compiled.get((model.fingerprint, dtype.name))
    if autoencoder is None:
        start_device()
        autoencoder = autoencoder_of(model.scaler, model.network, dtype)
        autoencoder.set_parameters(model.parameters)
        keep_compiled(model, dtype, autoencoder)
    return autoencoder


# -- features and rows ---------------------------------------------------------------------------------------------


def encode(model: Model, rows: Any) -> Any:
    """Return the features (n_rows, n_features), float32, of unscaled rows: an array, a CSR matrix or a Dask array.

    If they are computed on the device, they have the same bits as the features of a run. For a Dask array, the result
    is lazy.
    """
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, encode, model), rows, model.n_features, np.float32)
    features = np.empty((rows.shape[0], model.n_features), dtype=np.float32)
    if not has_theano():
        return _by_blocks(lambda block, out: np.copyto(out, model.encode(block)), rows, features)
    with theanos_errors():
        encode_block = _on_device(model, rows.dtype).encode_checked  # a run uses the same compiled function
        return _by_blocks(lambda block, out: encode_block(_cleaned(model, block), out), rows, features)


def reconstruction_errors(model: Model, rows: Any) -> Any:
    """Return the mean squared reconstruction error of each row in scaled units, shape (n_rows,), float32.

    Values are not clipped. If the errors are computed on the device, they have the same bits as those of a run. For a
    Dask array, the result is lazy.
    """
    if is_lazy(rows):
        return _apply_lazily(partial(_apply_to_block, reconstruction_errors, model), rows, None, np.float32)
    errors = np.empty(rows.shape[0], dtype=np.float32)
    if not has_theano():
        return _by_blocks(partial(_errors_in_numpy, model), rows, errors)
    with theanos_errors():
        return _by_blocks(partial(_errors_on_device, model, _on_device(model, rows.dtype)), rows, errors)


def _cleaned(model: Model, rows: np.ndarray) -> np.ndarray:
    return model.scaler.cleaned(model.prepared(rows))


def _filled_and_cleaned(model: Model, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows before and after the clipping."""
    filled = model.scaler.filled(model.prepared(rows))
    return filled, model.scaler.clipped(filled) if model.scaler.clips else filled


def _errors_on_device(model: Model, autoencoder: Autoencoder, rows: np.ndarray, out: np.ndarray) -> None:
    filled, cleaned = _filled_and_cleaned(model, rows)
    features = np.empty((len(rows), model.n_features), dtype=np.float32)
    autoencoder.encode_checked(cleaned, features)
    out[...] = finite_errors(autoencoder.errors(filled, features))


def decode(model: Model, features: Any) -> Any:
    """Return the unscaled float64 rows (n_rows, n_columns) that the model reconstructs from features.

    Row scaling is not undone, since features do not contain the size of a row. For a Dask array, the result is lazy.
    """
    if is_lazy(features):
        return _apply_lazily(partial(decode, model), features, model.n_columns, np.float64)
    rows = np.empty((len(features), model.n_columns))
    return _by_blocks(partial(_decode_block, model), features, rows)


def mapped(to_other: LinearMap, features: Any) -> Any:
    """Return features mapped to those of another model, float32. For a Dask array, the result is lazy."""
    if is_lazy(features):
        return _apply_lazily(to_other.apply, features, to_other.W.shape[1], np.float32)
    return to_other.apply(features)


def _decode_block(model: Model, features: np.ndarray, out: np.ndarray) -> None:
    out[...] = model.scaler.restore(model.decode(features))
    if model.preparation is not None:
        out[...] = model.preparation.restore(out)


def _errors_in_numpy(model: Model, rows: np.ndarray, out: np.ndarray) -> None:
    filled, cleaned = _filled_and_cleaned(model, rows)
    out[...] = finite_errors(model.row_errors(filled, model.encode_cleaned(cleaned)))


def _by_blocks(fill: Callable[[np.ndarray, np.ndarray], object], rows: Any, out: np.ndarray) -> np.ndarray:
    """Fill `out` with a few thousand rows at a time, so that intermediate results need little memory."""
    dtype = np.dtype(read_dtype(rows.dtype))
    is_dense = isinstance(rows, np.ndarray)
    n_rows = _BLOCK_ROWS
    if not is_dense:
        n_rows = _n_rows_of_sparse_block(rows.shape[1] * dtype.itemsize)
    for start in range(0, rows.shape[0], n_rows):
        here = slice(start, start + n_rows)
        block = rows[here] if is_dense else rows[here].toarray()
        fill(np.ascontiguousarray(block, dtype=dtype), out[here])
    return out


def _n_rows_of_sparse_block(row_bytes: int) -> int:
    n_tiles = _SPARSE_BLOCK // (row_bytes * TILE_ROWS)
    return min(_BLOCK_ROWS, max(1, n_tiles) * TILE_ROWS)


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
