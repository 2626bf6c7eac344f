"""A step of minibatch training, by the CPU's own Op or by what Theano makes of the model's gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kernels import backend, graph, ops, upload
from kernels.autoencoder import Autoencoder, get_values, set_values
from kernels.updates import Rule, Updates, rate_of, states_of, updates_of

theano = backend.load()
tensor = theano.tensor
vm = theano.gof.vm

__all__ = ["TrainingStep"]

# Of minibatches that go to a device at a time: many, since each copy there costs as much as some of a step's kernels,
# and may wait until the device has nothing left to do. But no more than a slow device is done with in a second or two,
# for which a signal has to wait, or progress.
_MOST_SENT = 32
_SENT_BYTES = 2**24
_SENT_FLOPS = 2**35

_Kind = tuple[str, np.dtype, tuple[int, ...]]
"""Of an array of a minibatch: name, dtype, and shape behind the number of rows."""


class TrainingStep:
    """One step of minibatch training of an `Autoencoder`, compiled for rows of one dtype.

    Parameters
    ----------
    autoencoder : Autoencoder
        What it trains, in place.
    rule : Rule
        How the parameters follow their gradients.
    dtype : dtype
        The rows' own.
    resident : ndarray of shape (n_rows, n_inputs), `dtype`, or `upload.Pieces` of it, optional
        All rows, to be kept on the device; pieces for one that is not the CPU. Minibatches are then row numbers
        (int64), and rows otherwise.
    corruption : float
        The fraction of the entries that the network does not see: they are 0 on the way in, but not in what it is to
        reconstruct. Which ones they are, each step's noise says, see `kernels.reference.masked`.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        rule: Rule,
        dtype: np.dtype,
        resident: np.ndarray | upload.Pieces | None = None,
        corruption: float = 0.0,
    ) -> None:
        n_inputs = autoencoder.network.n_inputs
        self._row_bytes = (n_inputs * dtype.itemsize if resident is None else 8) + (n_inputs if corruption else 0)
        kinds = [("minibatch", dtype, (n_inputs,)) if resident is None else ("minibatch", np.dtype(np.int64), ())]
        kinds += [("noise", np.dtype(np.uint8), (n_inputs,))] if corruption else []
        self._source = (_OnDevice if backend.active() else _OnHost)(kinds)
        rows = [self._source.symbols[0]]  # or their numbers, where there are any: they lie on the device already
        if resident is not None:
            rows.insert(0, _kept(resident, n_inputs, dtype))
        self._fuses = autoencoder.fuses(dtype)
        minibatch = _Minibatch(rows, self._source.symbols[1:], self._source.n_rows, corruption)
        by = _by_op if self._fuses else _by_graph
        self._cost, self._updates = by(autoencoder, rule, self._source.learning_rate, minibatch)
        self._state = {key.name: key for key in self._updates if key not in autoencoder.shared.values()}
        self._updates.update(self._source.updates)
        self._flops_per_row = 2 * autoencoder.network.n_weights
        self._functions: dict[bool, Any] = {}  # with the cost, which has a price, and without
        self._rate = 0.0

    def __call__(self, minibatch: np.ndarray, with_cost: bool = False, noise: np.ndarray | None = None) -> float | None:
        """Take one step, at the learning rate that was set last.

        Parameters
        ----------
        minibatch : ndarray
            Rows of shape (n, n_inputs), C order, or with resident rows their numbers, shape (n,), int64.
        with_cost : bool
            Also compute the cost, which takes a quarter longer.
        noise : ndarray of shape (n, n_inputs), uint8, C order
            Random bytes, which tell the entries that are not seen; with corruption only.

        Returns
        -------
        float or None
            The minibatch's cost before the step, when asked for.

        Raises
        ------
        ValueError
            When noise is missing, or is given without corruption.
        """
        self.begin(minibatch, noise, len(minibatch))
        return self.take([self._rate], with_cost)

    def n_at_once(self, batch_size: int) -> int:
        """How many minibatches are worth having at a time: one, where they need not go anywhere."""
        by_size = _SENT_BYTES // self._row_bytes
        by_work = _SENT_FLOPS // (3 * self._flops_per_row)
        return max(1, min(self._source.most, min(by_size, by_work) // batch_size))

    def begin(self, minibatches: np.ndarray, noise: np.ndarray | None, batch_size: int) -> None:
        """Have ready what the next calls of `take` take steps on.

        A device that has memory of its own gets all of it at once, while it may be at work on what was before.

        Parameters
        ----------
        minibatches : ndarray
            Minibatches as of a call, one behind the other; the last one may be smaller. They are not copied on the CPU.
        noise : ndarray of shape (n, n_inputs), uint8, C order, or None
            Of all of them; with corruption only.
        batch_size : int
            Rows of a minibatch.

        Raises
        ------
        ValueError
            When noise is missing, or is given without corruption.
        """
        arrays = [minibatches] if noise is None else [minibatches, noise]
        if len(arrays) != len(self._source.symbols):
            expected = "noise with each minibatch" if noise is None else "no noise"
            raise ValueError(f"a step of this corruption takes {expected}, found {len(arrays)} arrays")
        if not self._fuses:  # the Ops see to their threads themselves
            backend.use_cores_for(batch_size * self._flops_per_row)
        self._source.begin(arrays, batch_size)

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None:
        """Take a step at each rate, on one minibatch after the other of those that `begin` was given.

        Parameters
        ----------
        learning_rates : sequence of float
            No more than there are minibatches left.
        with_cost : bool
            Also compute the costs, which takes a quarter longer.

        Returns
        -------
        float or None
            The last one's cost before its step, when asked for.
        """
        with backend.calling():
            cost = self._source.run(self._function(with_cost), learning_rates)
            return float(np.asarray(cost[0])) if with_cost else None

    def compile(self) -> None:
        """Compile now what the first steps would compile."""
        self._function(False)
        self._function(True)

    def _function(self, with_cost: bool) -> Any:
        if with_cost not in self._functions:
            outputs = [self._cost] if with_cost else []
            self._functions[with_cost] = backend.compiled(self._source.inputs, outputs, updates=self._updates)
        return self._functions[with_cost]

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the calls that follow."""
        self._rate = learning_rate

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the update rule's own arrays, by name: what a checkpoint needs beside the parameters."""
        return get_values(self._state)

    def set_state(self, values: Mapping[str, np.ndarray]) -> None:
        """Go on from arrays that `state` returned; raises like `Autoencoder.set_parameters`."""
        set_values(self._state, values)


class _OnHost:
    """Minibatches that are used where they lie: inputs of a function, which is called for each.

    Attributes
    ----------
    most : int
        Minibatches at a time.
    symbols : list
        A minibatch's arrays.
    inputs : list
        Of these, what the function is called with.
    learning_rate : scalar
    n_rows : scalar or None
        Rows of the minibatch, where its array would have to be asked for them.
    updates : dict
        What a step changes beside all else.
    """

    most = 1

    def __init__(self, kinds: Sequence[_Kind]) -> None:
        self.symbols = [
            tensor.TensorType(dtype.name, (False,) * (1 + len(shape)))(name) for name, dtype, shape in kinds
        ]
        # A variable and not an input, so that a step is called with its minibatch alone.
        self.learning_rate = theano.shared(np.float32(0), name="learning_rate")
        self.n_rows = None
        self.inputs = self.symbols
        self.updates = Updates()

    def begin(self, arrays: Sequence[np.ndarray], batch_size: int) -> None:
        """The minibatches of the next steps."""
        self._arrays = arrays
        self._batch_size = batch_size
        self._start = 0

    def run(self, function: Any, learning_rates: Sequence[float]) -> Any:
        """Take as many steps; what the last one returns."""
        found = None
        for rate in learning_rates:
            self.learning_rate.set_value(np.float32(rate))
            stop = self._start + self._batch_size
            found = function(*(array[self._start : stop] for array in self._arrays))
            self._start = stop
        return found


class _OnDevice:
    """Minibatches in a device's memory, of which a function that has no input takes the next one by itself.

    So that steps follow each other without a word from the host. Attributes and methods as of `_OnHost`.
    """

    most = _MOST_SENT

    def __init__(self, kinds: Sequence[_Kind]) -> None:
        nothing = [np.empty((0, *shape), dtype) for _, dtype, shape in kinds]
        names = [name for name, _, _ in kinds]
        self._there = [backend.shared(array, name=name) for array, name in zip(nothing, names, strict=True)]
        self._steps = backend.shared(np.empty((0, 2), np.float32), name="steps")  # rates, and rows of the minibatches
        self._buffers = [upload.TwoBuffers() for _ in range(len(kinds) + 1)]
        self._number, self._first, self._batch_size = (
            theano.shared(np.int64(0), name=name) for name in ("number", "first", "batch_size")
        )
        start = self._number * self._batch_size
        self.symbols = [array[start : start + self._batch_size] for array in self._there]
        self.learning_rate, self.n_rows = (self._steps[self._number - self._first, i] for i in range(2))
        self.inputs, self.updates = list[Any](), Updates({self._number: self._number + np.int64(1)})

    def begin(self, arrays: Sequence[np.ndarray], batch_size: int) -> None:
        """The minibatches of the next steps."""
        for shared, buffers, array in zip(self._there, self._buffers, arrays, strict=False):
            shared.set_value(buffers.put(array), borrow=True)
        self._lengths = [min(batch_size, len(arrays[0]) - start) for start in range(0, len(arrays[0]), batch_size)]
        self._n_taken = 0
        self._number.set_value(np.int64(0))
        self._batch_size.set_value(np.int64(batch_size))

    def run(self, function: Any, learning_rates: Sequence[float]) -> Any:
        """Take as many steps; what the last one returns."""
        n = len(learning_rates)
        first = self._n_taken
        steps = np.array([learning_rates, self._lengths[first : first + n]], np.float32).T
        self._steps.set_value(self._buffers[-1].put(steps), borrow=True)
        self._first.set_value(np.int64(first))
        self._n_taken += n
        if isinstance(function.fn, vm.CVM or ()):
            return function.fn(n_calls=n)
        return [function() for _ in learning_rates][-1]  # where the user's flags name another linker


class _Minibatch(NamedTuple):
    """What a step is taken on, as variables.

    Attributes
    ----------
    rows : list
        The rows, and where these are all rows there are, the numbers of those that count.
    noise : list
        Empty without corruption.
    n_rows : scalar or None
        As of `_OnHost`.
    """

    rows: list[Any]
    noise: list[Any]
    n_rows: Any
    corruption: float


def _kept(rows: np.ndarray | upload.Pieces, n_inputs: int, dtype: np.dtype) -> Any:
    """All rows, where the steps are taken."""
    if isinstance(rows, np.ndarray):
        return backend.shared(rows, name="resident")
    return upload.uploaded(rows, n_inputs, dtype, name="resident")


def _by_op(autoencoder: Autoencoder, rule: Rule, learning_rate: Any, minibatch: _Minibatch) -> tuple[Any, Updates]:
    """The cost of a minibatch, and what a step on it changes."""
    parameters = list(autoencoder.shared.values())
    updates = Updates()
    rates = learning_rate, rate_of(rule, learning_rate, updates)
    states = [state for parameter in parameters for state in states_of(rule, parameter)]
    step = ops.Step(autoencoder.network, rule, minibatch.corruption, resident=len(minibatch.rows) > 1)
    # In the order that `ops.Step` has for them.
    given = [*minibatch.rows, *minibatch.noise, *rates, autoencoder.n_threads]
    cost, *changed = step(*given, *parameters, *states, *autoencoder.scaling())
    updates.update(zip([*parameters, *states], changed, strict=True))
    return cost, updates


def _by_graph(autoencoder: Autoencoder, rule: Rule, learning_rate: Any, minibatch: _Minibatch) -> tuple[Any, Updates]:
    """The same of Theano's graph, which works on any device."""
    rows, *numbers = minibatch.rows
    x = autoencoder.scaled(rows[numbers[0]] if numbers else rows)
    seen = graph.masked(x, minibatch.noise[0], minibatch.corruption) if minibatch.noise else x
    cost, gradients = graph.cost_and_gradients(autoencoder.network, x, seen, autoencoder.shared, minibatch.n_rows)
    return cost, updates_of(rule, gradients, list(autoencoder.shared.values()), learning_rate)
