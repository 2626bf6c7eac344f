"""Test of `shardpress setup-gpu` in a virtual environment with wheels from a folder: once, again, and interrupted.

Sample: 2 of 6 kinds of incomplete installations; with TEST_CASES=all each of them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cards import Environment, driver, library, wheels
from tests.support.cases import sample

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.usefixtures("pygpu")]

OURS = ("libcuda.so", "libnvrtc.so")  # linked in place of NVIDIA's libraries


def set_up(venv: Environment, source: Path, library_path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run `setup-gpu`. `library_path` is the folder of the driver."""
    command = ("python", "-m", "shardpress", "setup-gpu", "--from", source, *flags)
    return venv.run(*command, LD_LIBRARY_PATH=library_path)


def libraries(venv: Environment) -> dict[str, str]:
    """Return the target of each link in the folder: the file name in its wheel."""
    folder = venv.path / "lib/shardpress-gpu"
    return {path.name: path.resolve().name for path in folder.glob("lib*.so*") if path.exists()}


def versions(venv: Environment) -> list[str]:
    return sorted(path.stem.split("-")[1] for path in venv.path.glob("lib/shardpress-gpu/*.dist-info"))


def test_libraries_fit_the_driver_and_are_repaired(tmp_path: Path) -> None:
    source = wheels(tmp_path / "nvidia", ("12.0.140", "13.0.88"), ("12.9.3.13", "13.0.2.14"))
    venv = Environment(tmp_path / "env", "nvidia")
    folder = venv.path / "lib/shardpress-gpu"
    file = driver(tmp_path / "driver", (13, 0), (8, 0))
    assert set_up(venv, source, file.parent).returncode == 0
    assert versions(venv) == ["13.0.2.14", "13.0.88"]
    inode = folder.stat().st_ino
    again = set_up(venv, tmp_path, file.parent)
    assert (again.returncode, again.stderr) == (0, ""), "no wheel is needed"
    assert folder.stat().st_ino == inode
    without_driver(venv, source, tmp_path / "toolkit")
    whole = libraries(venv)
    kinds = (
        lambda: (folder / "nvidia/cublas/lib/libcublasLt.so.12").unlink(),
        lambda: (folder / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12").write_bytes(b"\x7fELF"),
        lambda: (folder / "libcuda.so").unlink(),
        lambda: shutil.rmtree(folder),
        lambda: folder.rename(folder.with_name("shardpress-gpu.new")),
        lambda: folder.rename(folder.with_name("shardpress-gpu.old")),
    )
    for damage in sample(kinds, 2):
        damage()
        result = set_up(venv, source, tmp_path / "toolkit")
        assert result.returncode == 0, result.stderr
        assert libraries(venv) == whole
        assert [path.name for path in folder.parent.glob("shardpress-gpu*")] == [folder.name]
    failed = set_up(venv, tmp_path, file.parent, "--for", "12.9")
    assert failed.returncode == 69
    assert re.match(r"DeviceError: .*nvidia-cuda-nvrtc-cu12", failed.stderr.splitlines()[-1])
    assert libraries(venv) == whole


def without_driver(venv: Environment, source: Path, toolkit: Path) -> None:
    """Check that libraries for all drivers replace the installed ones."""
    # This library hides the driver of this machine, and is not a driver. Another one is found before the installed one.
    library(toolkit / "libcuda.so.1", "int cuDriverGetVersion(int *version) { return 34; }")
    library(toolkit / "libnvrtc.so")
    result = set_up(venv, source, toolkit)
    assert result.returncode == 0, result.stderr
    assert versions(venv) == ["12.0.140", "12.9.3.13"]
    assert f"{toolkit} in LD_LIBRARY_PATH" in result.stdout.splitlines()[-2]
    assert libraries(venv) == {
        **{name: name for name in OURS},
        "libnvrtc.so.12": "libnvrtc.so.12",
        "libnvrtc-builtins.so.12.0": "libnvrtc-builtins.so.12.0",
        "libcublas.so": "libcublas.so.12",
        "libcublas.so.12": "libcublas.so.12",
        "libcublasLt.so.12": "libcublasLt.so.12",
    }
    links = [path.readlink() for path in venv.path.glob("lib/shardpress-gpu/lib*") if path.name not in OURS]
    assert not any(link.is_absolute() for link in links), "the environment can be moved"
    assert not list(venv.site.glob("nvidia*")), "other packages may need other versions"
