"""Macros that the C++ compiler predefines with the flags of Theano."""

from __future__ import annotations

import subprocess
from functools import cache
from typing import Any

from shardpress_kernels import backend


@cache
def macros() -> frozenset[str]:
    """Return the predefined macros, for example ``__AVX2__`` if kernels are compiled for AVX2."""
    theano: Any = backend.load()
    flags = theano.gof.cmodule.GCC_compiler.compile_args()
    command = [theano.config.cxx, *flags, "-dM", "-E", "-x", "c++", "/dev/null"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(line.split()[1] for line in result.stdout.splitlines())
