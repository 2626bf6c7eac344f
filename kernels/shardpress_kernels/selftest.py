"""Self-tests for `shardpress doctor`: compilation without the cache, and the speed of the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shardpress_kernels import backend

theano: Any = backend.load()

_WIDTH = 1024
"""Number of rows and columns of the matrices."""
_PRODUCT_FLOPS = 2 * _WIDTH**3
"""Floating-point operations of a product of two such matrices."""
_N_BYTES = 2**26
"""Size of the array that is sent to the device and back."""
_MIN_SECONDS = 0.2
"""Minimum duration of a measurement."""


class _Copy(theano.Op):
    """An Op that copies a vector in C only, so it needs a working compiler with headers and linker.

    The Op has no version, so its compiled code is never reused.
    """

    __props__ = ()

    def make_node(self, x: Any) -> Any:
        """Apply the Op to a vector."""
        return theano.Apply(self, [x], [x.type()])

    def c_code(
        self, node: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: Mapping[str, str]
    ) -> str:
        """Return the C code."""
        (x,) = inputs
        (copy,) = outputs
        statements = [
            f"Py_XDECREF({copy});",
            f"{copy} = (PyArrayObject *)PyArray_NewCopy({x}, NPY_CORDER);",
            f"if (!{copy}) {{ {sub['fail']} }}",
        ]
        return " ".join(statements)

    def perform(self, node: Any, inputs: Sequence[np.ndarray], outputs: Sequence[Any]) -> None:
        """Raise an error: Theano calls this only if it does not compile."""
        raise RuntimeError("Theano did not compile the test operation, although a compiler is configured")


def time_compilation() -> float:
    """Compile and run a small function; return the seconds that this took.

    Raise `RuntimeError` if the function ran without being compiled, or its result is wrong.
    """
    start = time.monotonic()
    x = theano.tensor.fvector()
    copy = backend.compile_function([x], _Copy()(x))
    values = np.arange(7, dtype=np.float32)
    if not np.array_equal(copy(values), values):
        raise RuntimeError("the compiled test operation returned a wrong copy of seven numbers")
    return time.monotonic() - start


def flops() -> float:
    """Return the floating-point operations per second of float32 products on the active device."""
    values = np.random.default_rng(0).random((_WIDTH, _WIDTH), dtype=np.float32)
    left = backend.shared(values.copy(), "left")
    right = backend.shared(values.copy(), "right")
    out = backend.shared(values.copy(), "out")
    product = backend.compile_function([], [], updates={out: theano.tensor.dot(left, right)})
    backend.use_cores_for(_PRODUCT_FLOPS)
    return _PRODUCT_FLOPS * _calls_per_second(product, lambda: out.get_value(borrow=True))


def bytes_per_second() -> tuple[float, float]:
    """Return the bytes per second of copies to the active device and back; the device must not be the CPU."""
    values = np.random.default_rng(0).integers(0, 256, (_N_BYTES // _WIDTH, _WIDTH), dtype=np.uint8)
    variable = backend.shared(values, name="values")

    def wait() -> None:
        variable.get_value(borrow=True, return_internal_type=True).sync()

    uploads = _calls_per_second(lambda: variable.set_value(values), wait)
    downloads = _calls_per_second(variable.get_value, wait)
    return _N_BYTES * uploads, _N_BYTES * downloads


def _calls_per_second(call: Callable[[], object], wait: Callable[[], object]) -> float:
    """Measure how often `call` can be called per second; `wait` returns when all work that it starts is done."""
    call()  # the first call may compile and allocate
    wait()
    n_calls = 1
    while True:
        start = time.monotonic()
        for _ in range(n_calls):
            call()
        wait()
        seconds = time.monotonic() - start
        if seconds > _MIN_SECONDS:
            return n_calls / seconds
        n_calls *= 2
