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
from kernels.activations import ACTIVATIONS
from kernels.network import Network
from kernels.rules import RULES
from kernels.updates import Rule

theano: Any = backend.load()
tensor = theano.tensor

__all__ = ["DTYPES", "Encode", "Errors", "Step"]

DTYPES = frozenset(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)) | {"float32", "float64"}
"""Names of the dtypes that rows may have."""

# In the order in which they need each other.
_HEADERS = (
    "vectors",
    "transpose",
    "products",
    "activations",
    "team",
    "memory",
    "rows",
    "model",
    "forward",
    "folded",
    "quantized",
    "int8_products",
    "arrays",
)


@cache
def _source(file: str) -> str:
    files = [*(f"{header}.h" for header in _HEADERS), file]
    return "\n".join((Path(__file__).parent / "native" / name).read_text() for name in files)


class _Native(theano.Op):
    """An Op that takes rows first, and whose code is a file of the folder ``native``.

    Among its inputs are the network's parameters, all of them in the order of its shapes. Its last inputs are the
    scaling: minimum and scale, both or none. Some inputs come back changed, as the last outputs; as Theano wants it,
    an Op that is asked for changes copies of them, and an optimisation then lets it change them in place.
    """

    __props__: tuple[str, ...] = ("network", "inplace")
    file = ""
    more: tuple[Any, ...] = ()  # types of the outputs before the changed inputs

    def __init__(self, network: Network, n_inputs: int, changed: range, inplace: bool) -> None:
        self.network = network
        self.n_inputs = n_inputs
        self.changed = changed
        self.inplace = inplace
        if inplace:
            # What Theano has to know of who works in place, so that nobody else reads the input afterwards.
            self.destroy_map = {len(self.more) + i: [place] for i, place in enumerate(changed)}

    def split(self, inputs: Sequence[Any], first: int) -> tuple[list[Any], list[Any], list[Any]]:
        """Inputs before the parameters, of which there are `first`, the parameters, and what follows."""
        end = first + len(self.network.shapes)
        return list(inputs[:first]), list(inputs[first:end]), list(inputs[end:])

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
        arrays = list(inputs)
        lines = ["int done = 0;"]
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
        call = self.call(arrays[: self.n_inputs], scaling, outputs[:n_more], f"&memory_{name}")
        lines += [f"{{ {call} }}"]  # what it declares, no jump to a failure may cross
        return "\n".join([*lines, f"if (!done) {sub['fail']}"])

    def macros(self) -> dict[str, Any]:
        """What of the network the code is compiled for: widths are not among it."""
        hidden = ACTIVATIONS[self.network.activation]
        code = ACTIVATIONS[self.network.code]
        return {
            "N_LAYERS": self.network.n_layers,
            "HIDDEN_VALUE(z)": f"({hidden.c_value})",
            "HIDDEN_GRADIENT(gradient, out)": f"({hidden.c_gradient})",
            "CODE_VALUE(z)": f"({code.c_value})",
            "CODE_GRADIENT(gradient, out)": f"({code.c_gradient})",
            "CODE_IS_BOUNDED": int(code.limits is not None),
            "CENTER": f"{code.middle}f",
            "HAS_GAIN": int(self.network.gain),
            "NAMES": ", ".join(f'"{name}"' for name in self.network.shapes),
        }

    def c_support_code_apply(self, node: Any, name: str) -> str:
        """All code, for the dtypes at hand."""
        scaling = [variable.type.dtype_specs()[1] for variable in node.inputs[self.n_inputs :]] or ["float"]
        # Bits of an Inf or a NaN, and of a negative number, are larger than all others when read as unsigned.
        bits = "npy_uint64" if scaling[0] == "npy_float64" else "npy_uint32"
        row = node.inputs[0].type.dtype_specs()[1]
        macros = {"ROW": row, "SCALING": scaling[0], "BITS": bits} | self.macros()
        macros["ROWS_ARE_BYTES"] = int(row == "npy_uint8" and scaling[0] == "npy_float32")
        macros["ROWS_ARE_FLOATS"] = int(row == "npy_float32" and scaling[0] in ("float", "npy_float32"))
        defines = [f"#define {macro} {value}" for macro, value in macros.items()]
        return "\n".join(
            ["#include <math.h>", "#include <stdlib.h>", "#include <string.h>", *defines, _source(self.file)]
        )

    def c_code_cache_version(self) -> tuple[str, ...]:
        """Another one for other code."""
        macros = repr(sorted(self.macros().items()))
        source = macros + _source(self.file)
        return (sha256(source.encode()).hexdigest(), "1")  # of the C code above

    def c_compile_args(self) -> list[str]:
        """What the team of threads needs; and square roots of vectors, where each would have to set errno by itself."""
        return ["-pthread", "-fno-math-errno"]

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
    """``(rows, *parameters, n_threads, out, *scaling) -> out``, filled with features (n_rows, n_features), float32.

    The features of a row are the same bits whatever the rows around it and the number of threads. Rows of bytes that
    are scaled in float32 are multiplied in integers where the processor has an instruction for that, and where W and
    the scaling let it be at least as exact: ``native/quantized.h`` says when. What it makes of W is kept between calls.

    Parameters
    ----------
    network : Network
    checked : bool
        It is then ``(rows, *parameters, n_threads, maximum, out, inside, *scaling) -> out, inside``: also filled with
        whether all values of a row lie between minimum and maximum, which NaN and Inf do not, and all its features are
        finite: (n_rows,), bool.
    """

    __props__ = ("network", "checked", "inplace")
    file = "encode.c"

    def __init__(self, network: Network, checked: bool = False, inplace: bool = False) -> None:
        self.checked = checked
        n_inputs = len(network.shapes) + (5 if checked else 3)
        super().__init__(network, n_inputs, range(n_inputs - 1 - checked, n_inputs), inplace)

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        (rows,), parameters, (_, *rest) = self.split(inputs, 1)
        out = rest[self.checked]
        out[:] = reference.code(self.network, reference.scaled(rows, scaling), parameters)
        if self.checked:
            rest[2][:] = reference.lie_in(rows, scaling[0], rest[0]) & np.isfinite(out).all(axis=1)
        return []

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        (rows,), parameters, (n_threads, *rest) = self.split(inputs, 1)
        maximum, out, inside = rest if self.checked else ("NULL", rest[0], "NULL")
        arguments = [memory, rows, "parameters", _number(n_threads), out, maximum, inside, *scaling]
        return f"{_array('parameters', parameters)} done = encode_arrays({', '.join(arguments)});"


