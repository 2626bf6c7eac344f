"""Tests of the child's sandbox: the child can access only one file."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

from shardpress.hdf5.child.ask import ask
from tests.support import hostile
from tests.support.cases import case
from tests.support.child import child_pid, vet_by_child
from tests.support.interpreters import REPOSITORY

pytestmark = pytest.mark.process

ACTS = [
    "open('/etc/passwd')",
    "os.listdir('/')",
    "socket.socket()",
    "os.pipe()",
    "h5py.File('/etc/passwd')",
    "os.unlink(os.environ['VICTIM'])",
    "os.rename(os.environ['VICTIM'], os.environ['VICTIM'] + '2')",
    "os.mkdir(os.environ['VICTIM'] + '2')",
    "os.symlink('/', os.environ['VICTIM'] + '2')",
    "os.getpid()",  # allowed
]


def has_landlock():
    return hostile._LIBC.syscall(444, None, 0, 1) >= 1


def test_child_cannot_open_create_or_remove_files(path, tmp_path, child_runs, monkeypatch):
    victim = tmp_path / "victim"
    victim.touch()
    monkeypatch.setenv("VICTIM", str(victim))
    child_runs("try:", "    eval(dataset)", "except BaseException as error:", "    return repr(error)", "return None")
    acts = [act for act in ACTS if has_landlock() or "VICTIM" not in act]
    with open(path, "rb") as file:
        errors = {act: ask("describe", file.fileno(), [act], Any, "") for act in acts}
    assert [act for act in acts if errors[act] is None] == ["os.getpid()"]
    assert victim.exists()
    assert not Path(f"{victim}2").exists()


def test_child_has_one_socket_no_privileges_and_a_clean_environment(path, fresh, monkeypatch):
    for name in ("HDF5_PLUGIN_PATH", "HDF5_VOL_CONNECTOR", "HDF5_VDS_PREFIX", "LD_PRELOAD", "LD_AUDIT", "PYTHONPATH"):
        monkeypatch.setenv(name, "" if name.startswith("LD") else "/tmp")
    vet_by_child(Path(path))
    process = Path(f"/proc/{child_pid()}")
    links = [os.readlink(entry) for entry in (process / "fd").iterdir()]
    assert len([link for link in links if link.startswith("socket")]) == 1
    status = dict(line.split(":\t") for line in (process / "status").read_text().splitlines())
    assert (status["Threads"].strip(), status["NoNewPrivs"].strip()) == ("1", "1")
    found = (process / "environ").read_bytes().split(b"\0")
    odd = [item for item in found if item.startswith((b"HDF5_", b"LD_PRELOAD", b"LD_AUDIT", b"PYTHON"))]
    assert odd == [b"HDF5_PLUGIN_PRELOAD=::"]


PLUGIN = """
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
    const char *canary = getenv("CANARY");
    if (canary) close(open(canary, O_CREAT | O_WRONLY, 0644));
}
int H5PLget_plugin_type(void) { return 0; }
const void *H5PLget_plugin_info(void) { return 0; }
"""

PLANTED = """
import sys
if sys.argv[1] == "bare":
    import h5py
    h5py.File(sys.argv[2])["X"][:]
else:
    from shardpress.shards.open import open_shards
    open_shards([sys.argv[2]])
"""


def test_planted_plugin_is_not_loaded(tmp_path):
    """Neither this process nor the child loads the plugin. Plain h5py loads it, which shows that it works."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4, 2))
        properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
        dataset = h5py.h5d.create(file.id, b"X", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((4, 2)), dcpl=properties)
        dataset.write_direct_chunk((0, 0), bytes(32))
    (tmp_path / "plugin.c").write_text(PLUGIN)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libplugin.so", tmp_path / "plugin.c"], check=True)
    canary = tmp_path / "loaded"
    environment = {**os.environ, "HDF5_PLUGIN_PATH": str(tmp_path), "CANARY": str(canary)}
    environment.pop("HDF5_PLUGIN_PRELOAD")
    for variables in ({}, {"HDF5_VOL_CONNECTOR": "canary"}):
        for reader, loads in (("bare", True), ("ours", False)):
            command = [sys.executable, "-c", PLANTED, reader, str(path)]
            both = {**environment, **variables}
            result = subprocess.run(command, cwd=REPOSITORY, env=both, capture_output=True, text=True, check=False)
            with case(reader, variables):
                assert canary.exists() == loads, result.stderr
            canary.unlink(missing_ok=True)
        assert "filter 300" in result.stderr
