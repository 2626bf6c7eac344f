"""The model on the CPU: one Op that encodes, one for the errors of reconstructions, one for a step of training.

Each takes raw rows in their own dtype and does everything at once, tile by tile while it is in the caches, on all cores
and without Python's lock. The C code lies in the folder ``native``, one idea a file; Theano compiles it and keeps it in
its own cache. `kernels.reference` says in NumPy what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from kernels import backend, reference
from kernels.network import Network
from kernels.updates import ROLES, RULES

theano: Any = backend.load()
tensor = theano.tensor

__all__ = ["DTYPES", "Encode", "Errors", "Step", "serves"]

DTYPES = frozenset(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)) | {"float32", "float64"}
"""Names of the dtypes that rows may have."""


def serves(network: Network) -> bool:
    """Whether there is C code for a network."""
    return network.n_layers == 1 and network.code == "sigmoid" and not network.gain


# In the order in which they need each other.
_HEADERS = (
    "vectors",
    "transpose",
    "products",
    "sigmoid",
    "team",
    "memory",
    "rows",
    "forward",
    "folded",
    "quantized",
    "int8_products",
    "updates",
    "arrays",
)


@cache
def _source(file: str) -> str:
    files = [*(f"{header}.h" for header in _HEADERS), file]
    return "\n".join((Path(__file__).parent / "native" / name).read_text() for name in files)


class _Native(theano.Op):
    """An Op that takes rows first, and whose code is a file of the folder ``native``.

    Its last inputs are the scaling: minimum and scale, both or none. Some inputs come back changed, as the last
    outputs; as Theano wants it, an Op that is asked for changes copies of them, and an optimisation then lets it
    change them in place.
    """

    __props__: tuple[str, ...] = ("inplace",)
    file = ""
    rule = "momentum"  # which function of updates.h; the compiler leaves the others out
    more: tuple[Any, ...] = ()  # types of the outputs before the changed inputs

    def __init__(self, n_inputs: int, changed: range, inplace: bool) -> None:
        self.n_inputs, self.changed, self.inplace = n_inputs, changed, inplace
        if inplace:
            # What Theano has to know of who works in place, so that nobody else reads the input afterwards.
            self.destroy_map = {len(self.more) + i: [place] for i, place in enumerate(changed)}

    def in_place(self) -> _Native:
        """The same Op, changing its inputs in place."""
        return type(self)(**{name: getattr(self, name) for name in self.__props__} | {"inplace": True})

    def make_node(self, *inputs: Any) -> Any:
        """Check nothing: all inputs are made by this package."""
        return theano.Apply(self, list(inputs), [new() for new in self.more] + [inputs[i].type() for i in self.changed])

    # -- in NumPy --

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Change inputs in place, and return the other outputs."""
        raise NotImplementedError

    def perform(self, node: Any, inputs: Sequence[np.ndarray], output_storage: Any) -> None:
        """What the C code does."""
        arrays = [a.copy() if i in self.changed and not self.inplace else a for i, a in enumerate(inputs)]
        more = self.compute(arrays[: self.n_inputs], arrays[self.n_inputs :])
        for storage, output in zip(output_storage, [*more, *(arrays[i] for i in self.changed)], strict=True):
            storage[0] = output

    # -- in C --

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """C code that changes inputs in place, allocates the other outputs, and then sets ``done`` to 1."""
        raise NotImplementedError

    def c_code(self, node: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: Any) -> str:
        """Hand the changed inputs on as outputs, or copies of them, and let these be changed."""
        arrays, lines = list(inputs), ["int done = 0;"]
        n_more = len(self.more)
        for place, output in zip(self.changed, outputs[n_more:], strict=True):
            lines += [f"Py_XDECREF({output});"]  # the call before left its own there
            if self.inplace:
                lines += [f"{output} = {arrays[place]}; Py_INCREF({output});"]
            else:
                lines += [f"{output} = (PyArrayObject *)PyArray_NewCopy({arrays[place]}, NPY_CORDER);"]
                lines += [f"if (!{output}) {sub['fail']}"]
            arrays[place] = output
        scaling = arrays[self.n_inputs :] or ["NULL", "NULL"]
        lines += [self.call(arrays[: self.n_inputs], scaling, outputs[:n_more], f"&memory_{name}")]
        return "\n".join([*lines, f"if (!done) {sub['fail']}"])

    def c_support_code_apply(self, node: Any, name: str) -> str:
        """All code, for the dtypes at hand."""
        scaling = [variable.type.dtype_specs()[1] for variable in node.inputs[self.n_inputs :]] or ["float"]
        # Bits of an Inf or a NaN, and of a negative number, are larger than all others when read as unsigned.
        bits = "npy_uint64" if scaling[0] == "npy_float64" else "npy_uint32"
        row = node.inputs[0].type.dtype_specs()[1]
        macros = {"ROW": row, "SCALING": scaling[0], "BITS": bits, "UPDATE": self.rule}
        macros["ROWS_ARE_BYTES"] = int(row == "npy_uint8" and scaling[0] == "npy_float32")
        macros["ROWS_ARE_FLOATS"] = int(row == "npy_float32" and scaling[0] in ("float", "npy_float32"))
        defines = [f"#define {macro} {value}" for macro, value in macros.items()]
        return "\n".join(
            ["#include <math.h>", "#include <stdlib.h>", "#include <string.h>", *defines, _source(self.file)]
        )

    def c_code_cache_version(self) -> tuple[str, ...]:
        """Another one for other code."""
        return (sha256(_source(self.file).encode()).hexdigest(), "1")  # of the C code above

    def c_compile_args(self) -> list[str]:
        """What the team of threads needs."""
        return ["-pthread"]

    def c_support_code_struct(self, node: Any, name: str) -> str:
        """What a compiled function keeps between its calls."""
        return f"Memory memory_{name};"

    def c_init_code_struct(self, node: Any, name: str, sub: Any) -> str:
        """Nothing at first."""
        return f"memset(&memory_{name}, 0, sizeof memory_{name});"

    def c_cleanup_code_struct(self, node: Any, name: str) -> str:
        """Nothing in the end."""
        return f"free(memory_{name}.start);"


