"""Fixes for errors of Theano in the code that it generates for devices."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any


def repair_generated_code() -> None:
    """Fix generated code before it is compiled. Code that was compiled without the fix is not used again."""
    from theano.gpuarray.elemwise import GpuCAReduceCPY
    from theano.gpuarray.subtensor import GpuAdvancedSubtensor1

    _repair(GpuCAReduceCPY, _room_for_every_argument)
    _repair(GpuAdvancedSubtensor1, _no_wait_for_the_index)


def _room_for_every_argument(node: Any, code: str) -> str:
    """Enlarge the array of arguments of a reduction on OpenCL.

    ``GpuCAReduceCPY.c_code`` declares ``void *args[4 + 2 * nd]`` and writes ``5 + 2 * nd`` entries: the count, the
    output with its offset, the input with its offset, and an extent and a stride for each of `nd` dimensions. The last
    entry is written to the stack after the end of the array.
    """
    n_dims = node.inputs[0].ndim
    return code.replace(f"void *args[{4 + 2 * n_dims}];", f"void *args[{5 + 2 * n_dims}];")


def _no_wait_for_the_index(_node: Any, code: str) -> str:
    """Remove the check of the row numbers, for which each step would wait for the device.

    All row numbers are valid, since they come from a permutation of the rows. The kernel itself ignores numbers that
    are too large, so it never reads outside the rows.
    """
    return re.sub(r"(GpuArray_take1\(.*), 1\);", r"\1, 0);", code)


def _repair(op: Any, repair: Callable[[Any, str], str]) -> None:
    """Make an Op pass its C code through `repair`, whose name becomes part of the version of the code."""
    original_code = op.c_code
    original_version = op.c_code_cache_version_apply

    @wraps(original_code)
    def c_code(self: Any, node: Any, *args: Any) -> str:
        return repair(node, original_code(self, node, *args))

    @wraps(original_version)
    def c_code_cache_version_apply(self: Any, node: Any) -> tuple[Any, ...]:
        return (*original_version(self, node), repair.__name__)

    op.c_code = c_code
    op.c_code_cache_version_apply = c_code_cache_version_apply
