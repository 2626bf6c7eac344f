"""What is tried before it is relied on: that the compiler does its work today, and how fast the device is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kernels import backend

theano: Any = backend.load()

__all__ = ["bytes_per_second", "compile_anew", "flops"]

_HEIGHT = 1024  # of square matrices
_BYTES = 2**26
_LONG_ENOUGH = 0.2  # seconds


class _Copy(theano.Op):
    """A copy of a vector, in C alone: the proof that compiler, headers and linker do their work.

    It has no version, so what is compiled is kept for nobody.
    """

    __props__ = ()

    def make_node(self, x: Any) -> Any:
        """Apply it."""
        return theano.Apply(self, [x], [x.type()])

    def c_code(
        self, node: Any, name: str, inputs: Sequence[str], outputs: Sequence[str], sub: Mapping[str, str]
    ) -> str:
        """Give the code."""
        (x,), (z,) = inputs, outputs
        return (
            f"Py_XDECREF({z}); {z} = (PyArrayObject *)PyArray_NewCopy({x}, NPY_CORDER); if (!{z}) {{ {sub['fail']} }}"
        )

    def perform(self, node: Any, inputs: Sequence[np.ndarray], outputs: Sequence[Any]) -> None:
        """Refuse: without a compiler it is not the trial that was asked for."""
        raise RuntimeError("it was not compiled")


def compile_anew() -> float:
    """Compile a small function, and run it.

    Returns
    -------
    float
        Seconds that it took.

    Raises
    ------
    RuntimeError
        When it runs without having been compiled, or what comes out is wrong.
    kernels.compiler.CompilerFailed
    """
    start = time.monotonic()
    x = theano.tensor.fvector()
    given = np.arange(7, dtype=np.float32)
    if not np.array_equal(backend.compile_function([x], _Copy()(x))(given), given):
        raise RuntimeError("a copy of seven numbers comes out wrong")
    return time.monotonic() - start


def flops() -> float:
    """Floating-point operations a second, in products of float32 on the active device."""
    values = np.random.default_rng(0).random((_HEIGHT, _HEIGHT), dtype=np.float32)
    left, right, out = (backend.shared(values.copy(), name) for name in ("left", "right", "out"))
    product = backend.compile_function([], [], updates={out: theano.tensor.dot(left, right)})
    n_flops = 2 * _HEIGHT**3
    backend.use_cores_for(n_flops)
    return n_flops * _calls_per_second(product, lambda: out.get_value(borrow=True))


def bytes_per_second() -> tuple[float, float]:
    """How fast an array goes to the active device, which is not the CPU, and back."""
    values = np.random.default_rng(0).integers(0, 256, (_BYTES // _HEIGHT, _HEIGHT), dtype=np.uint8)
    variable = backend.shared(values, name="values")

    def wait() -> None:
        variable.get_value(borrow=True, return_internal_type=True).sync()

    there = _calls_per_second(lambda: variable.set_value(values), wait)
    return _BYTES * there, _BYTES * _calls_per_second(variable.get_value, wait)


def _calls_per_second(call: Callable[[], object], wait: Callable[[], object]) -> float:
    """Of calls whose work is done behind `wait` alone: a device works on after they have returned."""
    call()  # the first one may compile, and allocate
    wait()
    n_calls = 1
    while True:
        start = time.monotonic()
        for _ in range(n_calls):
            call()
        wait()
        seconds = time.monotonic() - start
        if seconds > _LONG_ENOUGH:
            return n_calls / seconds
        n_calls *= 2