class Encode(_Native):
    """``(rows, W, b_hidden, n_threads, out, *scaling) -> out``, filled with features (n_rows, n_features), float32.

    The features of a row are the same bits whatever the rows around it and the number of threads. Rows of bytes that
    are scaled in float32 are multiplied in integers where the processor has an instruction for that, and where W and
    the scaling let it be at least as exact: ``native/quantized.h`` says when. What it makes of W is kept between calls.

    Parameters
    ----------
    checked : bool
        It is then ``(rows, W, b_hidden, n_threads, maximum, out, inside, *scaling) -> out, inside``: also filled with
        whether all values of a row lie between minimum and maximum, which NaN and Inf do not: (n_rows,), bool.
    """

    __props__ = ("checked", "inplace")
    file = "encode.c"

    def __init__(self, checked: bool = False, inplace: bool = False) -> None:
        self.checked = checked
        n_inputs = 7 if checked else 5
        super().__init__(n_inputs, range(n_inputs - 1 - checked, n_inputs), inplace)

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        rows, W, b_hidden, _, *rest = inputs
        out, no_bias = rest[self.checked], np.zeros(len(W))
        out[:] = reference.code(Network(W.shape), reference.scaled(rows, scaling), [W, b_hidden, no_bias])
        if self.checked:
            rest[2][:] = reference.lie_in(rows, scaling[0], rest[0])
        return []

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        rows, W, b_hidden, n_threads, *rest = inputs
        maximum, out, inside = rest if self.checked else ("NULL", rest[0], "NULL")
        arguments = [memory, rows, W, b_hidden, _number(n_threads), out, maximum, inside, *scaling]
        return f"done = encode_arrays({', '.join(arguments)});"


class Errors(_Native):
    """``(rows, W, b_hidden, b_output, n_threads, out, *scaling) -> out``: mean squared errors (n_rows,), float32."""

    file = "reconstruction.c"

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(6, range(5, 6), inplace)

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        rows, W, b_hidden, b_output, _, out = inputs
        x, parameters = reference.scaled(rows, scaling), [W, b_hidden, b_output]
        out[:] = reference.row_errors(Network(W.shape), x, parameters)
        return []

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        rows, W, b_hidden, b_output, n_threads, out = inputs
        arguments = [memory, rows, W, b_hidden, b_output, out, _number(n_threads), *scaling]
        return f"done = errors_arrays({', '.join(arguments)});"


