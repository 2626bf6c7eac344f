"""Build the libraries of the emulated card once, and return the environment variables of a process that uses them.

The head of ``driver.cpp`` lists the settings of the card, which are environment variables.
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

from shardpress.setup.install import _build_forwarders
from tests.support.interpreters import REPOSITORY

SOURCES = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

FLAGS = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
# As in CUDA, kernels do not set errno. By default a product and a sum may be fused into one instruction if the
# processor has one.
KERNEL_FLAGS = "-std=c++17 -O2 -fno-math-errno -w -shared -fPIC -fvisibility=hidden -fno-gnu-unique"


def nvrtc() -> Path:
    """Return the NVRTC library of the package on PyPI, which needs neither a card nor a driver."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib/libnvrtc.so.*"))
    if not found:
        raise RuntimeError("NVRTC is missing: pip install -c constraints.txt -e '.[test]'")
    return found[0]


@cache
def built() -> Path:
    """Return the directory of the stub's libraries, which all tests share. Compile the libraries unless they exist.

    It has two subdirectories. ``direct`` contains the file names that libgpuarray opens. ``forwarded`` contains the
    names of NVIDIA's files, and the project's own libraries, which forward to them.
    """
    our_sources = [
        *(REPOSITORY / "kernels/shardpress_kernels/native").glob("lib*.c"),
        REPOSITORY / "pipeline/shardpress/setup/install.py",
    ]
    paths = [path for path in sorted([*SOURCES.iterdir(), *our_sources]) if path.suffix in (".cpp", ".h", ".c", ".py")]
    contents = b"".join(path.read_bytes() for path in paths)
    key = hashlib.sha256(contents + str(nvrtc()).encode()).hexdigest()[:16]
    place = CACHE / "shardpress-stub" / key
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several test processes builds the libraries
        if not (place / "complete").exists():
            _build(place)
            (place / "complete").touch()
    return place


def variables(forwarded: bool = False, **settings: str | Path | int | None) -> dict[str, str | None]:
    """Return the variables of a process that uses the stub, for `interpreters.environment` or `run_python`.

    If `forwarded` is set, the project's ``libcuda.so`` and ``libnvrtc.so`` forward to the stub instead of NVIDIA's
    libraries. The settings of the stub are given without their prefix ``STUB_``: ``capability="12.0", oom_at=3``.
    """
    named = {f"STUB_{name.upper()}": value for name, value in settings.items()}
    folder = built() / ("forwarded" if forwarded else "direct")
    settings_of_stub = {"LD_LIBRARY_PATH": folder, "STUB_NVRTC": nvrtc(), **named}
    return {name: None if value is None else str(value) for name, value in settings_of_stub.items()}


def card(**settings: str | Path | int | None) -> dict[str, str | None]:
    """Return `variables` with ``forwarded``, or nothing with TEST_CARD, so that the card of the machine is used.

    TEST_CARD is ``quick``, or ``full`` for large sizes, for which only a real card is fast enough.
    """
    return {} if "TEST_CARD" in os.environ else variables(True, **settings)


def _kernels(folder: Path) -> Path:
    """Return the directory of compiled kernels, which contains the headers of this version."""
    headers = {name: (SOURCES / name).read_text() for name in ("kernel.h", "fibers.h")}
    key = hashlib.sha256("".join([*headers.values(), KERNEL_FLAGS]).encode()).hexdigest()[:16]
    place = folder / f"kernels-{key}"
    place.mkdir(exist_ok=True)
    for name, text in headers.items():
        (place / name).write_text(text)
    return place


def _build(place: Path) -> None:
    direct = place / "direct"
    forwarded = place / "forwarded"
    for folder in (direct, forwarded):
        folder.mkdir(exist_ok=True)
    for name, words in _libraries().items():
        _compile(forwarded, name, words, _kernels(place.parent))
        for link in (direct / name, direct / f"{name.partition('.so')[0]}.so"):
            _link(link, forwarded / name)
    _link(forwarded / "libcublas.so", forwarded / "libcublas.so.12")  # the project does not replace cuBLAS
    _build_forwarders(forwarded)


def _libraries() -> dict[str, list[str]]:
    """Return sources and libraries to link with, by the name of each library."""
    import scipy_openblas32

    blas = scipy_openblas32.get_lib_dir()
    link_blas = [f"-L{blas}", "-lscipy_openblas", f"-Wl,-rpath,{blas}"]
    return {
        "libcuda.so.1": ["driver.cpp", "modules.cpp", "-ldl"],
        nvrtc().name: ["nvrtc.cpp", "-ldl"],
        "libcublas.so.12": ["blas.cpp", "-L.", "-l:libcuda.so.1", *link_blas],
    }


def _compile(folder: Path, name: str, words: list[str], kernels: Path) -> None:
    """Compile a library from sources and libraries. It will store compiled kernels in the directory `kernels`."""
    compiler = shutil.which("g++") or "g++"
    constants = {
        "STUB_FOLDER": kernels,
        "STUB_COMPILER": compiler,
        "STUB_FLAGS": KERNEL_FLAGS,
        "STUB_NVRTC_PATH": nvrtc(),
    }
    defined = [f'-D{constant}="{value}"' for constant, value in constants.items()]
    inputs = [str(SOURCES / word) if word.endswith(".cpp") else word for word in words]
    command = [compiler, *FLAGS, *defined, f"-Wl,-soname,{name}", "-o", name, *inputs]
    subprocess.run(command, cwd=folder, check=True)


def _link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
