"""A step of minibatch training, by the CPU's own Op or by what Theano makes of the model's gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kernels import backend, graph, ops, upload
from kernels.autoencoder import Autoencoder, get_values, set_values
from kernels.updates import Rule, Updates, rate_of, states_of, updates_of

theano = backend.load()
tensor = theano.tensor

__all__ = ["TrainingStep"]

# Of minibatches that go to a device at a time: many, since each copy there costs as much as some of a step's kernels,
# and may wait until the device has nothing left to do.
_MOST_SENT, _SENT_BYTES = 32, 2**24


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
        # A variable and not an input, so that a step is called with its minibatch alone.
        self._learning_rate = theano.shared(np.float32(0), name="learning_rate")
        if resident is None:
            rows = [upload.symbol(dtype, 2, "minibatch")]
        else:
            numbers = upload.symbol(np.dtype(np.int64), 1, "minibatch")
            if isinstance(resident, np.ndarray):
                rows = [backend.shared(resident, name="resident"), numbers]
            else:
                rows = [upload.uploaded(resident, n_inputs, dtype, name="resident"), numbers]
        noise = [upload.symbol(np.dtype(np.uint8), 2, "noise")] if corruption else []
        self._inputs = [rows[-1], *noise]  # numbers, where there are any: the rows lie on the device already
        self._row_bytes = (n_inputs * dtype.itemsize if resident is None else 8) + (n_inputs if corruption else 0)
        self._buffers = [upload.TwoBuffers() for _ in self._inputs] if backend.active() else []
        self._fuses = autoencoder.fuses(dtype)
        by = _by_op if self._fuses else _by_graph
        self._cost, self._updates = by(autoencoder, rule, self._learning_rate, _Minibatch(rows, noise, corruption))
        self._state = {key.name: key for key in self._updates if key not in autoencoder.shared.values()}
        self._flops_per_row = 2 * autoencoder.network.n_weights
        self._functions: dict[bool, Any] = {}  # with the cost, which has a price, and without

    def __call__(self, minibatch: np.ndarray, with_cost: bool = False, noise: np.ndarray | None = None) -> float | None:
        """Take one step.

        Parameters
        ----------
        minibatch : ndarray, or what `sent` gives
            Rows of shape (n, n_inputs), C order, or with resident rows their numbers, shape (n,), int64.
        with_cost : bool
            Also compute the cost, which takes a quarter longer.
        noise : ndarray of shape (n, n_inputs), uint8, C order, or what `sent` gives
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
        inputs = [minibatch] if noise is None else [minibatch, noise]
        if len(inputs) != len(self._inputs):
            expected = "noise with each minibatch" if noise is None else "no noise"
            raise ValueError(f"a step of this corruption takes {expected}, found {len(inputs)} arrays")
        inputs = self._there(inputs)
        if not self._fuses:  # the Ops see to their threads themselves
            backend.use_cores_for(len(minibatch) * self._flops_per_row)
        with backend.calling():
            result = self._function(with_cost)(*inputs)
            return float(np.asarray(result[0])) if with_cost else None

    def n_sent(self, batch_size: int) -> int:
        """How many minibatches are worth sending at a time: one, where they need not go anywhere."""
        if not self._buffers:
            return 1
        return max(1, min(_MOST_SENT, _SENT_BYTES // (batch_size * self._row_bytes)))

    def sent(
        self, pieces: Iterable[tuple[np.ndarray, np.ndarray | None]], batch_size: int
    ) -> Iterator[tuple[Any, Any]]:
        """Minibatches and their noise, cut from larger pieces of both that go to the device as a whole.

        One that has memory of its own has room for two: one goes there while steps on the other are under way.
        """
        for minibatches, noise in pieces:
            whole = self._there([minibatches] if noise is None else [minibatches, noise])
            for start in range(0, len(minibatches), batch_size):
                cut = [each[start : start + batch_size] for each in whole]
                yield cut[0], cut[1] if len(cut) > 1 else None

    def _there(self, arrays: list[Any]) -> list[Any]:
        """Arrays in the device's own memory, if it has any."""
        if not self._buffers:
            return arrays
        pairs = zip(self._buffers, arrays, strict=True)
        return [buffers.put(each) if isinstance(each, np.ndarray) else each for buffers, each in pairs]

    def compile(self) -> None:
        """Compile now what the first steps would compile."""
        self._function(False)
        self._function(True)

    def _function(self, with_cost: bool) -> Any:
        if with_cost not in self._functions:
            outputs = [self._cost] if with_cost else []
            self._functions[with_cost] = backend.compiled(self._inputs, outputs, updates=self._updates)
        return self._functions[with_cost]

    def set_learning_rate(self, learning_rate: float) -> None:
        """The rate of the steps that follow."""
        self._learning_rate.set_value(np.float32(learning_rate))

    def state(self) -> dict[str, np.ndarray]:
        """Copies of the update rule's own arrays, by name: what a checkpoint needs beside the parameters."""
        return get_values(self._state)

    def set_state(self, values: Mapping[str, np.ndarray]) -> None:
        """Go on from arrays that `state` returned; raises like `Autoencoder.set_parameters`."""
        set_values(self._state, values)


class _Minibatch(NamedTuple):
    """What a step is taken on, as variables.

    Attributes
    ----------
    rows : list
        The rows, and where these are all rows there are, the numbers of those that count.
    noise : list
        Empty without corruption.
    """

    rows: list[Any]
    noise: list[Any]
    corruption: float


def _by_op(autoencoder: Autoencoder, rule: Rule, learning_rate: Any, minibatch: _Minibatch) -> tuple[Any, Updates]:
    """The cost of a minibatch, and what a step on it changes."""
    parameters, updates = list(autoencoder.shared.values()), Updates()
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
    # As a tensor: by any other variable Theano would look rows up on the host.
    x = autoencoder.scaled(rows[tensor.as_tensor_variable(numbers[0])] if numbers else rows)
    seen = graph.masked(x, minibatch.noise[0], minibatch.corruption) if minibatch.noise else x
    cost, gradients = graph.cost_and_gradients(autoencoder.network, x, seen, autoencoder.shared)
    return cost, updates_of(rule, gradients, list(autoencoder.shared.values()), learning_rate)
