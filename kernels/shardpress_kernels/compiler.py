"""The C++ compiler: checks of it, the environment in which it runs, the time that it takes, and its errors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_MAX_QUOTED = 300
"""Number of characters of a compiler's line that are quoted."""

# Lines of /proc/cpuinfo that identify the processor; others, such as its frequency, change.
_PROCESSOR = ("vendor_id", "cpu family", "model", "model name", "stepping", "cache size", "flags")

# Patterns of lines that give the reason of a failure, the most reliable first: a full disk causes other errors as well.
_SIGNS = ("No space left|quota exceeded|File too large", r"\berror\b", "cannot|not found")


class CompilerMissing(RuntimeError):
    """The compiler in the user's settings is not a program."""


class CompilerFailed(RuntimeError):
    """The compiler failed. The message is the line of its output that gives the reason.

    The attribute `output` contains the command, followed by all of its output.
    """

    def __init__(self, command: Sequence[str], output: str) -> None:
        super().__init__(_find_reason(output))
        self.output = f"{' '.join(command)}\n{output}"


def check_compiler(config: Any) -> None:
    """Check that Theano's setting ``cxx`` names a program. Theano itself would only report a missing file."""
    if config.cxx and shutil.which(config.cxx) is None:
        raise CompilerMissing(f"cxx={config.cxx} does not name a program that can be run")


def start_program(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a compiler, or a program that it has built. The changed files of Theano call this function.

    If the linker ran in the current directory, it would use a libgcc_s.so.1 that another user has put there.
    """
    program, *arguments = command
    if os.sep in program:
        program = os.path.abspath(program)
    environment = dict(os.environ)
    environment["PATH"] = os.environ.get("PATH") or os.defpath  # the compiler needs it to find its linker
    environment["TMPDIR"] = tempfile.gettempdir()
    return subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, env=environment, cwd="/", **options)


class _Compilations:
    """Compilations of modules by this process, which compiles one at a time."""

    def __init__(self) -> None:
        self.seconds = 0.0  # how long this process has waited for the compiler
        self.is_running = False
        self._is_logged = False

    def run(self, command: Sequence[str]) -> None:
        """Run a command that compiles a module, or raise `CompilerFailed`."""
        if not self._is_logged:
            log.info("compiling kernels for this machine (cached for later runs)")
        self._is_logged = True
        self.is_running = True
        start = time.monotonic()
        try:
            streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
            with start_program(command, **streams) as process:
                _, errors = process.communicate()
        finally:
            self.seconds += time.monotonic() - start
            self.is_running = False
        if process.returncode:
            raise CompilerFailed(command, errors.decode(errors="replace"))


compilations = _Compilations()
"""The compilations of this process."""


def check_processor_flags(cmodule: Any, config: Any) -> None:
    """Raise `CompilerFailed` unless the compiler has reported the processor's flags, or the user named a processor.

    Theano queries the compiler once per process, and compiles a program to test the flags. If the query fails, for
    example because of a limit on processes, Theano compiles for any processor of the architecture without a warning,
    and the last bits of the features differ. A file in the compile cache keeps the flags for later processes.
    """
    is_gcc = "g++" in config.cxx and "clang" not in config.cxx
    if not is_gcc or platform.machine() != "x86_64":
        return
    if any(flag.lstrip("-").startswith("march=") for flag in config.gcc.cxxflags.split()):
        return
    gcc = cmodule.GCC_compiler
    file = Path(config.compiledir) / f"processor-flags-{_fingerprint_processor(cmodule, config)}.json"
    gcc.march_flags = _read_flags(file)
    if gcc.march_flags:
        return
    gcc.compile_args()  # queries the compiler
    if gcc.march_flags:
        with suppress(OSError):  # the next process queries the compiler again
            temporary = file.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(gcc.march_flags))
            temporary.replace(file)
        return
    command = [config.cxx, "-march=native", "-E", "-v", "-"]
    message = (
        f"error: '{' '.join(command)}' has not reported the flags of this processor. Check the limit on processes "
        "(ulimit -u), or set the flags with gcc.cxxflags=-march=... in THEANO_FLAGS"
    )
    raise CompilerFailed(command, message)


def _fingerprint_processor(cmodule: Any, config: Any) -> str:
    """Return a hash of the processor, the compiler and its flags, which determine the flags that it reports."""
    path = os.path.realpath(shutil.which(config.cxx) or config.cxx)
    facts = os.stat(path)
    compiler = [path, facts.st_size, facts.st_mtime_ns, cmodule.gcc_version_str, config.gcc.cxxflags]
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    processor = [line for line in first.splitlines() if line.partition("\t")[0] in _PROCESSOR]
    return hashlib.sha256(json.dumps([compiler, processor]).encode()).hexdigest()[:16]


def _read_flags(file: Path) -> list[str] | None:
    """Return the flags in a file of the compile cache; None if it is missing or damaged."""
    try:
        flags = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if isinstance(flags, list) and all(isinstance(flag, str) for flag in flags):
        return flags
    return None


def _find_reason(output: str) -> str:
    """Return the line of a compiler's output that gives the reason of its failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    for sign in _SIGNS:
        for line in lines:
            if re.search(sign, line, re.IGNORECASE):
                return line[:_MAX_QUOTED]
    return lines[0][:_MAX_QUOTED]
