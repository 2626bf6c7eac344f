"""Checks of the C++ compiler, and control of Theano's calls: working directory, duration and errors."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardpress_kernels.compilelock import released

log = logging.getLogger(__name__)

_MAX_QUOTED = 300
"""Number of characters of a compiler's line that are quoted."""

_WINDOWS = "theano.misc.windows"
"""Module from which Theano takes its function to run programs."""

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


class _WatchedCompiler:
    """A replacement for Theano's function that runs the compiler; it measures the duration of compilations.

    A process has one instance, and compiles one module at a time. The setting ``compiledir`` must be private at the
    first call.
    """

    def __init__(self, run: Callable[..., Any], config: Any) -> None:
        self.seconds = 0.0
        self.n_running = 0
        self._n_done = 0
        self._run = run
        self._config = config

    def __call__(self, command: Sequence[str], **options: Any) -> Any:
        """Run a command, and return its output, its errors and its exit status."""
        if "-shared" not in command:
            # Theano runs such commands to find the features of the compiler, and expects some of them to fail.
            return self._call(command, **options)
        if self._n_done == 0:
            log.info("compiling kernels for this machine (cached for later runs)")
        with released(), self._timing():
            out, err, status = self._call(command, **options)
        if status:
            raise CompilerFailed(command, err.decode(errors="replace"))
        return out, err, status

    @contextmanager
    def _timing(self) -> Iterator[None]:
        self.n_running += 1
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - start
            self.n_running -= 1
            self._n_done += 1

    def _call(self, command: Sequence[str], **options: Any) -> Any:
        program, *arguments = command
        if os.sep in program:
            program = os.path.abspath(program)
        # If the linker ran in the current directory, it would use a libgcc_s.so.1 that another user has put there.
        return self._run([program, *arguments], env=_environment(), cwd=self._config.compiledir, **options)


def watch_compiler(windows: Any, config: Any) -> None:
    """Make Theano compile through a `_WatchedCompiler`.

    This must precede the import of ``theano.gof.cmodule``, which imports the function to run programs.
    """
    windows.output_subprocess_Popen = _WatchedCompiler(windows.output_subprocess_Popen, config)


def _watched() -> _WatchedCompiler | None:
    """Return the compiler of this process; None before Theano is loaded."""
    windows = sys.modules.get(_WINDOWS)
    found = getattr(windows, "output_subprocess_Popen", None)
    return found if isinstance(found, _WatchedCompiler) else None


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
    found = os.stat(path)
    compiler = [path, found.st_size, found.st_mtime_ns, cmodule.gcc_version_str, config.gcc.cxxflags]
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


def is_running() -> bool:
    """Return whether this process is waiting for the compiler."""
    compiler = _watched()
    return compiler is not None and compiler.n_running > 0


def seconds_spent() -> float:
    """Return how long this process has waited for the compiler."""
    compiler = _watched()
    return 0.0 if compiler is None else compiler.seconds


def silence_compiler(cmodule: Any) -> None:
    """Keep ``theano.gof.cmodule`` from printing commands that failed; the errors contain these commands."""

    def print_unless_error(*words: object, **options: Any) -> None:
        if options.get("file") is not sys.stderr:
            print(*words, **options)

    cmodule.print = print_unless_error


def _environment() -> dict[str, str]:
    environment = dict(os.environ)
    environment["PATH"] = os.environ.get("PATH") or os.defpath  # the compiler needs it to find its linker
    environment["TMPDIR"] = tempfile.gettempdir()
    return environment


def _find_reason(output: str) -> str:
    """Return the line of a compiler's output that gives the reason of its failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["it printed nothing"]
    for sign in _SIGNS:
        for line in lines:
            if re.search(sign, line, re.IGNORECASE):
                return line[:_MAX_QUOTED]
    return lines[0][:_MAX_QUOTED]
