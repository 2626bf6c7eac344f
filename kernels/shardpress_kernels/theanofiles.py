"""Changes of the files of Theano 1.0.5, which `shardpress setup-theano` makes once, and a mark that they are made.

Theano 1.0.5 was written for Python 3.6 and NumPy 1.16. It imports modules that Python 3.12 removed, and uses names that
NumPy 1.24 and 2.0 removed. The same code is used on all versions of Python and NumPy, so that results do not depend on
the version. Other changes replace Theano's cache of compiled modules, fix generated code, and leave out SciPy, whose
import takes 0.5 s, and which this model does not need.

This module does not load Theano, so every package can import it.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_NO_SCIPY = "    raise ImportError('not needed by shardpress')"


class _Change(NamedTuple):
    """Change of a file: new text for ranges of lines, which count from 1 and include their ends."""

    digest: str  # first half of the SHA-256 digest of the file before the change, so that the lines are the right ones
    lines: Mapping[tuple[int, int], str]


_CHANGES = {
    "configdefaults.py": _Change(
        "52da413d8544a391c2df491ebaae9c3e",
        {
            (531, 532): "    import shutil\n    newp = shutil.which(param)",
            (536, 536): "    del shutil",
        },
    ),
    "gof/cc.py": _Change(
        "ef973220715a515c2ecab0b88fa79058",
        {
            (1612, 1624): """\
        for node in self.node_order:
            node.op.prepare_node(node, storage_map, None, 'c')
        from shardpress_kernels.modulecache import module_of
        module = module_of(self)"""
        },
    ),
    # Extension modules find Python's symbols in the process that loads them.
    "gof/cmodule.py": _Change(
        "6a519e5fdfa7f8375c79df3116927244", {(20, 20): "", (23, 23): "", (1636, 1637): "    return [], []"}
    ),
    "gof/cutils.py": _Change(
        "cee70a17f7bea4725f5908c967e0b81e",
        {
            (81, 134): """\
    args = cmodule.GCC_compiler.compile_args(march_flags=False)
    from shardpress_kernels.modulecache import compiled_module
    return compiled_module('cutils_ext', code, args)


run_cthunk = compile_cutils().run_cthunk"""
        },
    ),
    "gof/lazylinker_c.py": _Change(
        "c9d2b0339ceabd35d3a33bf3c10decdf",
        {
            (1, 162): """\
from pathlib import Path

from theano import config
from theano.gof import cmodule

from shardpress_kernels.compiler import check_processor_flags
from shardpress_kernels.modulecache import compiled_module

