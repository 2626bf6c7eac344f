"""Tests of the cache of compiled modules: a process reads only the necessary records."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from shardpress_kernels.modulecache import _recent_libraries
from tests.support.interpreters import run_python

COMPILE = """
from shardpress_kernels import backend
theano = backend.load()
symbol = theano.tensor.fvector()
number = theano.tensor.iscalar()
scalar = theano.tensor.scalar_from_tensor(number)  # an Op without properties
expressions = {"plus": symbol + 1, "times": symbol * 3, "scalar": scalar}
for name in NAMES:
    is_scalar = name == "scalar"
    function = theano.function([number if is_scalar else symbol], expressions[name])
    facts[name] = function(2 if is_scalar else [2]).tolist()
cache = theano.gof.cc.get_module_cache()
facts["n_read"] = len(cache.module_hash_to_key_data)
facts["n_compiled"] = cache.stats[2]
"""


def compile_in(cache: Path, *names: str) -> dict[str, Any]:
    """Compile the named expressions in a new process."""
    return dict(run_python(f"NAMES = {names!r}\n" + COMPILE.strip(), THEANO_FLAGS=f"base_compiledir={cache}").facts)


def modules(cache: Path) -> set[Path]:
    """Return the folders of all modules in a cache."""
    return {library.parent for library in cache.glob("*/tmp*/*.so")}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a cache with the modules of all expressions, and what the process that filled it reports."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, compile_in(cache, "plus", "times", "scalar")


@pytest.mark.process
@pytest.mark.compiler
def test_a_process_reads_the_records_of_its_own_modules(filled: tuple[Path, dict[str, Any]]) -> None:
    cache, first = filled
    second = compile_in(cache, "times")
    assert first["n_read"] == first["n_compiled"] > second["n_read"] > 0
    assert second["n_compiled"] == 0
    assert second["times"] == first["times"] == [6]


@pytest.mark.process
@pytest.mark.compiler
def test_code_without_properties_is_compiled_once(filled: tuple[Path, dict[str, Any]]) -> None:
    cache, first = filled
    second = compile_in(cache, "scalar")
    assert first["scalar"] == second["scalar"] == 2
    assert first["n_compiled"] > second["n_compiled"] == 0


@pytest.mark.process
@pytest.mark.compiler
def test_old_modules_of_other_processes_are_removed(tmp_path: Path) -> None:
    compile_in(tmp_path, "plus")
    old = modules(tmp_path)
    long_ago = time.time() - 100 * 24 * 60 * 60
    for folder in old:
        (library,) = folder.glob("*.so")
        os.utime(library, (long_ago, long_ago))
    compile_in(tmp_path, "times")
    assert modules(tmp_path)
    assert not modules(tmp_path) & old


@pytest.mark.process
@pytest.mark.compiler
def test_a_module_with_a_damaged_record_is_compiled_again(tmp_path: Path) -> None:
    compiled = compile_in(tmp_path, "plus")["n_compiled"]
    for folder in modules(tmp_path):
        (folder / "key.pkl").write_bytes(b"")
    again = compile_in(tmp_path, "plus")
    assert again["plus"] == [3]
    assert again["n_compiled"] == compiled


def test_only_whole_and_recent_modules_are_left_unread(tmp_path: Path) -> None:
    contents = {
        "tmp_whole": ["mA.so", "key.pkl"],
        "tmp_without_record": ["mB.so"],
        "tmp_without_library": ["key.pkl"],
        "tmp_to_delete": ["mC.so", "key.pkl", "delete.me"],
        "tmp_old": ["mD.so", "key.pkl"],
    }
    for folder, files in contents.items():
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()
    (tmp_path / "no_folder").touch()
    os.utime(tmp_path / "tmp_old" / "mD.so", (0, 0))
    found = _recent_libraries(str(tmp_path), 3600, {})
    assert found == {str(tmp_path / "tmp_whole" / "key.pkl"): "mA.so"}
    assert _recent_libraries(str(tmp_path), 3600, found) == found


def test_a_missing_cache_has_no_modules(tmp_path: Path) -> None:
    assert _recent_libraries(str(tmp_path / "removed"), 3600, {}) == {}
