"""Fixes for errors of Theano in the code that it generates for devices, and in the versions of code in its cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from hashlib import sha256
from typing import Any


def repair_code_versions(op_module: Any) -> None:
    """Give Ops whose C code comes from files the same version in each process.

    Theano uses the ``hash`` of the text of these files, which differs between processes. Without the fix, the code of
    such Ops, for example ``DimShuffle``, is compiled again at each start, and the cache of modules grows without bound.
    """

    def c_code_cache_version(self: Any) -> tuple[Any, ...]:
        digest = sha256("\0".join(self.func_codes).encode()).hexdigest()
        if hasattr(self, "params_type"):
            return (digest, self.params_type.c_code_cache_version())
        return (digest,)

    op_module.COp.c_code_cache_version = c_code_cache_version


def repair_module_versions(linker_module: Any) -> None:
    """Keep the compiled code of Ops without properties for other processes.

    Theano adds the tuple ``__props__`` of each Op to the version of its module, and treats an empty tuple as a missing
    version. Without the fix, the code of such Ops, for example ``GpuDot22`` and ``HostFromGpu``, is compiled again at
    each start.
    """
    original_key = linker_module.CLinker.cmodule_key_

    @wraps(original_key)
    def cmodule_key_(self: Any, graph: Any, *args: Any, **options: Any) -> Any:
        key = original_key(self, graph, *args, **options)
        if key is None or key[0]:
            return key
        version = []
        for node in self.schedule(graph):
            version.append(node.op.c_code_cache_version_apply(node))
            version.extend(variable.type.c_code_cache_version() for variable in (*node.inputs, *node.outputs))
        return (tuple(version), key[1]) if all(version) else key

    linker_module.CLinker.cmodule_key_ = cmodule_key_


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
