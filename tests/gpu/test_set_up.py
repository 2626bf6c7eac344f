"""Tests of `shardpress setup-gpu` in a virtual environment with wheels from a folder: once, again, and interrupted.

Sample: 3 of 6 kinds of incomplete installations; with TEST_CASES=all each of them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cards import Environment, driver, library, wheels
from tests.support.cases import sample

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("pygpu")]

OURS = ("libcuda.so", "libnvrtc.so")  # linked in place of NVIDIA's libraries
NVRTC = ("12.0.140", "12.4.127", "13.0.88")
CUBLAS = ("12.4.5.8", "12.9.3.13", "13.0.2.14")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels(tmp_path_factory.mktemp("nvidia"), NVRTC, CUBLAS)


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env", "nvidia")


def set_up(
    venv: Environment, *arguments: str | Path, library_path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `setup-gpu`. `library_path` is the folder of the driver."""
    return venv.run("python", "-m", "shardpress", "setup-gpu", *arguments, LD_LIBRARY_PATH=library_path)


def libraries(venv: Environment) -> dict[str, str]:
    """Return the target of each link in the folder: the file name in its wheel."""
    folder = venv.path / "lib/shardpress-gpu"
    return {path.name: path.resolve().name for path in folder.glob("lib*.so*") if path.exists()}


def versions(venv: Environment) -> list[str]:
    return sorted(path.stem.split("-")[1] for path in venv.path.glob("lib/shardpress-gpu/*.dist-info"))


def test_no_driver_installs_widely_usable_libraries(venv: Environment, source: Path, tmp_path: Path) -> None:
    # This library hides the driver of this machine, and is not a driver. Another one is found before the installed one.
    hidden = tmp_path / "toolkit"
    library(hidden / "libcuda.so.1", "int cuDriverGetVersion(int *version) { return 34; }")
    library(hidden / "libnvrtc.so")
    result = set_up(venv, "--from", source, library_path=hidden)
    assert result.returncode == 0, result.stderr
    folder = venv.path / "lib/shardpress-gpu"
    assert versions(venv) == ["12.0.140", "12.9.3.13"]
    assert str(folder) in result.stdout
    warning = result.stdout.splitlines()[-2]
    assert f"{hidden} in LD_LIBRARY_PATH" in warning
    assert libraries(venv) == {
        **{name: name for name in OURS},
        "libnvrtc.so.12": "libnvrtc.so.12",
        "libnvrtc-builtins.so.12.0": "libnvrtc-builtins.so.12.0",
        "libcublas.so": "libcublas.so.12",
        "libcublas.so.12": "libcublas.so.12",
        "libcublasLt.so.12": "libcublasLt.so.12",
    }
    links = [path.readlink() for path in folder.glob("lib*") if path.name not in OURS]
    assert not any(link.is_absolute() for link in links), "the environment can be moved"
    assert not list(venv.site.glob("nvidia*")), "other packages may need other versions"


def test_repeated_set_up_changes_libraries_with_the_driver(venv: Environment, source: Path, tmp_path: Path) -> None:
    file = driver(tmp_path / "driver", (12, 4), (8, 0))
    folder = venv.path / "lib/shardpress-gpu"
    assert set_up(venv, "--from", source, library_path=file.parent).returncode == 0
    assert versions(venv) == ["12.4.127", "12.4.5.8"]
    inode = folder.stat().st_ino
    again = set_up(venv, "--from", tmp_path, library_path=file.parent)
    assert (again.returncode, again.stderr) == (0, ""), "no wheel is needed"
    assert folder.stat().st_ino == inode
    driver(file.parent, (13, 0), (8, 0))
    assert set_up(venv, "--from", source, library_path=file.parent).returncode == 0
    assert versions(venv) == ["13.0.2.14", "13.0.88"]
    assert not [name for name in libraries(venv) if name.endswith(".12")]
    assert [path.name for path in folder.parent.glob("shardpress-gpu*")] == [folder.name]


def test_incomplete_installation_is_repaired_or_kept(venv: Environment, source: Path, tmp_path: Path) -> None:
    assert set_up(venv, "--from", source, "--for", "12.4").returncode == 0
    folder = venv.path / "lib/shardpress-gpu"
    whole = libraries(venv)
    kinds = (
        lambda: (folder / "nvidia/cublas/lib/libcublasLt.so.12").unlink(),
        lambda: (folder / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12").write_bytes(b"\x7fELF"),
        lambda: (folder / "libcuda.so").unlink(),
        lambda: shutil.rmtree(folder),
        lambda: folder.rename(folder.with_name("shardpress-gpu.new")),
        lambda: folder.rename(folder.with_name("shardpress-gpu.old")),
    )
    for damage in sample(kinds, 3):
        damage()
        result = set_up(venv, "--from", source, "--for", "12.4")
        assert result.returncode == 0, result.stderr
        assert libraries(venv) == whole
        assert [path.name for path in folder.parent.glob("shardpress-gpu*")] == [folder.name]
    failed = set_up(venv, "--from", tmp_path, "--for", "12.9")
    assert failed.returncode == 69
    assert failed.stderr.splitlines()[-1].startswith("DeviceError: ")
    assert libraries(venv) == whole
