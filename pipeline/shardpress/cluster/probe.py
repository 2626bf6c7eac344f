"""Facts about a process that must be the same on the driver and on its workers: packages, files and processor."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path

from shardpress.base.errors import printable
from shardpress.base.packages import version_of
from shardpress.base.sourceroots import SOURCE_ROOTS

# Packages whose versions determine what a task computes, or whether it can be sent.
_PACKAGES = ("numpy", "Theano", "scipy-openblas32", "h5py", "dask", "distributed")
_SOURCES = ("shardpress/**/*.py", "shardpress_kernels/**/*.py", "shardpress_kernels/native/*")
# Instruction sets that affect which code compilers, OpenBLAS and our kernels select.
_INSTRUCTION_SET = re.compile(r"(avx|fma|f16c|amx|sve|asimd)\w*")


@dataclass(frozen=True)
class Probe:
    """Paths that must lead to the same files on workers and on the driver."""

    directory: str  # the driver's current directory. Workers change to it, because paths are relative to it
    output: str  # the absolute path of the output directory
    inputs: tuple[str, ...]
    mixed_processors: bool = False  # whether to allow different processors, compilers and C libraries
    marker: str = ""  # path of a file that only this run's output directory has; see `marked`

    def marked(self) -> Probe:
        """Write a file to the output directory, and return a probe that reads it."""
        marker = Path(self.output, f"work/probe-{uuid.uuid4().hex}.txt")
        marker.write_text(marker.name)
        return replace(self, marker=str(marker))

    def facts(self) -> dict[str, str]:
        """Change to the driver's directory, and return texts that are the same for equal processes."""
        facts = packages()
        if not self.mixed_processors:
            facts |= _processor() | _system()
        facts[f"directory={printable(self.directory)}"] = _outcome(partial(os.chdir, self.directory))
        facts[f"output={printable(self.output)}"] = _outcome(partial(_write_to, self.output))
        if self.marker:
            facts[f"file={printable(self.marker)}"] = _outcome(Path(self.marker).read_text)
        for path in self.inputs:
            facts[f"file={printable(path)}"] = _outcome(partial(_file_identity, path))
        return facts


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """Return a text for each fact that differs from the driver's facts."""
    return [
        f"{name} {actual.get(name)}, expected {text}" for name, text in expected.items() if actual.get(name) != text
    ]


def packages() -> dict[str, str]:
    """Return the versions of packages, and a digest of our source files, because checkouts of a version can differ."""
    versions = {"Python": platform.python_version(), "shardpress": f"{version_of('shardpress')} of source {_digest()}"}
    for package in _PACKAGES:
        versions[package] = version_of(package) or "not installed"
    return versions


@cache
def _digest(roots: Sequence[str] = tuple(SOURCE_ROOTS)) -> str:
    files = {}
    for root in map(Path, roots):
        for pattern in _SOURCES:
            for path in root.glob(pattern):
                files[path.relative_to(root).as_posix()] = path
    digest = sha256()
    for name in sorted(files):
        if files[name].is_file():
            digest.update(name.encode() + b"\0" + files[name].read_bytes())
    return digest.hexdigest()[:12]


@cache
def _processor() -> dict[str, str]:
    """Return the name of the processor and the available instruction sets. A virtual machine can hide some of them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"processor": platform.machine()}
    fields = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    flags = fields.get("flags") or fields.get("Features", "")
    instruction_sets = sorted(flag for flag in flags.split() if _INSTRUCTION_SET.fullmatch(flag))
    return {"processor": fields.get("model name", platform.machine()), "instruction sets": " ".join(instruction_sets)}


@cache
def _system() -> dict[str, str]:
    """Return the versions of the C++ compiler, which builds all kernels, and the C library, which computes exp."""
    try:
        done = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
        compiler = done.stdout.strip() or "of unknown version"
    except OSError:
        compiler = "not installed"
    return {"g++": compiler, "C library": " ".join(platform.libc_ver())}


def _outcome(access: Callable[[], object]) -> str:
    """Return the outcome of an access to a file as text."""
    try:
        content = access()
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    except ValueError:  # not UTF-8
        content = "binary data"
    return "can be used" if content is None else f"holds {content}"


def _write_to(directory: str) -> None:
    with tempfile.TemporaryFile(dir=os.path.join(directory, "work")) as file:
        file.write(b"1")


def _file_identity(path: str) -> str:
    """Return the identity of a file without its device number, which each host assigns itself."""
    status = os.stat(path)
    return f"{status.st_size} bytes in inode {status.st_ino}, changed at {status.st_mtime_ns} ns"
