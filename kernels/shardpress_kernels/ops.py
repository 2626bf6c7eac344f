"""The model on the CPU as three Ops: one encodes, one computes reconstruction errors, and one takes a training step.

Each Op takes raw rows in their own dtype. It works tile by tile in the caches, on all cores, and releases the GIL. The
C code is in the directory ``native``, one subject per file. `shardpress_kernels.modulecache` compiles it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from shardpress_kernels import backend
from shardpress_kernels.activations import ACTIVATIONS, Activation
from shardpress_kernels.hostmath import threshold
from shardpress_kernels.network import Network
from shardpress_kernels.rules import DECAY, RULES, UpdateRule

theano: Any = backend.load()
tensor = theano.tensor

DTYPES = frozenset(f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)) | {"float32", "float64"}
"""Names of the dtypes that rows can have."""

_FOLDER = Path(__file__).parent / "native"
# A header comes after the headers that it depends on.
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
    """Return the text of all headers and of one file of the directory ``native``."""
    names = [*(f"{header}.h" for header in _HEADERS), file]
    return "\n".join((_FOLDER / name).read_text() for name in names)


class _Inputs(NamedTuple):
    """Names of C variables: inputs of an Op without the scaling."""

    first: list[str]
    parameters: list[str]
    last: list[str]


class _Native(theano.Op):
    """An Op whose first input is the rows, and whose C code is a file of the directory ``native``.

    Its inputs include all parameters of the network, in the order of the network's shapes. The last inputs are the
    scaling: center and scale, or nothing; `n_inputs` does not count them. The inputs at the positions `changed` are
    changed, and are returned as the last outputs, after outputs of `new_types`. By default an Op changes copies of
    them, as Theano requires; an optimization then lets it change them in place.
    """

    __props__: tuple[str, ...] = ("network", "inplace")
    file = ""
    new_types: tuple[Any, ...] = ()

    def __init__(self, network: Network, n_inputs: int, changed: range, inplace: bool) -> None:
        self.network = network
        self.n_inputs = n_inputs
        self.changed = changed
        self.inplace = inplace
        if inplace:
            # Theano then ensures that no other operation reads these inputs afterwards.
            n_new = len(self.new_types)
            self.destroy_map = {n_new + i: [position] for i, position in enumerate(changed)}

    def split(self, inputs: Sequence[str], n_first: int) -> _Inputs:
        """Split inputs into the first `n_first`, the parameters, and the rest."""
        end = n_first + len(self.network.shapes)
        return _Inputs(list(inputs[:n_first]), list(inputs[n_first:end]), list(inputs[end:]))

    def in_place(self) -> _Native:
        """Return the same Op in the variant that changes its inputs in place."""
        settings = {name: getattr(self, name) for name in self.__props__}
        settings["inplace"] = True
        return type(self)(**settings)

    def make_node(self, *inputs: Any) -> Any:
        """Apply the Op. Inputs are not checked, because only this package makes them."""
        new = [new_type() for new_type in self.new_types]
        changed = [inputs[i].type() for i in self.changed]
        return theano.Apply(self, list(inputs), new + changed)

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """Return C code that changes inputs in place, allocates the new outputs, and then sets ``done`` to 1."""
        raise NotImplementedError

    def c_code(self, node: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: Any) -> str:
        """Return C code that uses the changed inputs, or copies of them, as outputs, and calls the native code."""
        arrays = list(inputs)
        lines = ["int done = 0;"]
        n_new = len(self.new_types)
        for position, output in zip(self.changed, outputs[n_new:], strict=True):
            lines += self._output_of_input(arrays[position], output, sub["fail"])
            arrays[position] = output
        scaling = arrays[self.n_inputs :] or ["NULL", "NULL"]
        call = self.call(arrays[: self.n_inputs], scaling, outputs[:n_new], f"&memory_{name}")
        lines.append(f"{{ {call} }}")  # in a block, because a jump to the failure label must not cross declarations
        lines.append(f"if (!done) {sub['fail']}")
        return "\n".join(lines)

    def _output_of_input(self, array: str, output: str, fail: str) -> list[str]:
        """Return C statements that use an input, or its copy, as an output."""
        release = f"Py_XDECREF({output});"  # the output of the previous call
        if self.inplace:
            return [release, f"{output} = {array}; Py_INCREF({output});"]
        return [
            release,
            f"{output} = (PyArrayObject *)PyArray_NewCopy({array}, NPY_CORDER);",
            f"if (!{output}) {fail}",
        ]

    def macros(self) -> dict[str, Any]:
        """Return the macros that describe the network to the C code. Widths are not among them."""
        hidden = ACTIVATIONS[self.network.activation]
        code = ACTIVATIONS[self.network.code]
        names = [f'"{name}"' for name in self.network.shapes]
        return {
            "N_LAYERS": self.network.n_layers,
            **_activation_macros("HIDDEN", hidden),
            **_activation_macros("CODE", code),
            "CODE_IS_BOUNDED": int(code.limits is not None),
            "CENTER": f"{code.middle}f",
            "HAS_GAIN": int(self.network.gain),
            "HAS_HEAD": int(self.network.head is not None),
            "IS_NESTED": int(self.network.nested),
            "TARGETS_ARE_CLASSES": int(self.network.head is not None and self.network.head.kind == "classes"),
            "NAMES": ", ".join(names),
        }

    def c_support_code_apply(self, node: Any, name: str) -> str:
        """Return all C code for the dtypes of a node."""
        macros = _dtype_macros(node.inputs[0], node.inputs[self.n_inputs :], self.macros())
        defines = [f"#define {macro} {value}" for macro, value in macros.items()]
        includes = ["#include <math.h>", "#include <stdlib.h>", "#include <string.h>"]
        return "\n".join([*includes, *defines, _source(self.file)])

    def c_compile_args(self) -> list[str]:
        """Return flags for threads, and for vectorized square roots, which cannot set errno."""
        return ["-pthread", "-fno-math-errno"]

    def c_support_code_struct(self, node: Any, name: str) -> str:
        """Declare the memory that a compiled function keeps between its calls."""
        return f"Memory memory_{name};"

    def c_init_code_struct(self, node: Any, name: str, sub: Any) -> str:
        """Initialize the memory as empty."""
        return f"memset(&memory_{name}, 0, sizeof memory_{name});"

    def c_cleanup_code_struct(self, node: Any, name: str) -> str:
        """Free the memory."""
        return f"free(memory_{name}.start);"


def _activation_macros(prefix: str, activation: Activation) -> dict[str, str]:
    return {
        f"{prefix}_VALUE(z)": f"({activation.c_value})",
        f"{prefix}_GRADIENT(gradient, out)": f"({activation.c_gradient})",
    }


def _dtype_macros(rows: Any, scaling: Sequence[Any], network: dict[str, Any]) -> dict[str, Any]:
    """Return all macros: the macros for the dtypes of rows and scaling, and the macros of the network."""
    row = _c_type(rows)
    scale = _c_type(scaling[0]) if scaling else "float"
    # The bits of Inf, NaN and negative numbers, read as unsigned integers, are larger than the bits of all others.
    bits = "npy_uint64" if scale == "npy_float64" else "npy_uint32"
    return {
        "ROW": row,
        "SCALING": scale,
        "BITS": bits,
        **network,
        "ROWS_ARE_BYTES": int(row == "npy_uint8" and scale == "npy_float32"),
        "ROWS_ARE_FLOATS": int(row == "npy_float32" and scale in ("float", "npy_float32")),
    }


def _c_type(variable: Any) -> str:
    return str(variable.type.dtype_specs()[1])


class Encode(_Native):
    """``(rows, *parameters, n_threads, low, high, out, inside, *scaling) -> out, inside``.

    `out` (n_rows, n_features), float32, is filled with features. `inside` (n_rows,), bool, is true if all values of a
    row are between low and high, and all of its features are finite. NaN and Inf are outside the range. If `inside` is
    empty, rows are not checked.

    The bits of a row's features do not depend on other rows or on the number of threads. Rows of bytes that are scaled
    in float32 are multiplied as integers if the processor has an instruction for it, and if this is at least as
    accurate for W and the scaling: see ``native/quantized.h``. The quantized W is kept between calls.
    """

    file = "encode.c"

    def __init__(self, network: Network, inplace: bool = False) -> None:
        n_inputs = len(network.shapes) + 6
        super().__init__(network, n_inputs, range(n_inputs - 2, n_inputs), inplace)

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """Encode in C."""
        (rows,), parameters, (n_threads, low, high, out, inside) = self.split(inputs, 1)
        arguments = [memory, rows, "parameters", _number(n_threads), out, low, high, inside, *scaling]
        return f"{_array('parameters', parameters)} done = encode_arrays({', '.join(arguments)});"


class Errors(_Native):
    """``(rows, features, *parameters, n_threads, out, *scaling) -> out``: mean squared errors (n_rows,), float32.

    The rows are reconstructed from these features (n_rows, n_outputs), float32, or from those that the network computes
    if `features` has no columns.
    """

    file = "reconstruction.c"

    def __init__(self, network: Network, inplace: bool = False) -> None:
        n_inputs = len(network.shapes) + 4
        super().__init__(network, n_inputs, range(n_inputs - 1, n_inputs), inplace)

    def macros(self) -> dict[str, Any]:
        """Return the macros that describe the network and the level of the given features to the C code."""
        return {**super().macros(), "OUTPUT_LEVEL": self.network.output.n_layers}

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """Compute errors in C."""
        (rows, features), parameters, (n_threads, out) = self.split(inputs, 2)
        arguments = [memory, rows, features, "parameters", _number(n_threads), out, *scaling]
        return f"{_array('parameters', parameters)} done = errors_arrays({', '.join(arguments)});"


class Step(_Native):
    """A step of training.

    The inputs are ``(rows, *numbers, *noise, *kept, *targets, rate, n_threads, *parameters, *states, *scaling)``.
    The outputs are the mean squared error of the minibatch before the step, the new parameters, and the new states of
    the rule in the order of the parameters. Their bits do not depend on the number of threads.

    If `resident`, the minibatch is given as the numbers, int64, of its rows in `rows`. With a corruption, the `noise`
    (n_rows, n_inputs), uint8, selects the entries that the network does not see. A nested network has the input `kept`
    (n_rows,), float32. A network with a head has three inputs `targets`, as in
    `shardpress_kernels.graph.TargetVariables`. The input `rate` is `shardpress_kernels.updates.rate_of` of the learning
    rate.
    """

    __props__ = ("network", "rule", "corruption", "resident", "inplace")
    file = "step.c"
    new_types = (tensor.fscalar,)  # the cost

    def __init__(self, network: Network, rule: str, corruption: float, resident: bool, inplace: bool = False) -> None:
        self.rule = rule
        self.corruption = float(corruption)
        self.resident = resident
        self._n_first = 3 + bool(corruption) + resident + network.nested + 3 * (network.head is not None)
        n_changed = len(network.shapes) * (1 + len(RULES[rule].states))
        end = self._n_first + n_changed
        super().__init__(network, end, range(self._n_first, end), inplace)

    @property
    def _record(self) -> UpdateRule:
        # The record is not an attribute, because Theano pickles Ops for the keys of its compile cache.
        return RULES[self.rule]

    def macros(self) -> dict[str, Any]:
        """Return the macros that describe the network and the rule to the C code."""
        macros = super().macros()
        names = [*self._record.states, "unused", "unused_too"]
        macros["STATE_0"] = names[0]
        macros["STATE_1"] = names[1]
        macros["DECAY"] = f"{DECAY}f"
        macros["UPDATE"] = " ".join(self._record.c.split())
        return macros

    def call(self, inputs: Sequence[str], scaling: Sequence[str], outputs: Sequence[str], memory: str) -> str:
        """Take a step in C."""
        first, parameters, states = self.split(inputs, self._n_first)
        rows, *optional, rate, n_threads = first
        (cost,) = outputs
        numbers = optional.pop(0) if self.resident else "NULL"
        calls = [
            f"take_rows(&step.rows, {rows}, {numbers}, {', '.join(scaling)})",
            f"take_parameters(&step, parameters, states, {len(self._record.states)})",
        ]
        if self.corruption:
            calls.append(f"take_noise(&step, {optional.pop(0)}, {threshold(self.corruption)})")
        if self.network.nested:
            calls.append(f"take_kept(&step, {optional.pop(0)})")
        if self.network.head is not None:
            targets, factor, scale = optional
            calls.append(f"take_targets(&step, {targets}, {_number(factor, 'float')}, {_number(scale, 'float')})")
        return f"""
            {_array("parameters", parameters)}
            {_array("states", states)}
            Step step;
            memset(&step, 0, sizeof step);
            step.rate = {_number(rate, "float")};
            step.n_threads = {_number(n_threads)};
            Py_XDECREF({cost});
            {cost} = (PyArrayObject *)PyArray_SimpleNew(0, NULL, NPY_FLOAT32);
            done = {cost} && {" && ".join(calls)} && step_arrays(&step, {memory});
            if (done)
                {_number(cost, "float")} = step.cost;
        """


def _number(scalar: str, dtype: str = "npy_int64") -> str:
    """Return a C expression for the value of a NumPy array without dimensions."""
    return f"*({dtype} *)PyArray_DATA({scalar})"


def _array(name: str, values: Sequence[str]) -> str:
    """Return a C declaration of an array of NumPy arrays."""
    return f"PyArrayObject *{name}[] = {{{', '.join(values)}}};"


@theano.gof.local_optimizer([Encode, Errors, Step])
def _in_place(node: Any) -> Any:
    """Let Ops change inputs in place if no other operation needs them."""
    if not isinstance(node.op, _Native) or node.op.inplace:
        return False
    return node.op.in_place()(*node.inputs, return_list=True)


theano.compile.optdb.register(
    "shardpress_in_place",
    theano.gof.TopoOptimizer(_in_place, failure_callback=theano.gof.TopoOptimizer.warn_inplace),
    75,  # the position at which Theano registers its own in-place optimizations
    "fast_run",
    "inplace",
)
