"""A fitted model applied to arrays: on the device where there is Theano, in NumPy where there is none."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.device import TILE_ROWS, autoencoder_of, start_device, theanos_errors
from pipeline.errors import WriteFailed, shown
from pipeline.model import Model
from pipeline.shards.shard import read_dtype

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["by_blocks", "computed", "decoded", "encoded", "errors", "has_theano", "is_lazy", "keep"]


def is_lazy(rows: object) -> bool:
    """Whether rows are an array of Dask."""
    return type(rows).__module__.startswith("dask.array")


def computed(rows: Any, most_bytes: float = np.inf) -> Any:
    """What an array of Dask computes, each block once; beyond so many bytes in a file, which is mapped; others as is.

    Parameters
    ----------
    rows : array of shape (n_rows, n_inputs)

    Raises
    ------
    ValueError
        For an array of an unknown number of rows.
    WriteFailed
        When there is no room for the file.
    """
    if not is_lazy(rows):
        return rows
    if np.isnan(rows.shape[0]):
        raise ValueError("a Dask array of an unknown number of rows: X.compute_chunk_sizes() finds it out")
    return rows.compute() if rows.nbytes <= most_bytes else _spooled(rows)


def _spooled(rows: Any) -> np.ndarray:
    """The rows in a temporary file, which goes with the array."""
    with tempfile.TemporaryFile() as file:
        try:
            os.posix_fallocate(file.fileno(), 0, rows.nbytes)  # or a full disk would end the process
        except OSError as error:
            raise WriteFailed(
                f"{shown(tempfile.gettempdir())}: no room for {rows.nbytes} bytes of a Dask array that is larger than "
                f"half the memory budget: {error.strerror}. Set TMPDIR to another place, or write shards of it."
            ) from error
        found: np.ndarray = np.memmap(file, rows.dtype, "r+", shape=rows.shape)
        rows.store(found, lock=False)  # blocks do not overlap
    return found


def by_blocks(function: Callable[[np.ndarray], np.ndarray], rows: Any, width: int | None, dtype: type) -> Any:
    """What a function makes of each block of whole rows: of shape (n_rows, width), or (n_rows,) where that is None."""
    whole = rows.rechunk({1: -1})
    shape = {"drop_axis": 1} if width is None else {"chunks": (whole.chunks[0], (width,))}
    kind: np.ndarray = np.empty((0,) if width is None else (0, width), dtype)
    return whole.map_blocks(function, **shape, dtype=kind.dtype, meta=kind)


_BLOCK_ROWS = 8 * TILE_ROWS  # whole tiles, as a run encodes them
_MOST_KEPT = 4  # models on the device: each is compiled once, however often it is applied

_kept: OrderedDict[tuple[str, str], Autoencoder] = OrderedDict()
_keeping = threading.Lock()


def encoded(model: Model, rows: Any) -> Any:
    """Features of rows.

    Parameters
    ----------
    rows : array of shape (n_rows, n_inputs), any real dtype
        Unscaled; of Dask, it is encoded block by block when the result is computed.

    Returns
    -------
    array of shape (n_rows, n_features), float32
        On the device the bits that a run has for them.
    """
    if is_lazy(rows):
        return by_blocks(partial(_of_block, encoded, model), rows, model.n_features, np.float32)
    found = np.empty((len(rows), model.n_features), dtype=np.float32)
    if not has_theano():
        return _by_blocks(partial(_plain_features, model), rows, found)
    with theanos_errors():
        encode = _on_device(model, rows.dtype).encode_checked  # the one of a run: nothing more has to be compiled
        return _by_blocks(lambda block, out: encode(model.scaler.cleaned(block), out), rows, found)


def errors(model: Model, rows: Any) -> Any:
    """The mean squared error of each row's reconstruction: (n_rows,), float32, in scaled units; lazy like `encoded`."""
    if is_lazy(rows):
        return by_blocks(partial(_of_block, errors, model), rows, None, np.float32)
    found = np.empty(len(rows), dtype=np.float32)
    if not has_theano():
        return _by_blocks(partial(_plain_errors, model), rows, found)
    with theanos_errors():
        compute = _on_device(model, rows.dtype).errors
        return _by_blocks(lambda block, out: np.copyto(out, compute(model.scaler.cleaned(block))), rows, found)


def decoded(model: Model, features: Any) -> Any:
    """Unscaled rows (n_rows, n_inputs), float64, that features (n_rows, n_features) stand for; lazy like `encoded`."""
    if is_lazy(features):
        return by_blocks(partial(decoded, model), features, model.n_inputs, np.float64)
    found = np.empty((len(features), model.n_inputs))
    low, width = model.scaler.minimum, model.scaler.maximum - model.scaler.minimum
    return _by_blocks(lambda block, out: np.copyto(out, model.decode(block) * width + low), features, found)


def keep(model: Model, dtype: np.dtype, autoencoder: Autoencoder) -> None:
    """Keep what has trained a model on rows of `dtype`, and is compiled."""
    with _keeping:
        _kept[model.fingerprint, dtype.name] = autoencoder
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)


def _on_device(model: Model, stored: np.dtype) -> Autoencoder:
    """What applies a model to rows of a dtype."""
    dtype = np.dtype(read_dtype(stored))
    with _keeping:
        if (found := _kept.get((model.fingerprint, dtype.name))) is not None:
            _kept.move_to_end((model.fingerprint, dtype.name))
            return found
    start_device()
    made = autoencoder_of(model.scaler, model.network, dtype)
    made.set_parameters(model.parameters)
    keep(model, dtype, made)
    return made


@cache
def has_theano() -> bool:
    """Whether there is a Theano: not on Pythons after 3.11."""
    return find_spec("theano") is not None


def _by_blocks(fill: Callable[[np.ndarray, np.ndarray], object], rows: np.ndarray, out: np.ndarray) -> np.ndarray:
    """`out`, filled a few thousand rows at a time: what is made on the way takes little memory."""
    dtype = read_dtype(rows.dtype)
    for start in range(0, len(rows), _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        fill(np.ascontiguousarray(rows[here], dtype=dtype), out[here])
    return out


def _plain_features(model: Model, rows: np.ndarray, out: np.ndarray) -> None:
    out[...] = model.encode(rows)


def _plain_errors(model: Model, rows: np.ndarray, out: np.ndarray) -> None:
    x = model.scaler.transform(rows)
    out[...] = np.square(x - model.decode(model.encode(rows))).mean(axis=1)


def _of_block(apply: Callable[[Model, np.ndarray], np.ndarray], model: Model, rows: np.ndarray) -> np.ndarray:
    # What is in memory is looked at by whoever has it; what is lazy, only here.
    if model.scaler.fill is None and rows.dtype.kind == "f" and not np.isfinite(rows).all():
        first = int(np.argmax(~np.isfinite(rows).all(axis=1)))
        raise ValueError(f"row {first} of a block holds NaN or Inf, expected finite numbers. Leave such rows out.")
    return apply(model, rows)
