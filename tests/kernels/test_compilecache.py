"""Tests of the compile cache: missing directories, and protection against code of other users."""

import os
import pickle
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from shardpress_kernels import backend, compilecache
from shardpress_kernels.compatibility import fingerprint_adaptation
from shardpress_kernels.compiler import watch_compiler
from tests.support.interpreters import run_python

pytestmark = pytest.mark.process


def test_compile_cache_replaces_a_missing_temporary_directory():
    # In a read-only container, or on a full disk, Python finds no temporary directory.
    code = """
    import tempfile
    tempfile._candidate_tempdir_list = lambda: ["/proc/nowhere"]
    from shardpress_kernels import backend
    facts |= {"cache": backend.load().config.compiledir, "temporary": tempfile.gettempdir()}
    """
    facts = run_python(code).facts
    assert facts["temporary"] == facts["cache"]


@pytest.mark.compiler
def test_key_of_a_module_is_replaced_atomically(tmp_path):
    # Theano reads the file of keys without a lock. It would delete a module whose file is empty, although other
    # processes use the module.
    path = tmp_path / "key.pkl"
    path.write_text("before")
    seen = []

    class Key:
        def __reduce__(self):
            seen.append(path.read_text())
            return str, ("a key",)

    backend.load().gof.cmodule.KeyData({Key()}, "hash", str(path), "entry").save_pkl()
    assert seen == ["before"]
    assert pickle.loads(path.read_bytes()).keys == {"a key"}
    assert os.listdir(tmp_path) == ["key.pkl"]


# ---- files of libgpuarray

INFORMATION = "Model: \t\t NVIDIA {}\nIRQ:   \t\t 41\nGPU UUID: \t GPU-{}\n"


@pytest.mark.compiler
def test_cache_of_kernels_is_named_after_the_models_of_cards(tmp_path: Path) -> None:
    machines = {"one": ["B200"], "another": ["B200", "B200"], "newer": ["B300"], "none": []}
    found = {}
    for machine, cards in machines.items():
        for i, model in enumerate(cards):
            card = tmp_path / machine / f"0000:{i}1:00.0"
            card.mkdir(parents=True)
            (card / "information").write_text(INFORMATION.format(model, f"{machine}-{i}"))
        found[machine] = compilecache._fingerprint_cards(tmp_path / machine)
    assert found["one"] == found["another"]
    assert len(set(found.values())) == 3
    assert Path(backend.load().config.gpuarray.cache_path).name == compilecache._fingerprint_cards()


# ---- trust


def test_compile_cache_is_private_and_named_after_versions(tmp_path):
    code = """
    import os
    os.umask(0)
    from shardpress_kernels import backend
    facts["cache"] = backend.load().config.compiledir
    """
    cache = Path(run_python(code, XDG_CACHE_HOME=tmp_path / "new").facts["cache"])
    versions = f"theano-1.0.5-{fingerprint_adaptation()}-numpy-{np.__version__}"
    assert cache.is_relative_to(tmp_path / "new" / "shardpress" / versions)
    assert cache.stat().st_mode & 0o777 == 0o700
    folders = [path for path in (tmp_path / "new").rglob("*") if path.is_dir()]
    assert [path for path in folders if path.stat().st_mode & 0o077] == []


UNSAFE = """
from shardpress_kernels import backend
from shardpress_kernels.compilecache import UnsafeCompileCache
try:
    backend.load()
except UnsafeCompileCache as error:
    facts["error"] = str(error)
"""


@pytest.fixture
def trap(tmp_path):
    """Return a cache and a path: modules in the cache, which Theano would import first, create a file at this path."""
    cache = tmp_path / "base" / "cache"
    marker = tmp_path / "marker"
    for name in ("lazylinker_ext", "cutils_ext"):
        (cache / name).mkdir(parents=True, mode=0o700)
        (cache / name / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    cache.chmod(0o700)
    cache.parent.chmod(0o700)
    return cache, marker


def flags_for(cache):
    return f"base_compiledir={cache.parent},compiledir_format={cache.name}"


def test_code_in_a_private_cache_runs_below_a_sticky_directory(trap):
    cache, marker = trap
    cache.parents[1].chmod(0o1777)
    run_python(UNSAFE, THEANO_FLAGS=flags_for(cache))
    assert marker.exists(), "the trap works"


@pytest.mark.parametrize(("level", "mode"), [("cache", 0o770), ("above", 0o777)])
def test_cache_that_others_can_write_is_refused_before_use(trap, level, mode):
    cache, marker = trap
    path = {"cache": cache, "above": cache.parents[1]}[level]
    path.chmod(mode)
    ended = run_python(UNSAFE, THEANO_FLAGS=flags_for(cache))
    assert f"{path} " in ended.facts["error"]
    assert f"mode {mode:04o}" in ended.facts["error"]
    assert not marker.exists()


def test_library_in_the_current_directory_is_not_linked(tmp_path, monkeypatch):
    # GNU ld would read libgcc_s.so.1 from the current directory. Such a file can name any object file.
    planted = tmp_path / "planted"
    cache = tmp_path / "cache"
    planted.mkdir()
    cache.mkdir()
    (planted / "libgcc_s.so.1").write_text(f"INPUT({planted}/missing.o)\n")
    (cache / "module.cpp").write_text("int f() { return 1; }\n")
    monkeypatch.chdir(planted)

    def run(command, **options):
        result = subprocess.run(command, capture_output=True, check=False, **options)
        return result.stdout, result.stderr, result.returncode

    windows = SimpleNamespace(output_subprocess_Popen=run)
    watch_compiler(windows, SimpleNamespace(compiledir=str(cache)))
    command = ["g++", "-shared", "-fPIC", "-o", str(cache / "module.so"), str(cache / "module.cpp")]
    assert run(command)[2] != 0, "the linker reads the planted file, so the test works"
    assert windows.output_subprocess_Popen(command)[2] == 0