class Step(_Native):
    """A step of training: ``(rows, *numbers, rate, n_threads, *parameters, *states, *scaling) -> cost, changed``.

    The cost is the minibatch's before the step; parameters, and states in the order of the parameters and of
    `kernels.updates.ROLES`, are changed. All is the same bits for any number of threads.

    Parameters
    ----------
    rule : str
        A key of `kernels.updates.RULES`.
    decay : float
        Of the rule's running average.
    resident : bool
        Whether the minibatch is given by row numbers, which then follow the rows.
    """

    __props__ = ("rule", "decay", "resident", "inplace")
    file = "step.c"
    more = (tensor.fscalar,)  # the cost

    def __init__(self, rule: str, decay: float, resident: bool, inplace: bool = False) -> None:
        self.rule, self.decay, self.resident = rule, float(decay), resident
        first, n_changed = 4 if resident else 3, 3 + 3 * len(ROLES[rule])
        super().__init__(first + n_changed, range(first, first + n_changed), inplace)

    def _sorted(self, inputs: Sequence[Any]) -> tuple[Any, list[Any], Any, Any, list[Any], list[list[Any]]]:
        """Rows, numbers if any, rate, number of threads, parameters, and the states of each."""
        rows, *numbers, rate, n_threads = inputs[: self.changed.start]
        parameters, states = inputs[self.changed.start :][:3], inputs[self.changed.start :][3:]
        n = len(ROLES[self.rule])
        return rows, numbers, rate, n_threads, list(parameters), [list(states[i * n : i * n + n]) for i in range(3)]

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        rows, numbers, rate, _, parameters, states = self._sorted(inputs)
        x = reference.scaled(rows[numbers[0]] if numbers else rows, scaling)
        cost, gradients = reference.gradients(Network(parameters[0].shape), x, x, parameters)
        for parameter, gradient, own in zip(parameters, gradients, states, strict=True):
            following = RULES[self.rule](parameter, gradient, float(rate), self.decay, *own)
            for array, values in zip([parameter, *own], following, strict=True):
                array[...] = values
        return [np.array(cost, dtype=np.float32)]

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        rows, numbers, rate, n_threads, parameters, states = self._sorted(inputs)
        (cost,) = outputs
        taken = [
            f"take_rows(&step.rows, {rows}, {[*numbers, 'NULL'][0]}, {', '.join(scaling)})",
            f"take_weights(&step.weights, &step.rows, {', '.join(parameters)})",
        ]
        for member, parameter, own in zip(("W", "b_hidden", "b_output"), parameters, states, strict=True):
            taken.append(f"take_parameter(&step.{member}, {parameter}, {', '.join([*own, 'NULL'][:2])})")
        return f"""
            Step step;
            memset(&step, 0, sizeof step);
            step.rate = *(float *)PyArray_DATA({rate});
            step.decay = {self.decay!r};
            step.n_threads = {_number(n_threads)};
            Py_XDECREF({cost});
            {cost} = (PyArrayObject *)PyArray_SimpleNew(0, NULL, NPY_FLOAT32);
            done = {cost} && {" && ".join(taken)} && step_arrays(&step, {memory});
            if (done)
                *(float *)PyArray_DATA({cost}) = step.cost;
        """


def _number(scalar: str) -> str:
    return f"*(npy_int64 *)PyArray_DATA({scalar})"


@theano.gof.local_optimizer([Encode, Errors, Step])
def _in_place(node: Any) -> Any:
    """Let our Ops change their inputs where Theano finds nobody else who needs them."""
    if not isinstance(node.op, _Native) or node.op.inplace:
        return False
    return node.op.in_place()(*node.inputs, return_list=True)


theano.compile.optdb.register(
    "shardpress_in_place",
    theano.gof.TopoOptimizer(_in_place, failure_callback=theano.gof.TopoOptimizer.warn_inplace),
    75,  # where Theano registers its own
    "fast_run",
    "inplace",
)
