"""Tests of scripts/install_pygpu.sh, which installs Debian packages into an environment; `test_setup.py` uses apt."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.support.cards import Environment, library
from tests.support.interpreters import REPOSITORY

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("pygpu")]

SCRIPT = REPOSITORY / "scripts/install_pygpu.sh"
PREFIX = Path(sys.prefix)
SITE = Path(sysconfig.get_path("purelib"))
# Content of Debian's packages, limited to files that are installed here.
PACKAGES = {
    "python3-pygpu": {"usr/lib/python3/dist-packages": [SITE / "pygpu", *SITE.glob("pygpu-*.egg-info")]},
    "libgpuarray3": {"usr/lib": [PREFIX / "lib/libgpuarray.so.3", PREFIX / "lib/libgpuarray.so.3.0"]},
    "libgpuarray-dev": {"usr/lib": [PREFIX / "lib/libgpuarray.so"], "usr/include": [PREFIX / "include/gpuarray"]},
}
# Programs that the script needs without dpkg. A minimal Debian has no xz.
PROGRAMS = ("bash", "dirname", "mktemp", "chmod", "mkdir", "head", "ar", "tar", "xz", "cp", "rm", "mv")
# The message of libgpuarray about a driver shows which file libgpuarray has opened.
PRINT_DRIVER_ERROR = """
import pygpu
try:
    pygpu.gpuarray.count_devices("cuda", 0)
except Exception as error:
    print(error)
"""


@pytest.fixture(scope="module")
def debs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("debs")
    for package, contents in PACKAGES.items():
        with tarfile.open(folder / "data.tar.xz", "w:xz", preset=0) as data:
            for place, paths in contents.items():
                for path in paths:
                    data.add(path, f"{place}/{path.name}")
        with tarfile.open(folder / "control.tar.xz", "w:xz") as control:
            control.addfile(tarfile.TarInfo("control"), io.BytesIO())
        (folder / "debian-binary").write_text("2.0\n")
        members = ["debian-binary", "control.tar.xz", "data.tar.xz"]
        subprocess.run(["ar", "rc", f"{package}_0.7.6_all.deb", *members], cwd=folder, check=True)
    return folder


def install(target: Environment, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in the directory in which a wheel installs it."""
    shutil.copy(SCRIPT, target.path / "bin")
    return target.run("install_pygpu.sh", *arguments, **variables)


def files(target: Environment) -> set[Path]:
    return {path.relative_to(target.path) for path in target.path.rglob("*") if path.parts[-2] != "__pycache__"}


def test_packages_are_installed_without_dpkg(tmp_path: Path, debs: Path) -> None:
    target = Environment(tmp_path / "env", "pygpu")
    for program in PROGRAMS:
        (target.path / "bin" / program).symlink_to(shutil.which(program) or "")
    before = files(target)
    result = install(target, "--from", debs, PATH="")
    assert result.returncode == 0, result.stderr
    added = {str(path) for path in files(target) - before if len(path.parts) < 3}
    assert added == {
        "bin/install_pygpu.sh",
        "include/gpuarray",
        *(f"lib/libgpuarray.so{end}" for end in ("", ".3", ".3.0")),
    }
    assert "undefined symbol" not in target.run("python", "-c", PRINT_DRIVER_ERROR).stdout
    # libgpuarray searches our directory first.
    for folder, message in (("lib", "pygpu/../../../libcuda.so"), ("lib/shardpress-gpu", "/shardpress-gpu/libcuda.so")):
        library(target.path / folder / "libcuda.so")
        assert f"{message}: undefined symbol" in target.run("python", "-c", PRINT_DRIVER_ERROR).stdout
    files_before = files(target)
    (line,) = install(target).stdout.splitlines()
    assert str(target.path) in line
    assert files(target) == files_before


def test_packages_that_are_missing_or_wrong_are_reported(debs: Path, tmp_path: Path) -> None:
    # Debian's build of pygpu does not work with NumPy 2, for which its source archive is needed.
    target = Environment(tmp_path / "env", "pygpu", "numpy")
    (target.site / "numpy.py").write_text('__version__ = "2.5.5"\n')
    folder = Path(shutil.copytree(debs, tmp_path / "from"))
    archive = folder / "libgpuarray_0.7.6.orig.tar.gz"
    (tmp_path / "empty").mkdir()
    for source, reason in ((folder, f"has no {archive.name}"), (tmp_path / "empty", "empty"), (folder, "SHA-256")):
        result = install(target, "--from", source)
        archive.write_bytes(b"other")
        assert result.returncode == 69
        assert reason in result.stderr
        assert not (target.site / "pygpu").exists()
        assert not (target.path / "lib/libgpuarray.so.3.0").exists()
