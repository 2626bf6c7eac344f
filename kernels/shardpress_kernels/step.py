"""One step of minibatch training, with an Op on the CPU or with Theano's graph of the gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from shardpress_kernels import backend, graph, ops, upload
from shardpress_kernels.autoencoder import Autoencoder, get_values, set_values
from shardpress_kernels.network import Network, TargetLoss
from shardpress_kernels.updates import Updates, rate_of, states_of, updates_of

theano = backend.load()
tensor = theano.tensor
vm = theano.gof.vm

_PRODUCTS_PER_LAYER = 3
"""Number of matrix products per layer in a step, including the products for the gradients."""


class TrainingStep:
    """One step of minibatch training of an `Autoencoder`, compiled for rows of one dtype.

    Parameters
    ----------
    rule : str
        Name of an update rule in `shardpress_kernels.rules.RULES`.
    resident : ndarray of shape (n_rows, n_inputs), `dtype`, or `upload.Pieces` of it, optional
        All rows, to be kept on the device; pieces are allowed for a device with its own memory. If `resident` is given,
        minibatches are row numbers (int64), otherwise rows.
    corruption : float
        Fraction of the entries to hide. Hidden entries are 0 in the input of the network, but not in the rows that it
        has to reconstruct. The noise of each step selects these entries, see `shardpress_kernels.graph.masked`.
    loss : TargetLoss, optional
        Loss of the targets. It is required if the network has a head.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        rule: str,
        dtype: np.dtype,
        resident: np.ndarray | upload.Pieces | None = None,
        corruption: float = 0.0,
        loss: TargetLoss | None = None,
    ) -> None:
        network = autoencoder.network
        n_inputs = network.n_inputs
        kinds = _kinds_of_arrays(network, dtype, resident is not None, corruption > 0)
        self.row_bytes = sum(kind.row_bytes for kind in kinds)
        self._names = [kind.name for kind in kinds]
        self._flops_per_row = 2 * autoencoder.network.n_weights  # for the products of all layers
        self._uses_ops = autoencoder.uses_ops(dtype)
        self._feed: _Feed = _DeviceFeed(kinds) if backend.is_active() else _HostFeed(kinds)
        all_rows = _place_resident(resident, n_inputs, dtype)
        minibatch = _Minibatch.of(self._feed, self._names, all_rows, corruption, _target_scalars(network, loss))
        build = _build_with_op if self._uses_ops else _build_with_graph
        self._cost, self._updates = build(autoencoder, rule, minibatch)
        self._state = _state_among(self._updates, autoencoder)
        self._updates.update(self._feed.updates)
        self._functions: dict[bool, Any] = {}  # with (True) and without the computation of the cost

    def n_at_once(self, batch_size: int) -> int:
        """Return how many minibatches of `batch_size` rows to pass to `begin` at once: 1 on the CPU."""
        step_flops_per_row = _PRODUCTS_PER_LAYER * self._flops_per_row
        n_fitting = upload.n_minibatches_at_once(batch_size, self.row_bytes, step_flops_per_row)
        return min(self._feed.max_minibatches, n_fitting)

    def begin(
        self,
        minibatches: np.ndarray,
        noise: np.ndarray | None,
        batch_size: int,
        targets: np.ndarray | None = None,
        kept: np.ndarray | None = None,
    ) -> None:
        """Set the minibatches of the next steps.

        A device with its own memory receives all minibatches at once, while it may still work on earlier steps.

        Parameters
        ----------
        minibatches : ndarray of shape (n, n_inputs) and the rows' dtype, or of shape (n,), int64; C order
            Rows of consecutive minibatches, or row numbers if the rows are resident. The last minibatch can be smaller.
            The CPU uses the array in place.
        noise : ndarray of shape (n, n_inputs), uint8, C order, or None
            Random bytes that select the entries to hide. They are required with corruption, and refused without it.
        batch_size : int
            Number of rows of a minibatch.
        targets : ndarray of shape (n,), float32, C order, or None
            Targets of the rows, see `shardpress_kernels.network`. They are required with a head, and refused without
            it.
        kept : ndarray of shape (n,), float32, C order, or None
            Number of the first features of each row that the decoder gets. They are required for a nested network, and
            refused for others.

        Raises
        ------
        ValueError
            If an array is missing, or is given without corruption, a head or nesting.
        """
        named = {"minibatch": minibatches, "noise": noise, "kept": kept, "targets": targets}
        arrays = {name: array for name, array in named.items() if array is not None}
        if list(arrays) != self._names:
            raise ValueError(f"found the arrays {', '.join(arrays)}, expected {', '.join(self._names)}")
        if not self._uses_ops:  # Ops choose their number of threads themselves
            backend.use_cores_for(batch_size * self._flops_per_row)
        self._feed.begin(list(arrays.values()), batch_size)

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None:
        """Take one step for each learning rate, on the next minibatches that `begin` has set.

        If `with_cost`, which takes a quarter longer, return the cost of the last minibatch before its step.
        """
        with backend.device_call():
            outputs = self._feed.run(self._function(with_cost), learning_rates)
            return float(np.asarray(outputs[0])) if with_cost else None

    def compile(self) -> None:
        """Compile the functions now, so that the first steps do not have to."""
        self._function(False)
        self._function(True)

    def state(self) -> dict[str, np.ndarray]:
        """Return copies of the update rule's arrays by name; a checkpoint needs them in addition to the parameters."""
        return get_values(self._state)

    def set_state(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the arrays that `state` returned; raise `ValueError` for other names or shapes."""
        set_values(self._state, values)

    def _function(self, with_cost: bool) -> Any:
        if with_cost not in self._functions:
            outputs = [self._cost] if with_cost else []
            self._functions[with_cost] = backend.compile_function(self._feed.inputs, outputs, updates=self._updates)
        return self._functions[with_cost]


def _target_scalars(network: Network, loss: TargetLoss | None) -> list[Any]:
    """Return the factor and the scale of `graph.TargetVariables`: as variables, since no value needs other code."""
    if network.head is None or loss is None:
        return []
    factor = np.float32(loss.weight * loss.scale * network.n_inputs / 2)
    return [theano.shared(factor, name="target_factor"), theano.shared(np.float32(loss.scale), name="target_scale")]


# ---- minibatches


class _ArrayKind(NamedTuple):
    """Kind of an array of a minibatch. Its shape is the number of rows, followed by `row_shape`."""

    name: str
    dtype: np.dtype
    row_shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.row_shape)


def _kinds_of_arrays(network: Network, dtype: np.dtype, is_resident: bool, has_noise: bool) -> list[_ArrayKind]:
    """Return the kinds of the arrays of a minibatch: rows or their numbers, noise, kept features, and targets."""
    n_inputs = network.n_inputs
    if is_resident:
        kinds = [_ArrayKind("minibatch", np.dtype(np.int64), ())]
    else:
        kinds = [_ArrayKind("minibatch", dtype, (n_inputs,))]
    if has_noise:
        kinds.append(_ArrayKind("noise", np.dtype(np.uint8), (n_inputs,)))
    if network.nested:
        kinds.append(_ArrayKind("kept", np.dtype(np.float32), ()))
    if network.head is not None:
        kinds.append(_ArrayKind("targets", np.dtype(np.float32), ()))
    return kinds


def _place_resident(rows: np.ndarray | upload.Pieces | None, n_inputs: int, dtype: np.dtype) -> Any:
    """Put all rows on the device; return their variable, or None if the rows are not resident."""
    if rows is None:
        return None
    if isinstance(rows, np.ndarray):
        return backend.shared(rows, name="resident")
    return upload.upload_rows(rows, n_inputs, dtype, name="resident")


class _HostFeed:
    """Minibatches in host memory; a function is called for each minibatch, and receives it as input."""

    def __init__(self, kinds: Sequence[_ArrayKind]) -> None:
        self.max_minibatches = 1  # so that a minibatch is still in the caches when it is used
        self.symbols = [_symbol_of(kind) for kind in kinds]
        self.inputs = self.symbols
        # This is a shared variable instead of an input, so that each call passes only the minibatch.
        self.learning_rate = theano.shared(np.float32(0), name="learning_rate")
        self.n_rows = None
        self.updates = Updates()
        self._arrays: Sequence[np.ndarray] = []
        self._batch_size = 0
        self._start = 0

    def begin(self, arrays: Sequence[np.ndarray], batch_size: int) -> None:
        """Set the arrays of the next minibatches."""
        self._arrays = arrays
        self._batch_size = batch_size
        self._start = 0

    def run(self, function: Any, learning_rates: Sequence[float]) -> Any:
        """Take one step for each learning rate; return the outputs of the last one."""
        outputs = None
        for rate in learning_rates:
            self.learning_rate.set_value(np.float32(rate))
            start = self._start
            stop = start + self._batch_size
            outputs = function(*[array[start:stop] for array in self._arrays])
            self._start = stop
        return outputs


def _symbol_of(kind: _ArrayKind) -> Any:
    n_dimensions = 1 + len(kind.row_shape)
    return tensor.TensorType(kind.dtype.name, (False,) * n_dimensions)(kind.name)


class _DeviceFeed:
    """Minibatches in the memory of a device. Each call of a function without inputs takes the next one.

    One call from the host can therefore take several steps.
    """

    def __init__(self, kinds: Sequence[_ArrayKind]) -> None:
        self.max_minibatches = upload.MAX_MINIBATCHES
        self._arrays = [_share_empty(kind) for kind in kinds]
        self._array_buffers = [upload.TwoBuffers() for _ in kinds]
        # One row per step: the learning rate, and the number of rows of the minibatch.
        self._steps = _share_empty(_ArrayKind("steps", np.dtype(np.float32), (2,)))
        self._steps_buffers = upload.TwoBuffers()
        self._number = _share_zero("number")  # number of the next minibatch
        self._first = _share_zero("first")  # number of the minibatch of the first row of `_steps`
        self._batch_size = _share_zero("batch_size")
        self._lengths: list[int] = []
        self._n_taken = 0

        self.symbols = [self._cut(array) for array in self._arrays]
        self.inputs: list[Any] = []
        step = self._number - self._first
        self.learning_rate = self._steps[step, 0]
        self.n_rows = self._steps[step, 1]
        self.updates = Updates({self._number: self._number + np.int64(1)})

    def _cut(self, array: Any) -> Any:
        """Return the next minibatch of a symbolic array."""
        start = self._number * self._batch_size
        return array[start : start + self._batch_size]

    def begin(self, arrays: Sequence[np.ndarray], batch_size: int) -> None:
        """Send the arrays of the next minibatches."""
        for variable, buffers, array in zip(self._arrays, self._array_buffers, arrays, strict=True):
            variable.set_value(buffers.put(array), borrow=True)
        n_rows = len(arrays[0])
        self._lengths = [min(batch_size, n_rows - start) for start in range(0, n_rows, batch_size)]
        self._n_taken = 0
        self._number.set_value(np.int64(0))
        self._batch_size.set_value(np.int64(batch_size))

    def run(self, function: Any, learning_rates: Sequence[float]) -> Any:
        """Take one step for each learning rate; return the outputs of the last one."""
        n_steps = len(learning_rates)
        first = self._n_taken
        lengths = self._lengths[first : first + n_steps]
        steps = np.array([learning_rates, lengths], np.float32).T
        self._steps.set_value(self._steps_buffers.put(steps), borrow=True)
        self._first.set_value(np.int64(first))
        self._n_taken = first + n_steps
        return _call_repeatedly(function, n_steps)


def _call_repeatedly(function: Any, n_calls: int) -> Any:
    """Call a function without inputs `n_calls` times; return the outputs of the last call."""
    if vm.CVM is not None and isinstance(function.fn, vm.CVM):
        return function.fn(n_calls=n_calls)
    # The user's flags select another linker, which cannot repeat a call.
    outputs = None
    for _ in range(n_calls):
        outputs = function()
    return outputs


def _share_empty(kind: _ArrayKind) -> Any:
    return backend.shared(np.empty((0, *kind.row_shape), kind.dtype), name=kind.name)


def _share_zero(name: str) -> Any:
    return theano.shared(np.int64(0), name=name)


_Feed = _HostFeed | _DeviceFeed
"""A source of minibatches for a compiled function."""


# ---- graphs


@dataclass(frozen=True)
class _Minibatch:
    """Variables of a minibatch."""

    rows: Any  # rows of the minibatch, or all rows if `numbers` is given
    numbers: Any  # int64: numbers of the minibatch's rows among all rows, or None
    noise: Any  # uint8: random bytes that select the entries to hide; None without corruption
    n_rows: Any
    learning_rate: Any
    corruption: float
    targets: graph.TargetVariables | None  # None without a head
    kept: Any  # float32: number of the features of each row that the decoder gets; None unless nested

    @classmethod
    def of(
        cls, feed: _Feed, names: Sequence[str], all_rows: Any, corruption: float, scalars: Sequence[Any]
    ) -> _Minibatch:
        """Return the variables of the minibatches of a feed, whose arrays have these names.

        `all_rows` is None if they are not resident, and `scalars` of the targets is empty without a head.
        """
        arrays = dict(zip(names, feed.symbols, strict=True))
        rows = arrays["minibatch"]
        numbers = None
        if all_rows is not None:
            numbers = rows
            rows = all_rows
        targets = None
        if scalars:
            targets = graph.TargetVariables(arrays["targets"], *scalars)
        return cls(
            rows=rows,
            numbers=numbers,
            noise=arrays.get("noise"),
            n_rows=feed.n_rows,
            learning_rate=feed.learning_rate,
            corruption=corruption,
            targets=targets,
            kept=arrays.get("kept"),
        )

    @property
    def arrays(self) -> list[Any]:
        """The existing variables among rows, numbers, noise, kept features, and targets with their factor."""
        arrays = [array for array in (self.rows, self.numbers, self.noise, self.kept) if array is not None]
        return [*arrays, *(self.targets or ())]


def _state_among(updates: Updates, autoencoder: Autoencoder) -> dict[str, Any]:
    """Return the variables of the rule's state by name: all variables that a step changes, except the parameters."""
    parameters = autoencoder.shared.values()
    return {variable.name: variable for variable in updates if variable not in parameters}


def _build_with_op(autoencoder: Autoencoder, rule: str, minibatch: _Minibatch) -> tuple[Any, Updates]:
    """Return the cost of a minibatch and the updates of a step on it, computed by `ops.Step`."""
    updates = Updates()
    rate = rate_of(rule, minibatch.learning_rate, updates)
    scalars = [rate, autoencoder.n_threads]
    variables = list(autoencoder.shared.values())
    for parameter in autoencoder.shared.values():
        variables += states_of(rule, parameter)
    step = ops.Step(autoencoder.network, rule, minibatch.corruption, resident=minibatch.numbers is not None)
    cost, *changed = step(*minibatch.arrays, *scalars, *variables, *autoencoder.scaling())
    updates.update(zip(variables, changed, strict=True))
    return cost, updates


def _build_with_graph(autoencoder: Autoencoder, rule: str, minibatch: _Minibatch) -> tuple[Any, Updates]:
    """Return the cost of a minibatch and the updates of a step on it, computed by Theano's graph on any device."""
    rows = minibatch.rows
    if minibatch.numbers is not None:
        rows = rows[minibatch.numbers]
    x = autoencoder.scaled(rows)
    visible = x
    if minibatch.noise is not None:
        visible = graph.masked(x, minibatch.noise, minibatch.corruption)
    cost, gradients = graph.error_and_gradients(
        autoencoder.network, x, visible, autoencoder.shared, minibatch.n_rows, minibatch.targets, minibatch.kept
    )
    parameters = list(autoencoder.shared.values())
    return cost, updates_of(rule, gradients, parameters, minibatch.learning_rate)
