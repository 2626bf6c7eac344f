"""Test of the cache of compiled modules: processes read only the necessary records, and replace damaged ones."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.interpreters import run_python

pytestmark = [pytest.mark.process, pytest.mark.compiler]

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
    flags = f"base_compiledir={cache}"
    return dict(run_python(f"NAMES = {names!r}\n" + COMPILE.strip(), THEANO_FLAGS=flags).facts)


def modules(cache: Path) -> set[Path]:
    """Return the folders of all modules in a cache."""
    return {library.parent for library in cache.glob("*/tmp*/*.so")}


def test_records_are_reused_and_damaged_or_old_ones_are_replaced(tmp_path: Path) -> None:
    first = compile_in(tmp_path, "plus", "times", "scalar")
    assert first["n_read"] == first["n_compiled"]
    for name in ("times", "scalar"):  # the latter has no properties
        second = compile_in(tmp_path, name)
        assert first["n_read"] > second["n_read"] > 0, "a process reads its own records only"
        assert second["n_compiled"] == 0
        assert second[name] == first[name]
    for folder in modules(tmp_path):
        (folder / "key.pkl").write_bytes(b"")
    again = compile_in(tmp_path, "plus")
    assert again["plus"] == first["plus"] == [3]
    assert again["n_compiled"] > 0
    old = modules(tmp_path)
    long_ago = time.time() - 100 * 24 * 60 * 60
    for folder in old:
        (library,) = folder.glob("*.so")
        os.utime(library, (long_ago, long_ago))
    compile_in(tmp_path, "times")
    assert modules(tmp_path)
    assert not modules(tmp_path) & old