class Errors(_Native):
    """``(rows, *parameters, n_threads, out, *scaling) -> out``: mean squared errors (n_rows,), float32."""

    file = "reconstruction.c"

    def __init__(self, network: Network, inplace: bool = False) -> None:
        n_inputs = len(network.shapes) + 3
        super().__init__(network, n_inputs, range(n_inputs - 1, n_inputs), inplace)

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        (rows,), parameters, (_, out) = self.split(inputs, 1)
        out[:] = reference.row_errors(self.network, reference.scaled(rows, scaling), parameters)
        return []

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        (rows,), parameters, (n_threads, out) = self.split(inputs, 1)
        arguments = [memory, rows, "parameters", _number(n_threads), out, *scaling]
        return f"{_array('parameters', parameters)} done = errors_arrays({', '.join(arguments)});"


class Step(_Native):
    """A step of training: ``(rows, *numbers, *noise, learning_rate, rate, n_threads, *parameters, *states, *scaling)``.

    Its outputs are the minibatch's cost before the step and what is changed: parameters, and states in the order of
    the parameters and of the rule's. All is the same bits for any number of threads.

    Parameters
    ----------
    network : Network
    rule : Rule
        Its `rate` is `kernels.updates.rate_of` of the learning rate.
    corruption : float
        The part of the entries that are not seen; where it is not 0, noise (n_rows, n_inputs), uint8, tells which.
    resident : bool
        Whether the minibatch is given by row numbers, which then follow the rows.
    """

    __props__ = ("network", "rule", "corruption", "resident", "inplace")
    file = "step.c"
    more = (tensor.fscalar,)  # the cost

    def __init__(self, network: Network, rule: Rule, corruption: float, resident: bool, inplace: bool = False) -> None:
        self.rule = rule
        self.corruption = float(corruption)
        self.resident = resident
        self._first = 4 + bool(corruption) + resident
        n_changed = len(network.shapes) * (1 + len(RULES[rule.name].states))
        end = self._first + n_changed
        super().__init__(network, end, range(self._first, end), inplace)

    def macros(self) -> dict[str, Any]:
        """The rule as well."""
        rule = RULES[self.rule.name]
        names = [*rule.states, "unused", "unused_too"]
        return super().macros() | {"STATE_0": names[0], "STATE_1": names[1], "UPDATE": " ".join(rule.c.split())}

    def _minibatch(self, given: Sequence[Any]) -> tuple[Any, Any, Any, Any, Any, Any]:
        """Rows, numbers and noise or None, learning rate, rate, number of threads."""
        rows, *rest, learning_rate, rate, n_threads = given
        numbers = rest[0] if self.resident else None
        return rows, numbers, rest[-1] if self.corruption else None, learning_rate, rate, n_threads

    def compute(self, inputs: Sequence[np.ndarray], scaling: Sequence[np.ndarray]) -> list[np.ndarray]:
        """In NumPy."""
        given, parameters, states = self.split(inputs, self._first)
        rows, numbers, noise, learning_rate, rate, _ = self._minibatch(given)
        x = reference.scaled(rows if numbers is None else rows[numbers], scaling)
        seen = x if noise is None else reference.masked(x, noise, self.corruption)
        cost, gradients = reference.gradients(self.network, x, seen, parameters)
        rule = RULES[self.rule.name]
        n = len(rule.states)
        kept = 1 - float(learning_rate) * self.rule.weight_decay
        for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            own = states[i * n : i * n + n]
            start = parameter * (kept if parameter.ndim == 2 else 1)
            following = rule.update(start, gradient, float(rate), self.rule.momentum, *own)
            for array, values in zip([parameter, *own], following, strict=True):
                array[...] = values
        return [np.array(cost, dtype=np.float32)]

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """In C."""
        given, parameters, states = self.split(inputs, self._first)
        rows, numbers, noise, learning_rate, rate, n_threads = self._minibatch(given)
        (cost,) = outputs
        taken = [
            f"take_rows(&step.rows, {rows}, {numbers or 'NULL'}, {', '.join(scaling)})",
            f"take_parameters(&step, parameters, states, {len(RULES[self.rule.name].states)})",
        ]
        if noise:
            taken.append(f"take_noise(&step, {noise}, {reference.threshold(self.corruption)})")
        return f"""
            {_array("parameters", parameters)}
            {_array("states", states)}
            Step step;
            memset(&step, 0, sizeof step);
            step.rate = {_number(rate, "float")};
            step.decay = {self.rule.momentum!r};
            step.shrinks = {self.rule.weight_decay!r} * {_number(learning_rate, "float")};
            step.n_threads = {_number(n_threads)};
            Py_XDECREF({cost});
            {cost} = (PyArrayObject *)PyArray_SimpleNew(0, NULL, NPY_FLOAT32);
            done = {cost} && {" && ".join(taken)} && step_arrays(&step, {memory});
            if (done)
                {_number(cost, "float")} = step.cost;
        """


def _number(scalar: str, dtype: str = "npy_int64") -> str:
    return f"*({dtype} *)PyArray_DATA({scalar})"


def _array(name: str, values: Sequence[str]) -> str:
    """C code that gives arrays of NumPy's one name."""
    return f"PyArrayObject *{name}[] = {{{', '.join(values)}}};"


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
