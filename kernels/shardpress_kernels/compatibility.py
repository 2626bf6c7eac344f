"""Run Theano 1.0.5 on current versions of Python and NumPy.

Theano 1.0.5 was written for Python 3.6 and NumPy 1.16. It imports modules that Python 3.12 removed, uses names that
NumPy 1.24 and 2.0 removed, and generates C code against an older API. The files of Theano stay as they are, and so do
NumPy and Python for all other code: a finder on ``sys.meta_path`` loads Theano's modules with their own ``__import__``,
which gives them replacements for these modules, and the generated C code begins with a few macros.

The same code is used on all versions of Python, so that results do not depend on the version.
"""

from __future__ import annotations

import builtins
import hashlib
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

_HAS_NUMPY_2 = np.lib.NumpyVersion(np.__version__) >= "2.0.0"

# This header is part of NumPy, but not of its public API, and differs between versions. Theano needs a few of its
# macros, which _PRELUDE defines.
_PRIVATE_HEADER = '"numpy/npy_3kcompat.h"'

# NumPy hides the field `elsize` of descriptors unless the code is compiled for this version of NumPy alone.
_PRELUDE = """\
#define NPY_TARGET_VERSION NPY_API_VERSION
#ifndef NPY_PY3K
#define NPY_PY3K 1
#endif
#define PyInt_Check PyLong_Check
#define PyInt_AsLong PyLong_AsLong
#define PyInt_FromLong PyLong_FromLong
#define NpyCapsule_AsVoidPtr(capsule) PyCapsule_GetPointer(capsule, NULL)
#define NpyCapsule_GetDesc PyCapsule_GetContext
#define NpyCapsule_Check PyCapsule_CheckExact
"""


def adapt_imports() -> None:
    """Load the modules of Theano that are imported from now on with replacements for removed modules and names."""
    if not any(isinstance(finder, _TheanoFinder) for finder in sys.meta_path):
        # The finder stays, because Theano imports some modules when they are first used.
        sys.meta_path.insert(0, _TheanoFinder())


def adapt_compiler(cmodule: Any) -> None:
    """Make Theano's generated C code compile against the headers of current versions of Python and NumPy.

    Parameters
    ----------
    cmodule : module
        ``theano.gof.cmodule``.
    """
    original_compile = cmodule.GCC_compiler.compile_str

    def compile_str(module_name: str, src_code: str, *args: Any, **options: Any) -> Any:
        code = _PRELUDE + src_code.replace(_PRIVATE_HEADER, "<Python.h>")
        return original_compile(module_name, code, *args, **options)

    cmodule.GCC_compiler.compile_str = staticmethod(compile_str)
    # Extension modules find Python's symbols in the process that loads them.
    cmodule.std_lib_dirs_and_libs = lambda: ([], [])


@cache
def fingerprint_adaptation() -> str:
    """Return a hash of this module, for the name of the compile cache: the C code depends on it."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


class _TheanoFinder(MetaPathFinder):
    """Finder of Theano's modules, which loads them with `_TheanoLoader`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of Theano, and None for other modules."""
        if fullname.partition(".")[0] != "theano":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TheanoLoader(spec.loader.name, spec.loader.path)
        return spec


class _TheanoLoader(SourceFileLoader):
    """Loader of modules whose import statements call `_import_replacement`."""

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code with its own ``__builtins__``, which CPython looks up in the module's globals."""
        vars(module)["__builtins__"] = vars(builtins) | {"__import__": _import_replacement}
        super().exec_module(module)


def _import_replacement(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """Import a module for Theano; the parameters are those of ``__import__``."""
    replacements = _replacements()
    if level != 0:
        return builtins.__import__(name, globals, locals, fromlist or (), level)
    top_level = name.partition(".")[0]
    if fromlist and name in replacements:
        return replacements[name]
    if not fromlist and name in replacements:
        return replacements[top_level]
    imported = builtins.__import__(name, globals, locals, fromlist or (), level)
    if not fromlist:
        return replacements.get(top_level, imported)
    return imported


@cache
def _replacements() -> dict[str, Any]:
    """Return the replacements of modules by their names."""
    distutils = _distutils()
    numpy = _numpy()
    return {
        "distutils": distutils,
        "distutils.spawn": distutils.spawn,
        "distutils.sysconfig": distutils.sysconfig,
        "imp": SimpleNamespace(find_module=_find_no_module),
        "numpy": numpy,
        "numpy.distutils": numpy.distutils,
        "numpy.distutils.__config__": numpy.distutils.__config__,
        "numpy.linalg.linalg": np.linalg,
        "pkg_resources": SimpleNamespace(DistributionNotFound=ImportError),
    }


def _distutils() -> SimpleNamespace:
    """Return a replacement of ``distutils``, which Python 3.12 removed."""
    return SimpleNamespace(
        spawn=SimpleNamespace(find_executable=shutil.which),
        sysconfig=SimpleNamespace(
            get_config_var=sysconfig.get_config_var,
            get_python_inc=_include_directory,
        ),
    )


def _include_directory(plat_specific: bool = False) -> str:
    """Return the directory of Python's headers."""
    return sysconfig.get_path("platinclude" if plat_specific else "include")


def _find_no_module(name: str) -> Any:
    """Report each module as missing, as ``imp.find_module`` does: Theano searches for optional modules only."""
    raise ImportError(name)


def _numpy() -> Any:
    """Return NumPy with the names that NumPy 1.24 and 2.0 removed, or whose behaviour NumPy 2 changed."""
    private = np._core if _HAS_NUMPY_2 else np.core  # type: ignore[attr-defined]
    multiarray = SimpleNamespace(
        _get_ndarray_c_version=private._multiarray_umath._get_ndarray_c_version,
    )
    replaced: dict[str, Any] = {
        # Without `complex` nothing fails, but Theano no longer recognizes constants and skips optimizations silently.
        # Theano takes `bool` for the name of a dtype.
        "bool": np.bool_,
        "complex": complex,
        "array": _array,
        "asarray": _asarray,
        "core": SimpleNamespace(_multiarray_umath=multiarray, multiarray=multiarray),
        "distutils": SimpleNamespace(
            __config__=SimpleNamespace(),  # our flags name the BLAS
            misc_util=SimpleNamespace(get_numpy_include_dirs=lambda: [np.get_include()]),
        ),
        "product": np.prod,
        "sctype2char": lambda kind: np.dtype(kind).char,
    }
    numpy = ModuleType("numpy")
    vars(numpy).update(vars(np) | replaced)
    return numpy


def _array(values: Any, dtype: Any = None, copy: bool = True, **options: Any) -> np.ndarray:
    """Return an array; with ``copy=False`` it is a copy only if necessary, as in NumPy 1."""
    options["copy"] = None if _HAS_NUMPY_2 and not copy else copy
    return np.array(values, dtype=dtype, **options)


def _asarray(values: Any, dtype: Any = None, order: Any = None) -> np.ndarray:
    """Return an array. Integers that do not fit into the dtype overflow, as in NumPy 1; Theano checks their values."""
    try:
        return np.asarray(values, dtype=dtype, order=order)
    except OverflowError:
        return np.asarray(values).astype(dtype, order=order or "K")
