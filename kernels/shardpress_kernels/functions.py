"""Compiled functions of a model, in two implementations with one interface: the CPU's Ops, or Theano's graph.

Any number of threads can call them. Rows can have any real dtype; a separate function is compiled for each dtype.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from shardpress_kernels import TILE_ROWS, backend, faults, ops
from shardpress_kernels.hostmath import are_within
from shardpress_kernels.network import Network

theano = backend.load()
tensor = theano.tensor

log = logging.getLogger(__name__)

_MIN_TILE_ROWS = 32
"""Smallest number of rows of a tile. A device with too little memory for it cannot be used."""

Limits = tuple[np.ndarray, np.ndarray]
"""Smallest and largest expected value of each column, both of shape (n_inputs,)."""
_Expression = Callable[..., Any]
"""Function that returns a symbolic result of symbolic rows and, optionally, features."""


class OpFunctions:
    """Functions made of the Ops of `shardpress_kernels.ops`, for the CPU. At most one call per core runs at a time.

    The parameters are those of the network's encoder, in the order of its shapes. The scaling is center and scale, or
    empty if rows are scaled already. The limits have the dtype of the scaling.
    """

    def __init__(
        self,
        network: Network,
        parameters: Sequence[Any],
        scaling: Sequence[Any],
        limits: Limits | None,
        n_threads: Any,
    ) -> None:
        self._encoder = network.encoder
        self._output = network.output
        self._parameters = parameters
        self._scaling = scaling
        dtype = scaling[0].dtype if scaling else "float32"
        low, high = limits or (np.empty(0, dtype), np.empty(0, dtype))
        self._limits = [backend.shared(low, name="low"), backend.shared(high, name="high")]
        self._n_threads = n_threads
        self._share = tensor.lscalar("n_threads")  # number of threads of one call
        self._idle: dict[tuple[Any, str], list[Any]] = defaultdict(list)
        self._n_running = 0
        self._lock = threading.Lock()  # protects `_idle` and `_n_running`
        self._call_slots = threading.Semaphore(backend.n_cores())  # more concurrent calls would not be faster

    def encode(self, rows: np.ndarray, out: np.ndarray, inside: np.ndarray | None = None) -> None:
        """Fill `out` (n_rows, n_outputs), float32, with the features of rows.

        If `inside` (n_rows,), bool, is given, set it to True for each row that is within the limits and has finite
        features.
        """
        if inside is None:
            inside = np.empty(0, bool)
        inputs = [*self._parameters[: len(self._output.shapes)], self._share, *self._limits]
        self._fill(ops.Encode(self._output), inputs, [rows], [out, inside])

    def errors(self, rows: np.ndarray, out: np.ndarray, features: np.ndarray | None = None) -> None:
        """Fill `out` (n_rows,), float32, with the mean squared error of each row's reconstruction.

        By default, rows are reconstructed from their own features, otherwise from `features` (n_rows, n_outputs).
        """
        if features is None:
            features = np.empty((0, 0), np.float32)
        self._fill(ops.Errors(self._encoder), [*self._parameters, self._share], [rows, features], [out])

    def _fill(
        self, op: Any, inputs: Sequence[Any], arrays: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> None:
        """Fill arrays with the results of an Op: in place if their memory layout allows it.

        The first inputs of the Op are the `arrays`: the rows, and others with one row for each of them.
        """
        places = [target if target.flags.carray else np.empty(target.shape, target.dtype) for target in targets]
        given = [np.require(array, requirements=["C", "A"]) for array in arrays]
        with self._borrowed(op, inputs, given, targets) as (function, n_threads):
            results = function(*given, n_threads, *places)
            # Copy while the function is borrowed: if it does not work in place, it owns the memory of its results.
            for target, result in zip(targets, results, strict=True):
                if result is not target:
                    target[...] = result

    @contextmanager
    def _borrowed(
        self, op: Any, inputs: Sequence[Any], arrays: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield a compiled function and a number of threads for one call. Concurrent calls cannot share a function."""
        with self._call_slots:
            with self._lock:
                idle = self._idle[op, arrays[0].dtype.name]
                function = idle.pop() if idle else self._compile(op, inputs, arrays, targets)
                self._n_running += 1
                n_threads = max(1, int(self._n_threads.get_value()) // self._n_running)
            try:
                yield function, np.array(n_threads)
            finally:
                with self._lock:
                    self._n_running -= 1
                    idle.append(function)

    def _compile(
        self, op: Any, inputs: Sequence[Any], arrays: Sequence[np.ndarray], targets: Sequence[np.ndarray]
    ) -> Any:
        given = _matrices(arrays)
        places = [tensor.TensorType(target.dtype.name, (False,) * target.ndim)() for target in targets]
        results = op(*given, *inputs, *places, *self._scaling, return_list=True)
        # Without `mutable` and `borrow`, Theano would copy the arrays instead of filling them.
        mutable = [theano.In(place, mutable=True) for place in places]
        outputs = [theano.Out(result, borrow=True) for result in results]
        return backend.compile_function([*given, self._share, *mutable], outputs)


def _matrices(arrays: Sequence[np.ndarray]) -> list[Any]:
    """Return symbolic matrices for rows and, if they are given, features."""
    return [backend.matrix(array.dtype, name) for array, name in zip(arrays, ("rows", "features"), strict=False)]


class GraphFunctions:
    """Functions made of Theano's graph of the model, for any device. They take rows tile by tile, one call at a time.

    `features` and `errors` return symbolic results of symbolic rows; the latter can get symbolic features as well.
    """

    def __init__(self, features: _Expression, errors: _Expression, limits: Limits | None, flops_per_row: int) -> None:
        self._features = features
        self._errors = errors
        self._limits = limits
        self._flops_per_row = flops_per_row
        self._tile_rows = TILE_ROWS
        self._functions: dict[tuple[_Expression, str, int], Any] = {}
        self._lock = threading.Lock()  # a compiled function stores its inputs and results, so calls cannot overlap

    def encode(self, rows: np.ndarray, out: np.ndarray, inside: np.ndarray | None = None) -> None:
        """Compute features, and check rows if `inside` is given: see `OpFunctions.encode`."""
        self._fill(self._features, [rows], out)
        if inside is not None and self._limits is not None:
            low, high = self._limits
            # A device splits sums, which can then end in Inf - Inf. The sums of `shardpress_kernels.ops` are sequential
            # or exact.
            inside[:] = are_within(rows, low, high) & np.isfinite(out).all(axis=1)

    def errors(self, rows: np.ndarray, out: np.ndarray, features: np.ndarray | None = None) -> None:
        """Compute the errors of reconstructions: see `OpFunctions.errors`."""
        self._fill(self._errors, [rows] if features is None else [rows, features], out)

    def _fill(self, expression: _Expression, arrays: Sequence[np.ndarray], out: np.ndarray) -> None:
        rows = arrays[0]
        with self._lock:
            function = self._function(expression, arrays)
            backend.use_cores_for(TILE_ROWS * self._flops_per_row)
            start = 0
            while start < len(rows):
                try:
                    start += self._fill_tile(function, [array[start:] for array in arrays], out[start:])
                except Exception as error:  # Theano and pygpu have no class for a lack of memory: see `faults`
                    if not faults.is_out_of_memory(error):
                        raise
                    self._halve_tiles(rows, error)

    def _fill_tile(self, function: Any, arrays: Sequence[np.ndarray], out: np.ndarray) -> int:
        """Compute the first tile of rows; return its number of rows."""
        tiles = [self._tile(array) for array in arrays]
        n_rows = min(len(out), self._tile_rows)
        with backend.device_call():
            out[:n_rows] = np.asarray(function(*tiles))[:n_rows]
        return n_rows

    def _tile(self, rows: np.ndarray) -> np.ndarray:
        """Return the first tile of `rows`. A short tile is padded to the usual height."""
        tile = rows[: self._tile_rows]
        n_missing = self._tile_rows - len(tile)
        if n_missing > 0:
            padding = np.zeros((n_missing, rows.shape[1]), dtype=rows.dtype)
            tile = np.concatenate([tile, padding])
        return tile

    def _halve_tiles(self, rows: np.ndarray, error: Exception) -> None:
        """Halve the height of tiles for all later calls. Features change only by the rounding of products."""
        if self._tile_rows // 2 < _MIN_TILE_ROWS:
            raise faults.OutOfDeviceMemory(
                f"the device has too little memory for {self._tile_rows} rows of {rows.shape[1]} columns: {error}"
            ) from error
        self._tile_rows //= 2
        log.warning("the device is out of memory: continuing with %d rows at a time", self._tile_rows)

    def _function(self, expression: _Expression, arrays: Sequence[np.ndarray]) -> Any:
        key = (expression, arrays[0].dtype.name, len(arrays))
        if key not in self._functions:
            matrices = _matrices(arrays)
            output = theano.Out(expression(*matrices), borrow=True)
            self._functions[key] = backend.compile_function(matrices, output)
        return self._functions[key]
