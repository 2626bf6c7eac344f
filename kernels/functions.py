"""What is compiled of a model, in two ways with one face: from the CPU's own Ops, or from the graph that Theano makes.

Either may be called from any number of threads. Rows come in any real dtype, and a function is compiled for each.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from kernels import TILE_ROWS, backend, faults, ops, reference
from kernels.network import Network

theano = backend.load()
tensor = theano.tensor

__all__ = ["GraphFunctions", "OpFunctions"]

log = logging.getLogger(__name__)

_LEAST_TILE_ROWS = 32

Limits = tuple[np.ndarray, np.ndarray]
Expression = Callable[[Any], Any]


class OpFunctions:
    """By the Ops of `kernels.ops`: on the CPU, as many at a time as it has cores.

    Parameters
    ----------
    network : Network
    parameters : sequence of shared variables
        In the order of the network's shapes.
    scaling : sequence of shared vectors
        Minimum and scale, or nothing.
    limits : tuple of two ndarrays of shape (n_inputs,), or None
        The range that rows are held against, where that is asked for; the minimum is the scaling's.
    n_threads : shared int64 scalar
        How many threads of ours all calls together may take.
    """

    def __init__(
        self,
        network: Network,
        parameters: Sequence[Any],
        scaling: Sequence[Any],
        limits: Limits | None,
        n_threads: Any,
    ) -> None:
        self._network = network
        self._parameters = parameters
        self._scaling = scaling
        self._maximum = None if limits is None else backend.shared(limits[1], name="maximum")
        self._n_threads = n_threads  # of all calls
        self._share = tensor.lscalar("n_threads")  # of one call
        self._idle: dict[tuple[Any, str], list[Any]] = defaultdict(list)
        self._n_inside = 0
        self._lock = threading.Lock()  # of the two above, which all threads change
        self._free = threading.Semaphore(backend.n_cores())  # more would only get in each other's way

    def encode(self, rows: np.ndarray, out: np.ndarray, inside: np.ndarray | None = None) -> None:
        """Fill `out` (n_rows, n_features) with features, `inside` (n_rows,) with whether rows lie within the limits."""
        if inside is None:
            self._fill(ops.Encode(self._network), [*self._parameters, self._share], rows, out)
        else:
            given = [*self._parameters, self._share, self._maximum]
            self._fill(ops.Encode(self._network, checked=True), given, rows, out, inside)

    def errors(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (n_rows,), float32, with each row's mean squared error."""
        self._fill(ops.Errors(self._network), [*self._parameters, self._share], rows, out)

    def _fill(self, op: Any, given: Sequence[Any], rows: np.ndarray, *targets: np.ndarray) -> None:
        """Fill arrays by an Op, in their place if their memory allows."""
        places = [target if target.flags.carray else np.empty(target.shape, target.dtype) for target in targets]
        with self._borrowed(op, given, rows, targets) as (function, n_threads):
            results = function(np.require(rows, requirements=["C", "A"]), n_threads, *places)
            for target, result in zip(targets, results, strict=True):
                if result is not target:
                    target[...] = result  # now: without optimisation in place it lies in the function's own memory

    @contextmanager
    def _borrowed(
        self, op: Any, given: Sequence[Any], rows: np.ndarray, targets: Sequence[np.ndarray]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """A compiled function for one thread alone, since none is safe to share, and its share of the cores."""
        with self._free:
            with self._lock:
                idle = self._idle[op, rows.dtype.name]
                function = idle.pop() if idle else self._compile(op, given, rows, targets)
                self._n_inside += 1
                n_threads = max(1, int(self._n_threads.get_value()) // self._n_inside)
            try:
                yield function, np.array(n_threads)
            finally:
                with self._lock:
                    self._n_inside -= 1
                    idle.append(function)

    def _compile(self, op: Any, given: Sequence[Any], rows: np.ndarray, targets: Sequence[np.ndarray]) -> Any:
        symbol = backend.matrix(rows.dtype, "rows")
        places = [tensor.TensorType(target.dtype.name, (False,) * target.ndim)() for target in targets]
        results = op(symbol, *given, *places, *self._scaling, return_list=True)
        # Borrowed and mutable, or Theano would copy what is there to be filled.
        inputs = [symbol, self._share, *(theano.In(place, mutable=True) for place in places)]
        return backend.compile_function(inputs, [theano.Out(result, borrow=True) for result in results])


class GraphFunctions:
    """By what Theano makes of the model's graph: on any device, tile by tile, one call at a time.

    Parameters
    ----------
    features, errors : callable
        What the symbolic features, and errors, of symbolic rows are.
    limits : tuple of two ndarrays of shape (n_inputs,), or None
        As of `OpFunctions`.
    flops_per_row : int
        Of the product in either.
    """

    def __init__(self, features: Expression, errors: Expression, limits: Limits | None, flops_per_row: int) -> None:
        self._features = features
        self._errors = errors
        self._limits = limits
        self._flops_per_row = flops_per_row
        self._tile_rows = TILE_ROWS
        self._functions: dict[tuple[Expression, str], Any] = {}
        self._alone = threading.Lock()  # what Theano compiles keeps its inputs and results in one place

    def encode(self, rows: np.ndarray, out: np.ndarray, inside: np.ndarray | None = None) -> None:
        """Fill `out` (n_rows, n_features) with features, `inside` (n_rows,) with whether rows lie within the limits."""
        self._fill(self._features, rows, out)
        if inside is not None and self._limits is not None:
            # A product whose sums are split can end in Inf - Inf; those of `kernels.ops` are one chain or exact.
            inside[:] = reference.lie_in(rows, *self._limits) & np.isfinite(out).all(axis=1)

    def errors(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (n_rows,), float32, with each row's mean squared error."""
        self._fill(self._errors, rows, out)

    def _fill(self, expression: Expression, rows: np.ndarray, out: np.ndarray) -> None:
        with self._alone:
            function = self._function(expression, rows.dtype)
            backend.use_cores_for(TILE_ROWS * self._flops_per_row)
            start = 0
            while start < len(rows):
                try:
                    start += self._fill_tile(function, rows[start:], out[start:])
                except Exception as error:  # of whatever class: see is_out_of_memory
                    if not faults.is_out_of_memory(error):
                        raise
                    self._halve_tiles(rows, error)

    def _fill_tile(self, function: Any, rows: np.ndarray, out: np.ndarray) -> int:
        """The first tile, and how many rows are in it; the last one is padded, so that all have one height."""
        tile = rows[: self._tile_rows]
        n_rows = len(tile)
        if n_rows < self._tile_rows:
            tile = np.concatenate([tile, np.zeros((self._tile_rows - n_rows, rows.shape[1]), dtype=rows.dtype)])
        with backend.device_call():
            out[:n_rows] = np.asarray(function(tile))[:n_rows]
        return n_rows

    def _halve_tiles(self, rows: np.ndarray, error: Exception) -> None:
        """Give the device less at a time, from now on. Features stay the same but for the rounding of products."""
        if self._tile_rows // 2 < _LEAST_TILE_ROWS:
            raise faults.OutOfDeviceMemory(
                f"the device's memory does not hold {self._tile_rows} rows of {rows.shape[1]} columns: {error}"
            ) from error
        self._tile_rows //= 2
        log.warning("the device is out of memory: from now on %d rows at a time", self._tile_rows)

    def _function(self, expression: Expression, dtype: np.dtype) -> Any:
        key = (expression, dtype.name)
        if key not in self._functions:
            rows = backend.matrix(dtype, "rows")
            self._functions[key] = backend.compile_function([rows], theano.Out(expression(rows), borrow=True))
        return self._functions[key]