check_processor_flags(cmodule, config)
code = Path(__file__).with_name('c_code').joinpath('lazylinker_c.c').read_text()
CLazyLinker = compiled_module('lazylinker_ext', code, cmodule.GCC_compiler.compile_args()).CLazyLinker"""
        },
    ),
    # Each reduction on OpenCL wrote one entry after the end of this array.
    "gpuarray/elemwise.py": _Change(
        "3d07bdfb8d5c583682b4aa9c394bfdd3", {(2594, 2594): "        void *args[%(n_args)s + 1];"}
    ),
    "gpuarray/linalg.py": _Change(
        "f0aef9e0d160a155d59db5624013c2dd",
        {
            (5, 5): "",
            (7, 7): "from numpy.linalg import LinAlgError",
            (31, 31): "except (ImportError, OSError, RuntimeError):",
            (38, 38): "except (ImportError, OSError, RuntimeError):",
        },
    ),
    # Without the check of the row numbers, for which each step would wait for the device. All row numbers are valid,
    # since they come from a permutation of the rows, and the kernel ignores numbers that are too large.
    "gpuarray/subtensor.py": _Change(
        "f449010a4e06dd4c0b938569a5785dda",
        {(471, 471): "err = GpuArray_take1(&%(out)s->ga, &%(v)s->ga, &%(idx)s->ga, 0);"},
    ),
    "gpuarray/type.py": _Change(
        "808979b39e3e2c68b7506195edf90bf5",
        {
            (258, 259): "                data = np.array(data, dtype=self.dtype, ndmin=len(self.broadcastable))",
            (277, 277): "                    data = np.asarray(data, dtype=self.dtype)",
        },
    ),
    "misc/may_share_memory.py": _Change("0158b2400b1939087450b0a03b7faad4", {(11, 11): _NO_SCIPY}),
    # Integers that do not fit into the dtype overflow, as in NumPy 1; Theano checks their values.
    "misc/safe_asarray.py": _Change(
        "5ad92ca8c18938083fd44a5ffeb1473a",
        {
            (34, 34): """\
    try:
        rval = np.asarray(a, dtype=dtype, order=order)
    except OverflowError:
        rval = np.asarray(a).astype(dtype, order=order or 'K')"""
        },
    ),
    "misc/windows.py": _Change(
        "51ca64ddea04e830bd16cf51bd7b571d",
        {
            (77, 77): """\
    from shardpress_kernels.compiler import start_program
    p = start_program(command, **params)"""
        },
    ),
    "scalar/basic.py": _Change(
        "3ee5f230ebd4ebf903e4cf704fee5b11",
        {
            (1748, 1748): "        return np.prod(inputs)",
            (2055, 2055): "        if isinstance(x, type(1j)) or isinstance(y, type(1j)):",
            (2323, 2323): "        self.ctor = np.dtype(o_type.dtype).type",
            (3712, 3712): "        return type(1j)(x, y)",
            (3751, 3751): "            return np.complex64(type(1j)(x, y))",
            (3753, 3753): "            return np.complex128(type(1j)(x, y))",
        },
    ),
    "scalar/basic_scipy.py": _Change("6ff593fd4e2528e2b81353910bfd11b3", {(20, 20): _NO_SCIPY}),
    "scalar/sharedvar.py": _Change(
        "35de8d0be6f5e7d262d779be7718c5a9", {(59, 59): "    value = np.dtype(dtype).type(value)"}
    ),
    # Without this change nothing fails, but Theano no longer recognizes constants, and skips optimizations.
    "tensor/basic.py": _Change("8792a2132757a70571061874e21d8be1", {(381, 381): "        builtins.complex(data)"}),
    "tensor/blas.py": _Change("2d3b13d35b27aee2a32ffa5baf7a4b55", {(134, 138): "", (163, 163): _NO_SCIPY}),
    "tensor/elemwise.py": _Change(
        "b0e44ed6b8ba130b016765a089d5752f", {(700, 700): "            char = np.dtype(out_dtype).char"}
    ),
    "tensor/nnet/abstract_conv.py": _Change("8c1b470b4f8e97555dbecbc31f0d837a", {(27, 27): _NO_SCIPY}),
    "tensor/nnet/conv.py": _Change("289f56ab419d20217e963e2669e39fc0", {(30, 30): _NO_SCIPY}),
    "tensor/opt.py": _Change(
        "d8a1318f6cd8540ed62824a451df834f",
        {(6074, 6074): "                        m1 = np.asarray(-1).astype(node.outputs[0].dtype)"},
    ),
    "tensor/slinalg.py": _Change("292da41f0fb9bf3f9ef8c20c2a617c11", {(9, 9): _NO_SCIPY}),
    "tests/breakpoint.py": _Change("714a0b952d96f348b8a57f30ed77f4a9", {(3, 3): ""}),
    # The call is made when Theano has read its settings, but has not compiled anything yet. This file has the mark, and
    # is therefore changed last.
    "__init__.py": _Change(
        "3cb6cf7e69a2158b068817416d5d52d6",
        {(98, 98): "from shardpress_kernels.compilecache import prepare_cache\nprepare_cache(config)"},
    ),
}


class TheanoNotSetUp(RuntimeError):
    """Theano is not installed, or `shardpress setup-theano` has not changed its files."""


class TheanoDiffers(RuntimeError):
    """A file of Theano is missing, or differs from version 1.0.5."""


def check_theano() -> None:
    """Raise `TheanoNotSetUp` unless this process would import a Theano with the mark of all changes."""
    if not is_set_up():
        # With -I, Python imports nothing from the current directory.
        command = f"{shlex.quote(sys.executable)} -I -m shardpress setup-theano"
        raise TheanoNotSetUp(f"this version of shardpress has not set up Theano in {sys.executable}. Run: {command}")


def is_set_up() -> bool:
    """Return whether this process would import a Theano with the mark of all changes."""
    folder = theano_folder()
    if folder is None:
        return False
    with open(folder / "__init__.py", "rb") as file:
        return file.read().endswith(_mark())


def theano_folder() -> Path | None:
    """Return the directory of the package that this process would import; None if there is none."""
    spec = find_spec("theano")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent


def changed_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files of Theano after the changes, in the order in which to write them.

    Raise `TheanoDiffers` unless `folder` has the files of version 1.0.5.
    """
    contents = {}
    for name, change in _CHANGES.items():
        contents[name] = _apply(change, folder / name)
    contents["__init__.py"] += _mark()
    return contents


def _apply(change: _Change, path: Path) -> bytes:
    content = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(content).hexdigest()[:32]
    if digest != change.digest:
        raise TheanoDiffers(f"file={path} has the digest {digest}, expected {change.digest}, as in version 1.0.5")
    lines = content.decode().split("\n")
    for (first, last), text in sorted(change.lines.items(), reverse=True):
        lines[first - 1 : last] = text.split("\n")
    return "\n".join(lines).encode()


def _mark() -> bytes:
    """Return the last line of the changed package, with a hash of all changes."""
    return f"# shardpress {hashlib.sha256(repr(_CHANGES).encode()).hexdigest()[:16]}\n".encode()
