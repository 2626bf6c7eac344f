"""Tests of the layer that runs Theano on current versions of Python and NumPy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from shardpress_kernels import compatibility
from tests.support.interpreters import REPOSITORY, environment

# Modules that Theano imports, and that Python 3.12 or later versions of packages removed.
REMOVED = ["distutils", "distutils.spawn", "distutils.sysconfig", "imp", "numpy.distutils", "pkg_resources"]
UNCHANGED = """
import builtins, sys
import numpy as np

before = dict(vars(np))
its_import = builtins.__import__
from shardpress_kernels.backend import load

theano = load()
import theano.gpuarray

changed = [name for name in vars(np) if name not in before or vars(np)[name] is not before[name]]
assert not {"bool", "complex", "product"} & set(changed), changed
assert builtins.__import__ is its_import
assert not {"imp", "numpy.distutils", "pkg_resources"} & set(sys.modules)
assert np is not theano.tensor.basic.np
"""


@pytest.fixture
def import_for_theano() -> Callable[..., Any]:
    """Return the function that executes the import statements of Theano."""
    return compatibility._import_replacement


@pytest.mark.process
@pytest.mark.compiler
def test_importing_theano_changes_neither_numpy_nor_python() -> None:
    program = [sys.executable, "-W", "ignore", "-c", UNCHANGED]
    done = subprocess.run(program, cwd=REPOSITORY, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", REMOVED)
def test_removed_modules_are_replaced(name: str, import_for_theano: Callable[..., Any]) -> None:
    top_level = import_for_theano(name)
    module = import_for_theano(name, fromlist=("any",))
    for part in name.split(".")[1:]:
        top_level = getattr(top_level, part)
    assert top_level is module


def test_other_imports_are_unchanged(import_for_theano: Callable[..., Any]) -> None:
    assert import_for_theano("json") is sys.modules["json"]
    assert import_for_theano("os.path") is sys.modules["os"]
    assert import_for_theano("numpy.linalg", fromlist=("norm",)) is np.linalg


def test_submodules_of_numpy_belong_to_the_replacement(import_for_theano: Callable[..., Any]) -> None:
    numpy = import_for_theano("numpy")
    assert import_for_theano("numpy.fft") is numpy
    assert numpy.fft is np.fft
    assert numpy.complex is complex
    with pytest.raises(AttributeError):
        numpy.no_such_name  # noqa: B018


@pytest.mark.filterwarnings("ignore:NumPy will stop allowing conversion:DeprecationWarning")  # NumPy 1.26 warns
def test_conversions_behave_as_in_numpy_1(import_for_theano: Callable[..., Any]) -> None:
    numpy = import_for_theano("numpy")
    values = np.arange(3.0)
    assert numpy.array(values, copy=False) is values
    assert numpy.array([1, 2], dtype="int8", copy=False).dtype == "int8"
    assert numpy.array(values) is not values
    assert numpy.asarray(300, dtype="int8").dtype == "int8"
    assert numpy.asarray(values) is values
    assert numpy.sctype2char(np.float64) == "d"


def test_the_compile_cache_depends_on_the_layer() -> None:
    from shardpress_kernels.compilecache import default_cache

    assert compatibility.fingerprint_adaptation() in default_cache()


def test_generated_code_begins_with_the_macros() -> None:
    class Compiler:
        @staticmethod
        def compile_str(module_name: str, src_code: str, location: str) -> tuple[str, str]:
            return src_code, location

    class Cmodule:
        GCC_compiler = Compiler
        std_lib_dirs_and_libs = None

    compatibility.adapt_compiler(Cmodule)
    code, location = Cmodule.GCC_compiler.compile_str("name", '#include "numpy/npy_3kcompat.h"\nint i;\n', location="x")
    assert code.startswith("#define NPY_TARGET_VERSION")
    assert code.endswith("#include <Python.h>\nint i;\n")
    assert location == "x"
    assert Cmodule.std_lib_dirs_and_libs() == ([], [])
