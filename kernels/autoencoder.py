"""The model: a network's parameters on the device, in float32, and the functions that need no training.

For rows ``r`` as they lie in the shards, with each column's minimum and scale::

    x = (r - minimum) * scale              (n_rows, n_inputs)     scaled to [0, 1]
    h = code(x)                            (n_rows, n_features)   the features
    y = reconstruction(h)                  (n_rows, n_inputs)
    cost = mean((x - y)^2)                 over every entry

`kernels.network` says what code and reconstruction are. The scaling is part of the graph, so rows cross to the device
in their own dtype (a byte a value for images) and are cast and scaled there, next to the product.

On the CPU the Ops of `kernels.ops` stand in for most of the graph, see `backend.uses_ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernels import backend, graph, ops
from kernels.functions import GraphFunctions, OpFunctions
from kernels.network import Network

theano = backend.load()

__all__ = ["Autoencoder", "get_values", "set_values"]


class Autoencoder:
    """Parameters on the device, and the functions that need no training.

    Each function is compiled at its first call, for each dtype of rows. Any number of threads may call them: as many
    compute at a time as gain by it, and the others wait.

    Parameters
    ----------
    network : Network
        What it looks like.
    minimum, scale : ndarray of shape (n_inputs,), float32 or float64; optional
        The scaling ``x = (r - minimum) * scale``. Their dtype is the one it is computed in, whatever the rows' own;
        rows are taken as scaled already when they are left out.
    maximum : ndarray of shape (n_inputs,), of their dtype; optional
        With the minimum, the range that `encode_checked` expects values in.
    """

    def __init__(
        self,
        network: Network,
        minimum: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        maximum: np.ndarray | None = None,
    ) -> None:
        self.network = network
        zeros = {name: np.zeros(shape, dtype=np.float32) for name, shape in network.shapes.items()}
        self.shared = {name: backend.shared(array, name=name) for name, array in zeros.items()}
        self._scaling: tuple[Any, ...] = ()
        self._limits: tuple[np.ndarray, np.ndarray] | None = None
        if minimum is not None and scale is not None:
            given = {"minimum": minimum, "scale": scale}
            self._scaling = tuple(backend.shared(np.array(array), name=name) for name, array in given.items())
            self._limits = None if maximum is None else (minimum, maximum.astype(minimum.dtype))
        # A variable and not a number, so that a change compiles nothing.
        self.n_threads = theano.shared(np.int64(backend.n_cores()), name="n_threads")
        self._fuses = backend.uses_ops()
        self._by_ops = OpFunctions(network, list(self.shared.values()), self._scaling, self._limits, self.n_threads)
        self._by_graph = GraphFunctions(
            lambda rows: graph.code(network, self.scaled(rows), self.shared),
            lambda rows: graph.row_errors(network, self.scaled(rows), self.shared),
            self._limits,
            2 * network.n_weights,
        )

    # -- parameters --

    def parameters(self) -> dict[str, np.ndarray]:
        """Copies of the parameters, float32, by name and in the order of the network's `shapes`."""
        return get_values(self.shared)

    def set_parameters(self, values: Mapping[str, np.ndarray]) -> None:
        """Put arrays of the shapes that `parameters` returns on the device.

        Raises
        ------
        ValueError
            When a name is missing or unknown, or a shape differs; it names the array.
        """
        set_values(self.shared, values)

    # -- the graph --

    def scaling(self) -> tuple[Any, ...]:
        """Shared minimum and scale, or nothing."""
        return self._scaling

    def scaled(self, rows: Any) -> Any:
        """Scaled rows, float32, of symbolic rows of any dtype."""
        if not self._scaling:
            return rows.astype("float32")
        minimum, scale = self._scaling
        return ((rows.astype(minimum.dtype) - minimum) * scale).astype("float32")

    # -- functions --

    def uses_ops(self, dtype: np.dtype) -> bool:
        """Whether rows of this dtype go through the Ops of `kernels.ops`."""
        return self._fuses and dtype.name in ops.DTYPES  # bool and float16 are left to Theano

    def _functions(self, dtype: np.dtype) -> OpFunctions | GraphFunctions:
        return self._by_ops if self.uses_ops(dtype) else self._by_graph

    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Features of rows.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, n_inputs), any real dtype of native byte order, C order
        out : ndarray of shape (n_rows, n_features), float32, optional
            Where they go.

        Returns
        -------
        ndarray of shape (n_rows, n_features), float32
            The same bits for a row whatever the other rows are, as long as calls start at multiples of `TILE_ROWS`
            rows of the same shard.
        """
        out = np.empty((len(rows), self.network.n_features), dtype=np.float32) if out is None else out
        self._functions(rows.dtype).encode(rows, out)
        return out

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Features of rows, as by `encode`, and which rows are not as expected.

        Returns
        -------
        ndarray of int64
            Positions of the rows that hold NaN, Inf, or a value outside of the range that was given, or whose features
            are not finite, as those of a linear code or of hidden layers by enormous weights; a row with a negative
            zero may be among them.

        Raises
        ------
        ValueError
            When no range was given.
        """
        if self._limits is None:
            raise ValueError("there is no range to check rows against: give the Autoencoder minimum, scale and maximum")
        inside = np.empty(len(rows), dtype=bool)
        self._functions(rows.dtype).encode(rows, out, inside)
        return np.flatnonzero(~inside)

    def errors(self, rows: np.ndarray) -> np.ndarray:
        """Mean squared error of each row's reconstruction: shape (n_rows,), float32, in squared scaled units."""
        out = np.empty(len(rows), dtype=np.float32)
        self._functions(rows.dtype).errors(rows, out)
        return out

    def cost(self, rows: np.ndarray) -> float:
        """Mean squared error over every entry of `rows`, which has at least one row."""
        return float(self.errors(rows).mean(dtype=np.float64))  # float32 would lose digits over many rows


def get_values(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Host copies of shared variables."""
    return {name: np.array(variable.get_value()) for name, variable in variables.items()}


def set_values(variables: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Assign arrays to shared variables of the same names and shapes, as float32; `ValueError` for any others."""
    if set(values) != set(variables):
        raise ValueError(f"found arrays {sorted(values)}, expected {sorted(variables)}")
    arrays = {name: np.asarray(values[name], dtype=np.float32, order="C") for name in variables}
    for name, variable in variables.items():  # all of them first: what is refused has changed nothing
        expected = variable.get_value(borrow=True).shape
        if arrays[name].shape != expected:
            raise ValueError(f"array {name} has shape {arrays[name].shape}, expected {expected}")
    for name, variable in variables.items():
        variable.set_value(arrays[name])
