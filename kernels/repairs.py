"""Repairs of Theano: of the code that it generates for devices, and of the versions of code in its cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from typing import Any

__all__ = ["repair_code_versions", "repair_generated_code"]


def repair_code_versions(op_module: Any) -> None:
    """Give Ops whose C code comes from files the same version in each process.

    Theano takes ``hash`` of their text, which differs between processes. Their code, such as that of ``DimShuffle``, is
    then compiled again at each start, and the cache of modules grows without bound.

    Parameters
    ----------
    op_module : module
        ``theano.gof.op``.
    """

    def c_code_cache_version(self: Any) -> tuple[Any, ...]:
        digest = sha256("\0".join(self.func_codes).encode()).hexdigest()
        if hasattr(self, "params_type"):
            return (digest, self.params_type.c_code_cache_version())
        return (digest,)

    op_module.COp.c_code_cache_version = c_code_cache_version


def repair_generated_code() -> None:
    """Repair generated code before it is compiled. Code that was compiled without the repair is not used again."""
    from theano.gpuarray.elemwise import GpuCAReduceCPY
    from theano.gpuarray.subtensor import GpuAdvancedSubtensor1

    _repair(GpuCAReduceCPY, _room_for_every_argument)
    _repair(GpuAdvancedSubtensor1, _no_wait_for_the_index)


def _room_for_every_argument(node: Any, code: str) -> str:
    """Make room for all arguments of a reduction on OpenCL.

    ``GpuCAReduceCPY.c_code`` declares ``void *args[4 + 2 * nd]`` and writes ``5 + 2 * nd`` entries: the count, the
    output with its offset, the input with its offset, and an extent and a stride for each of `nd` dimensions. The last
    one is written to the stack after the array.
    """
    n_dims = node.inputs[0].ndim
    return code.replace(f"void *args[{4 + 2 * n_dims}];", f"void *args[{5 + 2 * n_dims}];")


def _no_wait_for_the_index(_node: Any, code: str) -> str:
    """Do not wait for the device in each step to learn whether a row number was too large.

    No number is too large, since all come from an order of the rows. The kernel ignores such a number, and reads
    nothing outside the rows.
    """
    return re.sub(r"(GpuArray_take1\(.*), 1\);", r"\1, 0);", code)


def _repair(op: Any, repair: Callable[[Any, str], str]) -> None:
    """Have an Op pass its C code through a function, whose name becomes part of the version of the code."""
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
