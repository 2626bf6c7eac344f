"""A repair of Theano's generated code for OpenCL."""

from __future__ import annotations

from functools import wraps
from typing import Any

__all__ = ["patch_opencl_reduction"]


def patch_opencl_reduction() -> None:
    """Give the generated code of every OpenCL reduction room for all its arguments.

    ``GpuCAReduceCPY.c_code`` declares ``void *args[4 + 2 * nd]`` and writes ``5 + 2 * nd`` entries: the count, the
    output with its offset, the input with its offset, and an extent and a stride for each of `nd` dimensions. The last
    one lands beside the array, on the stack.
    """
    from theano.gpuarray.elemwise import GpuCAReduceCPY

    original_code, original_version = GpuCAReduceCPY.c_code, GpuCAReduceCPY.c_code_cache_version_apply

    @wraps(original_code)
    def c_code(self: Any, node: Any, name: str, inp: Any, out: Any, sub: Any) -> str:
        n_dims = node.inputs[0].ndim
        code: str = original_code(self, node, name, inp, out, sub)
        return code.replace(f"void *args[{4 + 2 * n_dims}];", f"void *args[{5 + 2 * n_dims}];")

    @wraps(original_version)
    def c_code_cache_version_apply(self: Any, node: Any) -> tuple[Any, ...]:
        return (*original_version(self, node), "room for every argument")

    GpuCAReduceCPY.c_code = c_code
    GpuCAReduceCPY.c_code_cache_version_apply = c_code_cache_version_apply
