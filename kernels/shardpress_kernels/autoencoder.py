"""The model: the parameters of a network on the device, float32, and the functions that need no training.

For rows ``r`` as they are stored in the shards, with each column's center and scale::

    x = (r - center) * scale               (n_rows, n_inputs)     scaled, for example to [0, 1]
    h = code(x)                            (n_rows, n_features)   the code
    y = reconstruction(h)                  (n_rows, n_inputs)
    cost = mean((x - y)^2)                 over all entries

`shardpress_kernels.network` defines code and reconstruction, and which layer computes the features that are written.
The scaling is part of the graph, so rows are sent to the device in their own dtype (one byte per value for images), and
are cast and scaled there.

On the CPU, the Ops of `shardpress_kernels.ops` replace most of the graph, see `backend.uses_ops`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shardpress_kernels import backend, graph, ops
from shardpress_kernels.functions import GraphFunctions, Limits, OpFunctions
from shardpress_kernels.hostmath import code_of
from shardpress_kernels.network import Network

theano = backend.load()


class Autoencoder:
    """Parameters on the device, and the functions that need no training.

    Each function is compiled at its first call with rows of a dtype. Any number of threads can call the functions; the
    number that compute at once is limited. `shared` holds the variables of the parameters by name, in the order of the
    network's `shapes`. The shared `n_threads` is the number of threads that all calls of Ops together use; changing it
    compiles nothing.

    Parameters
    ----------
    center, scale : ndarray of shape (n_inputs,), float32 or float64; optional
        The scaling ``x = (r - center) * scale``, computed in the dtype of these arrays. If they are missing, the rows
        must be scaled already.
    limits : tuple of two ndarrays of shape (n_inputs,), optional
        Smallest and largest value of each column that `encode_checked` expects.
    """

    def __init__(
        self,
        network: Network,
        center: np.ndarray | None = None,
        scale: np.ndarray | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.network = network
        self.shared: dict[str, Any] = {}
        for name, shape in network.shapes.items():
            self.shared[name] = backend.shared(np.zeros(shape, dtype=np.float32), name=name)
        self.n_threads = theano.shared(np.int64(backend.n_cores()), name="n_threads")
        self._scaling: tuple[Any, ...] = ()
        self._limits: Limits | None = None
        if center is not None and scale is not None:
            self._scaling = (_share_copy(center, "center"), _share_copy(scale, "scale"))
            if limits is not None:
                low, high = limits
                self._limits = (low.astype(center.dtype), high.astype(center.dtype))
        self._uses_ops = backend.uses_ops()
        parameters = [self.shared[name] for name in network.encoder.shapes]
        self._op_functions = OpFunctions(network, parameters, self._scaling, self._limits, self.n_threads)
        flops_per_row = 2 * network.n_weights
        self._graph_functions = GraphFunctions(self._features_of, self._errors_of, self._limits, flops_per_row)

    # -- parameters --

    def parameters(self) -> dict[str, np.ndarray]:
        """Return copies of the parameters, float32, by name and in the order of the network's `shapes`."""
        return get_values(self.shared)

    def set_parameters(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the parameters to arrays of the names and shapes that `parameters` returns, or raise `ValueError`."""
        set_values(self.shared, values)

    # -- the graph --

    def scaling(self) -> tuple[Any, ...]:
        """Return the shared center and scale; an empty tuple if rows are scaled already."""
        return self._scaling

    def scaled(self, rows: Any) -> Any:
        """Scale symbolic rows of any dtype, and return them as float32."""
        if not self._scaling:
            return rows.astype("float32")
        center, scale = self._scaling
        return ((rows.astype(center.dtype) - center) * scale).astype("float32")

    def _features_of(self, rows: Any) -> Any:
        return graph.features(self.network, self.scaled(rows), self.shared)

    def _errors_of(self, rows: Any, features: Any = None) -> Any:
        return graph.row_errors(self.network, self.scaled(rows), self.shared, features)

    # -- functions --

    def uses_ops(self, dtype: np.dtype) -> bool:
        """Return whether our Ops support rows of this dtype; bool and float16 need Theano's graph."""
        return self._uses_ops and dtype.name in ops.DTYPES

    def ignores_positions(self, dtype: np.dtype) -> bool:
        """Return whether the bits of a row never depend on its position among the rows of a call.

        Each row has its own sums in our Ops, whereas other libraries may use different functions at the end of a tile.
        """
        return self.uses_ops(dtype)

    def _functions(self, dtype: np.dtype) -> OpFunctions | GraphFunctions:
        if self.uses_ops(dtype):
            return self._op_functions
        return self._graph_functions

    def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return the features of rows.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, n_inputs), any real dtype of native byte order, C order
        out : ndarray of shape (n_rows, n_outputs), float32, optional
            Array to fill and return.

        Returns
        -------
        ndarray of shape (n_rows, n_outputs), float32
            The bits of a row's features do not depend on other rows, if calls start at multiples of `TILE_ROWS` rows
            of the same shard, or if `ignores_positions`.
        """
        if out is None:
            out = np.empty((len(rows), self.network.n_outputs), dtype=np.float32)
        self._functions(rows.dtype).encode(rows, out)
        return out

    def code(self, rows: np.ndarray) -> np.ndarray:
        """Return the code of rows (n_rows, n_features), float64, from which the decoder and a head compute."""
        written = self.encode(rows).astype(np.float64)
        return code_of(self.network, written, self.parameters())

    def encode_checked(self, rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Compute features like `encode`, and return which rows are bad.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, n_inputs), any real dtype of native byte order, C order
        out : ndarray of shape (n_rows, n_outputs), float32
            Array to fill with the features.

        Returns
        -------
        ndarray of int64
            Positions, in ascending order, of the rows that contain NaN, Inf or a value outside the range, and of the
            rows whose features are not finite. Very large weights in a linear code or in hidden layers can cause such
            features. Rows with a negative zero may be included.

        Raises
        ------
        ValueError
            If the autoencoder was created without a range.
        """
        if self._limits is None:
            raise ValueError("the Autoencoder has no range to check rows with, expected center, scale and limits")
        inside = np.empty(len(rows), dtype=bool)
        self._functions(rows.dtype).encode(rows, out, inside)
        return np.flatnonzero(~inside)

    def errors(self, rows: np.ndarray, features: np.ndarray | None = None) -> np.ndarray:
        """Return the mean squared error of each row's reconstruction: (n_rows,), float32, scaled units squared.

        Parameters
        ----------
        rows : ndarray of shape (n_rows, n_inputs), any real dtype of native byte order, C order
        features : ndarray of shape (n_rows, n_outputs), float32, optional
            Features from which the rows are reconstructed, for example those of clipped rows. By default, features of
            `rows` are computed.

        Returns
        -------
        ndarray of shape (n_rows,), float32
            The bits do not depend on other rows, as those of `encode`.
        """
        out = np.empty(len(rows), dtype=np.float32)
        self._functions(rows.dtype).errors(rows, out, features)
        return out

    def cost(self, rows: np.ndarray) -> float:
        """Return the mean squared error over all entries of `rows`, which has at least one row."""
        return float(self.errors(rows).mean(dtype=np.float64))  # float32 would lose digits over many rows


def _share_copy(array: np.ndarray, name: str) -> Any:
    return backend.shared(np.array(array), name=name)


def get_values(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return copies of shared variables in the memory of the host."""
    return {name: np.array(variable.get_value()) for name, variable in variables.items()}


def set_values(variables: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> None:
    """Set shared variables to arrays of the same names and shapes, as float32.

    Raise `ValueError` for other names or shapes, before any variable is changed.
    """
    if set(values) != set(variables):
        raise ValueError(f"found arrays {sorted(values)}, expected {sorted(variables)}")
    arrays = {name: np.asarray(values[name], dtype=np.float32, order="C") for name in variables}
    for name, array in arrays.items():
        expected = variables[name].get_value(borrow=True).shape
        if array.shape != expected:
            raise ValueError(f"array {name} has shape {array.shape}, expected {expected}")
    for name, array in arrays.items():
        variables[name].set_value(array)
