"""Tests of `shardpress setup-gpu` in a virtual environment with wheels from a folder: once, again, and interrupted.

Sample: 4 of 7 kinds of incomplete installations; with TEST_CASES=all each of them.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cards import Environment, driver, library, wheels
from tests.support.cases import each, sample

pytestmark = pytest.mark.process

NAMES = ["libcublas.so", "libcublasLt.so", "libnvrtc-builtins.so", "libnvrtc.so"]
OURS = ("libcuda.so", "libnvrtc.so")  # linked in place of NVIDIA's libraries
NVRTC = ("12.0.140", "12.4.127", "12.9.86", "13.0.88")
CUBLAS = ("12.0.2.224", "12.4.5.8", "12.9.3.13", "13.0.2.14")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels(tmp_path_factory.mktemp("nvidia"), NVRTC, CUBLAS)


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "env", "nvidia")


@pytest.fixture(scope="module")
def no_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a library that hides the driver of this machine, and that is not a driver."""
    folder = tmp_path_factory.mktemp("nothing")
    library(folder / "libcuda.so.1", "int cuDriverGetVersion(int *version) { return 34; }")
    return folder


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


@pytest.mark.usefixtures("pygpu")
def test_no_driver_installs_widely_usable_libraries(venv: Environment, source: Path, no_driver: Path) -> None:
    result = set_up(venv, "--from", source, library_path=no_driver)
    assert result.returncode == 0, result.stderr
    environment, cuda, pygpu, requirements, found, following = result.stdout.splitlines()
    assert environment == f"environment  {venv.path}"
    assert cuda.startswith("CUDA ")
    assert "12.0" in cuda
    assert pygpu.startswith("pygpu        0.7.6")
    assert "nvidia-cuda-nvrtc-cu12>=12,<12.1" in requirements
    assert "nvidia-cublas-cu12>=12,<13" in requirements
    folder = venv.path / "lib/shardpress-gpu"
    assert "nvidia-cublas-cu12 12.9.3.13" in found
    assert "nvidia-cuda-nvrtc-cu12 12.0.140" in found
    assert found.endswith(str(folder))
    assert following.endswith(" THEANO_FLAGS=device=cuda shardpress doctor")
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


@pytest.mark.usefixtures("pygpu")
def test_repeated_set_up_changes_libraries_with_the_driver(venv: Environment, source: Path, tmp_path: Path) -> None:
    file = driver(tmp_path / "driver", (12, 4), (8, 0))
    folder = venv.path / "lib/shardpress-gpu"
    first = set_up(venv, "--from", source, library_path=file.parent)
    assert f"CUDA 12.4 ({file})" in first.stdout
    assert versions(venv) == ["12.4.127", "12.4.5.8"]
    inode = folder.stat().st_ino
    again = set_up(venv, "--from", tmp_path, library_path=file.parent)
    lines = [line for line in first.stdout.splitlines() if not line.startswith("installing ")]
    assert (again.stdout.splitlines(), again.stderr) == (lines, ""), "no wheel is needed"
    assert folder.stat().st_ino == inode
    driver(file.parent, (13, 0), (8, 0))
    assert set_up(venv, "--from", source, library_path=file.parent).returncode == 0
    assert versions(venv) == ["13.0.2.14", "13.0.88"]
    assert libraries(venv)["libnvrtc.so.13"] == "libnvrtc.so.13"
    assert not [name for name in libraries(venv) if name.endswith(".12")]
    assert [path.name for path in folder.parent.glob("shardpress-gpu*")] == [folder.name]


@pytest.mark.usefixtures("pygpu")
def test_incomplete_installation_is_repaired(venv: Environment, source: Path) -> None:
    assert set_up(venv, "--from", source, "--for", "12.4").returncode == 0
    folder = venv.path / "lib/shardpress-gpu"
    whole = libraries(venv)
    kinds = (
        lambda: (folder / "nvidia/cublas/lib/libcublasLt.so.12").unlink(),
        lambda: (folder / "nvidia/cuda_nvrtc/lib/libnvrtc.so.12").write_bytes(b"\x7fELF"),
        lambda: (folder / "libcublas.so").unlink(),
        lambda: (folder / "libcuda.so").unlink(),
        lambda: shutil.rmtree(folder),
        lambda: folder.rename(folder.with_name("shardpress-gpu.new")),
        lambda: folder.rename(folder.with_name("shardpress-gpu.old")),
    )
    for damage in sample(kinds, 4):
        damage()
        result = set_up(venv, "--from", source, "--for", "12.4")
        assert result.returncode == 0, result.stderr
        assert libraries(venv) == whole
        assert [path.name for path in folder.parent.glob("shardpress-gpu*")] == [folder.name]


def test_too_old_driver_is_refused_before_installation(venv: Environment, source: Path, tmp_path: Path) -> None:
    file = driver(tmp_path / "driver", (11, 4))
    result = set_up(venv, "--from", source, library_path=file.parent)
    assert (result.returncode, result.stdout) == (69, "")
    assert result.stderr.startswith(f"DeviceError: {file}: ")
    assert "CUDA 11.4, expected 12.0" in result.stderr
    assert not (venv.path / "lib/shardpress-gpu").exists()


@pytest.mark.usefixtures("pygpu")
def test_failed_installation_keeps_the_earlier_one(venv: Environment, source: Path, tmp_path: Path) -> None:
    assert set_up(venv, "--from", source, "--for", "12.4").returncode == 0
    whole = libraries(venv)
    result = set_up(venv, "--from", tmp_path, "--for", "12.9")
    assert result.returncode == 69
    assert "No matching distribution found for nvidia-cuda-nvrtc-cu12<12.10,>=12" in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("DeviceError: ")
    assert "nvidia-cuda-nvrtc-cu12>=12,<12.10 and nvidia-cublas-cu12>=12,<12.10" in last
    assert libraries(venv) == whole


@pytest.mark.usefixtures("pygpu")
def test_libraries_found_first_cause_a_warning(venv: Environment, source: Path, tmp_path: Path) -> None:
    toolkit = library(tmp_path / "toolkit/libnvrtc.so").parent
    result = set_up(venv, "--from", source, library_path=toolkit)
    warning = result.stdout.splitlines()[-2]
    assert "LD_LIBRARY_PATH" in warning
    assert str(toolkit) in warning


@each(
    "arguments, phrase",
    [
        (["--for", "11.8"], "argument --for: CUDA 11.8, expected 12.0"),
        (["--for", "12"], "argument --for: '12', expected"),
        (["--from", "nowhere"], "argument --from: 'nowhere', expected"),
    ],
)
def test_invalid_arguments_are_refused(venv: Environment, arguments: list[str], phrase: str) -> None:
    result = set_up(venv, *arguments)
    assert (result.returncode, result.stdout) == (64, "")
    assert phrase in result.stderr
