"""A step of minibatch training, by the CPU's own Op or by what Theano makes of the model's gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernels import backend, ops
from kernels.autoencoder import Autoencoder, get_values, set_values
from kernels.updates import Updates, rate_of, states_of, updates_of

theano = backend.load()
tensor = theano.tensor

__all__ = ["TrainingStep"]


class TrainingStep:
    """One step of minibatch training of an `Autoencoder`, compiled for rows of one dtype.

    Parameters
    ----------
    autoencoder : Autoencoder
        What it trains, in place.
    rule : str
        A key of `kernels.updates.RULES`.
    momentum : float
        The decay of the rule's running average.
    dtype : dtype
        The rows' own.
    resident : ndarray of shape (n_rows, n_inputs), `dtype`, optional
        All rows, to be kept on the device. Minibatches are then row numbers (int64), and rows otherwise.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        rule: str,
        momentum: float,
        dtype: np.dtype,
        resident: np.ndarray | None = None,
    ) -> None:
        # A variable and not an input, so that a step is called with its minibatch alone.
        self._learning_rate = theano.shared(np.float32(0), name="learning_rate")
        if resident is None:
            minibatch = [backend.matrix(dtype, "minibatch")]
        else:
            minibatch = [backend.shared(resident, name="resident"), tensor.lvector("minibatch")]
        self._minibatch = minibatch[-1]  # numbers, where there are any: the rows lie on the device already
        self._fuses = autoencoder.fuses(dtype)
        by = _by_op if self._fuses else _by_graph
        self._cost, self._updates = by(autoencoder, rule, momentum, self._learning_rate, minibatch)
        self._state = {key.name: key for key in self._updates if key not in autoencoder.shared.values()}
        self._flops_per_row = 2 * autoencoder.n_inputs * autoencoder.n_features
        self._functions: dict[bool, Any] = {}  # with the cost, which has a price, and without

    def __call__(self, minibatch: np.ndarray, with_cost: bool = False) -> float | None:
        """Take one step.

        Parameters
        ----------
        minibatch : ndarray
            Rows of shape (n, n_inputs), C order, or with resident rows their numbers, shape (n,), int64.
        with_cost : bool
            Also compute the cost, which takes a quarter longer.

        Returns
        -------
        float or None
            The minibatch's cost before the step, when asked for.
        """
        if not self._fuses:  # the Ops see to their threads themselves
            backend.use_cores_for(len(minibatch) * self._flops_per_row)
        result = self._function(with_cost)(minibatch)
        return float(np.asarray(result[0])) if with_cost else None

    def compile(self) -> None:
        """Compile now what the first steps would compile."""
        self._function(False)
        self._function(True)

    def _function(self, with_cost: bool) -> Any:
        if with_cost not in self._functions:
            outputs = [self._cost] if with_cost else []
            self._functions[with_cost] = backend.compiled([self._minibatch], outputs, updates=self._updates)
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


def _by_op(
    autoencoder: Autoencoder, rule: str, momentum: float, learning_rate: Any, minibatch: Sequence[Any]
) -> tuple[Any, Updates]:
    """The cost of a minibatch (rows, and numbers of those that count), and what a step on it changes."""
    parameters, updates = list(autoencoder.shared.values()), Updates()
    rate = rate_of(rule, learning_rate, np.float32(momentum), updates)
    states = [state for parameter in parameters for state in states_of(rule, parameter)]
    step = ops.Step(rule, momentum, resident=len(minibatch) > 1)
    # In the order that `ops.Step` has for them.
    cost, *changed = step(*minibatch, rate, autoencoder.n_threads, *parameters, *states, *autoencoder.scaling())
    updates.update(zip([*parameters, *states], changed, strict=True))
    return cost, updates


def _by_graph(
    autoencoder: Autoencoder, rule: str, momentum: float, learning_rate: Any, minibatch: Sequence[Any]
) -> tuple[Any, Updates]:
    """The same of Theano's graph, which works on any device."""
    rows, *numbers = minibatch
    cost, gradients = autoencoder.cost_and_gradients(autoencoder.scaled(rows[numbers[0]] if numbers else rows))
    parameters = list(autoencoder.shared.values())
    # float32, or the whole rule would be computed in float64.
    return cost, updates_of(rule, gradients, parameters, learning_rate, np.float32(momentum))
