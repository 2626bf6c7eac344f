"""A card that computes on the host: the stub's libraries, compiled once, and the environment that has them loaded.

What it is told by environment variables stands at the head of ``driver.cpp``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

from pipeline.gpu.install import build_forwarders
from tests.support.interpreters import REPOSITORY

__all__ = ["NoNvrtc", "built", "card", "nvrtc", "variables"]

SOURCES = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# Kernels: as CUDA does, no errno; a product and a sum may become one instruction, but these flags name no processor.
KERNEL_FLAGS = "-std=c++17 -O2 -fno-math-errno -w -shared -fPIC -fvisibility=hidden -fno-gnu-unique"


class NoNvrtc(RuntimeError):
    """NVIDIA's compiler library is not installed."""


def nvrtc() -> Path:
    """NVRTC as PyPI has it, which needs neither a card nor a driver."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib/libnvrtc.so.*"))
    if not found:
        raise NoNvrtc("NVRTC is missing, which the tests' packages bring: pip install -c constraints.txt -e '.[test]'")
    return found[0]


@cache
def built(folder: Path | None = None) -> Path:
    """Where the stub's libraries are, compiled unless they have been.

    Parameters
    ----------
    folder : Path, optional
        Where to keep them, and the kernels that they compile; else where compiled code is kept for all tests.

    Returns
    -------
    Path
        A folder with two in it: ``direct`` has the names that libgpuarray opens, ``behind`` those that NVIDIA's driver
        and libraries have, with our own in front of them.
    """
    ours = [*(REPOSITORY / "kernels/native").glob("lib*.c"), REPOSITORY / "pipeline/gpu/install.py"]
    paths = [path for path in sorted([*SOURCES.iterdir(), *ours]) if path.suffix in (".cpp", ".h", ".c", ".py")]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in paths) + str(nvrtc()).encode()).hexdigest()[:16]
    place = (folder or CACHE / "shardpress-stub") / key
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the tests that run beside, one builds
        if not (place / "complete").exists():
            _build(place)
            (place / "complete").touch()
    return place


def variables(forwarded: bool = False, **settings: str | Path | int | None) -> dict[str, str | None]:
    """What a child's environment needs, to be handed to `interpreters.environment` or `fresh`.

    Parameters
    ----------
    forwarded : bool
        With ``libcuda.so`` and ``libnvrtc.so`` of our own before the stub, as before NVIDIA's.
    settings : str, Path, int or None
        Of the stub, without their ``STUB_``: ``capability="12.0", oom_at=3``.
    """
    named = {f"STUB_{name.upper()}": value for name, value in settings.items()}
    folder = built() / ("behind" if forwarded else "direct")
    given = {"LD_LIBRARY_PATH": folder, "STUB_NVRTC": nvrtc(), **named}
    return {name: None if value is None else str(value) for name, value in given.items()}


def card(**settings: str | Path | int | None) -> dict[str, str | None]:
    """What a child needs of its environment for the stub behind our libraries, as `variables`; with TEST_CARD nothing.

    Then it takes the machine's own card: TEST_CARD is ``quick``, or ``full`` for sizes that only a card is for.
    """
    return {} if "TEST_CARD" in os.environ else variables(True, **settings)


def _kernels(folder: Path) -> Path:
    """Where compiled kernels are kept, for as long as what stands before them is the same; that is there, too."""
    headers = {name: (SOURCES / name).read_text() for name in ("kernel.h", "fibers.h", "threads.h")}
    key = hashlib.sha256("".join([*headers.values(), KERNEL_FLAGS]).encode()).hexdigest()[:16]
    place = folder / f"kernels-{key}"
    place.mkdir(exist_ok=True)
    for name, text in headers.items():
        (place / name).write_text(text)
    return place


def _build(place: Path) -> None:
    import scipy_openblas32

    compiler = shutil.which("g++")
    if compiler is None:
        raise FileNotFoundError("g++, which compiles the stub of CUDA")
    direct, behind, blas = place / "direct", place / "behind", scipy_openblas32.get_lib_dir()
    for folder in (direct, behind):
        folder.mkdir(exist_ok=True)
    here = {
        "STUB_FOLDER": _kernels(place.parent),
        "STUB_COMPILER": compiler,
        "STUB_FLAGS": KERNEL_FLAGS,
        "STUB_NVRTC_PATH": nvrtc(),
    }
    common = [compiler, *FLAGS, *(f'-D{name}="{value}"' for name, value in here.items())]
    libraries = {
        "libcuda.so.1": ["driver.cpp", "modules.cpp", "-ldl"],
        nvrtc().name: ["nvrtc.cpp", "-ldl"],
        "libcublas.so.12": [
            "blas.cpp",
            "-L.",
            "-l:libcuda.so.1",
            f"-L{blas}",
            "-lscipy_openblas",
            f"-Wl,-rpath,{blas}",
        ],
    }
    for name, (*parts, ending) in libraries.items():
        words = [str(SOURCES / part) if part.endswith(".cpp") else part for part in (*parts, ending)]
        command = [*common, f"-Wl,-soname,{name}", "-o", name, *words]
        done = subprocess.run(command, cwd=behind, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the stub of CUDA does not compile: {done.stderr}")
        for link in (direct / name, direct / f"{name.partition('.so')[0]}.so"):
            link.unlink(missing_ok=True)
            link.symlink_to(behind / name)
    link = behind / "libcublas.so"  # nothing of ours stands before this one
    link.unlink(missing_ok=True)
    link.symlink_to(behind / "libcublas.so.12")
    build_forwarders(behind)
