"""Something that is compiled anew each time: the proof that compiler, headers and linker do their work today."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernels import backend

theano: Any = backend.load()

__all__ = ["compile_anew"]


class _Copy(theano.Op):
    """A copy of a vector, in C alone. It has no version, so what is compiled is kept for nobody."""

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
    if not np.array_equal(backend.compiled([x], _Copy()(x))(given), given):
        raise RuntimeError("a copy of seven numbers comes out wrong")
    return time.monotonic() - start
