"""Tests of the cache of compiled modules: processes compile at the same time, and read only the necessary records."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardpress_kernels.modulecache import repair_module_versions
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


def compile_in(cache: Path, *names: str, flags: str = "") -> dict[str, Any]:
    """Compile the named expressions in a new process."""
    flags = f"base_compiledir={cache}{flags}"
    return dict(run_python(f"NAMES = {names!r}\n" + COMPILE.strip(), THEANO_FLAGS=flags).facts)


def modules(cache: Path) -> set[Path]:
    """Return the folders of all modules in a cache."""
    return {library.parent for library in cache.glob("*/tmp*/*.so")}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return a cache with the modules of all expressions, and what the process that filled it reports."""
    cache = tmp_path_factory.mktemp("cache")
    return cache, compile_in(cache, "plus", "times", "scalar")


def test_a_process_compiles_nothing_again_and_reads_its_own_records(filled: tuple[Path, dict[str, Any]]) -> None:
    cache, first = filled
    for name in ("times", "scalar"):  # the latter has no properties
        second = compile_in(cache, name)
        assert first["n_read"] == first["n_compiled"] > second["n_read"] > 0
        assert second["n_compiled"] == 0
        assert second[name] == first[name]


# A compiler that waits before it compiles the first module. The processes communicate through named pipes.
WAITING = """\
#!/bin/sh
case "$*" in *-shared*)
    if mkdir {folder}/first 2> /dev/null; then
        echo > {folder}/started
        read go < {folder}/go
    fi
esac
exec g++ "$@"
"""


def test_processes_compile_different_modules_at_the_same_time(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    facts = [compile_in(cache, "plus")]
    compiler = tmp_path / "g++"
    compiler.write_text(WAITING.format(folder=tmp_path))
    compiler.chmod(0o755)
    for name in ("started", "go"):
        os.mkfifo(tmp_path / name)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(compile_in, cache, "times", flags=f",cxx={compiler}") for _ in range(2)]
        (tmp_path / "started").read_text()
        try:
            facts.append(compile_in(cache, "scalar"))
        finally:
            (tmp_path / "go").write_text("go\n")
        facts += [each.result() for each in waiting]
    assert [each["times"] for each in facts[2:]] == [[6], [6]]
    assert facts[1]["n_compiled"] > 0
    assert sum(each["n_compiled"] for each in facts) == len(modules(cache)), "no module is compiled twice"


def test_keys_contain_headers_instead_of_their_directories(tmp_path: Path) -> None:
    class CLinker:
        def cmodule_key_(self, graph: Any, *arguments: Any) -> tuple[Any, ...]:
            return arguments

    repair_module_versions(SimpleNamespace(CLinker=CLinker))
    for name, text in {"one": "a", "moved": "a", "changed": "b"}.items():
        (tmp_path / name / "gpuarray").mkdir(parents=True)
        (tmp_path / name / "gpuarray/types.h").write_text(text)
    one, moved, changed = (
        CLinker().cmodule_key_(None, True, (), (), [str(tmp_path / name)]) for name in ("one", "moved", "changed")
    )
    assert one == moved != changed


def test_damaged_records_and_old_modules_are_replaced(tmp_path: Path) -> None:
    compiled = compile_in(tmp_path, "plus")["n_compiled"]
    for folder in modules(tmp_path):
        (folder / "key.pkl").write_bytes(b"")
    again = compile_in(tmp_path, "plus")
    assert again["plus"] == [3]
    assert again["n_compiled"] == compiled
    old = modules(tmp_path)
    long_ago = time.time() - 100 * 24 * 60 * 60
    for folder in old:
        (library,) = folder.glob("*.so")
        os.utime(library, (long_ago, long_ago))
    compile_in(tmp_path, "times")
    assert modules(tmp_path)
    assert not modules(tmp_path) & old
