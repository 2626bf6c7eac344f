"""Tests of the compile cache: missing directories, and protection against code of other users."""

import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shardpress_kernels import backend, compilecache
from shardpress_kernels.compiler import start_program
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
    assert cache.is_relative_to(tmp_path / "new" / "shardpress" / f"numpy-{np.__version__}")
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


@pytest.mark.parametrize(("name", "mode"), [("base/cache", 0o770), (".", 0o777), (".", 0o1777)])
def test_cache_that_others_can_write_is_refused_before_use(tmp_path, name, mode):
    cache = tmp_path / "base/cache"
    cache.mkdir(parents=True, mode=0o700)
    cache.parent.chmod(0o700)
    path = tmp_path / name
    path.chmod(mode)
    ended = run_python(UNSAFE, THEANO_FLAGS=f"base_compiledir={cache.parent},compiledir_format={cache.name}")
    if mode & stat.S_ISVTX:  # others can create files here, but not replace the cache
        assert ended.facts == {}
        return
    assert f"{path} " in ended.facts["error"]
    assert f"mode {mode:04o}" in ended.facts["error"]
    assert list(cache.glob("module-*")) == []


def test_library_in_the_current_directory_is_not_linked(tmp_path, monkeypatch):
    # GNU ld would read libgcc_s.so.1 from the current directory. Such a file can name any object file.
    (tmp_path / "libgcc_s.so.1").write_text(f"INPUT({tmp_path}/missing.o)\n")
    (tmp_path / "module.cpp").write_text("int f() { return 1; }\n")
    monkeypatch.chdir(tmp_path)
    command = ["g++", "-shared", "-fPIC", "-o", str(tmp_path / "module.so"), str(tmp_path / "module.cpp")]
    assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0, "the test works"
    with start_program(command) as process:
        assert process.wait() == 0
