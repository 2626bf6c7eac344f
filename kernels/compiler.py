"""The C++ compiler as Theano calls it: whether there is one, where it works, and what it says when it fails."""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

__all__ = [
    "CompilerFailed",
    "CompilerMissing",
    "WatchedCompiler",
    "check_compiler",
    "check_processor_flags",
    "hush_compiler",
    "is_at_work",
    "seconds_spent",
    "watch_compiler",
]

log = logging.getLogger(__name__)

_LONGEST = 300  # characters of a compiler's line that are quoted

_WINDOWS = "theano.misc.windows"  # the module from which Theano takes its function to run programs


class CompilerMissing(RuntimeError):
    """The compiler that is named in the user's settings is no program."""


class CompilerFailed(RuntimeError):
    """The compiler has failed, for the reason that its first line about an error gives.

    Attributes
    ----------
    output : str
        The command and all that was said, in lines.
    """

    def __init__(self, command: Sequence[str], said: str) -> None:
        super().__init__(_first_error(said))
        self.output = f"{' '.join(command)}\n{said}"


def check_compiler(config: Any) -> None:
    """Raise `CompilerMissing` for a ``cxx`` that is no program: Theano would only say that a file is not there."""
    if config.cxx and shutil.which(config.cxx) is None:
        raise CompilerMissing(f"cxx={config.cxx}: no such program")


class WatchedCompiler:
    """The function by which Theano runs the compiler, with the time that it has taken.

    A process has one, in the place of Theano's own function. Theano compiles one module at a time, under a lock.

    Parameters
    ----------
    run : callable
        Theano's own function.
    config : object
        Theano's, whose ``compiledir`` is private by the time of the first call.

    Attributes
    ----------
    seconds : float
        Duration of all compilations so far.
    n_running : int
        Number of compilations that are under way.
    """

    def __init__(self, run: Callable[..., Any], config: Any) -> None:
        self.seconds = 0.0
        self.n_running = 0
        self._n_done = 0
        self._run = run
        self._config = config

    def __call__(self, command: Sequence[str], **how: Any) -> Any:
        """Run a command; raise `CompilerFailed` if it was to make a library and fails."""
        if "-shared" not in command:  # a question, and a failure is an answer
            return self._call(command, **how)
        if not self._n_done:
            log.info("compiling for this machine, once: what is compiled is kept for later runs")
        self.n_running += 1
        start = time.monotonic()
        try:
            out, err, status = self._call(command, **how)
        finally:
            self.seconds += time.monotonic() - start
            self.n_running -= 1
            self._n_done += 1
        if status:
            raise CompilerFailed(command, err.decode(errors="replace"))
        return out, err, status

    def _call(self, command: Sequence[str], **how: Any) -> Any:
        program, *arguments = command
        if os.sep in program:
            program = os.path.abspath(program)
        # Not in the current directory: the linker takes libgcc_s.so.1 from there, if another user has put one.
        return self._run([program, *arguments], env=_environment(), cwd=self._config.compiledir, **how)


def watch_compiler(windows: Any, config: Any) -> None:
    """Have Theano compile through a `WatchedCompiler`.

    Parameters
    ----------
    windows : module
        ``theano.misc.windows``, before ``theano.gof.cmodule`` takes its function to run programs from there.
    config : object
        Theano's.
    """
    windows.output_subprocess_Popen = WatchedCompiler(windows.output_subprocess_Popen, config)


def _watched() -> WatchedCompiler | None:
    """Return the compiler of this process; None before Theano is loaded."""
    windows = sys.modules.get(_WINDOWS)
    found = getattr(windows, "output_subprocess_Popen", None)
    return found if isinstance(found, WatchedCompiler) else None


def check_processor_flags(cmodule: Any, config: Any) -> None:
    """Check that the compiler has reported the flags of this machine's processor.

    Theano asks it once in a process. If that fails, for example under a limit of processes, Theano compiles for any
    processor of the architecture without a word, and the features have other last bits.

    Parameters
    ----------
    cmodule : module
        ``theano.gof.cmodule``.
    config : object
        Theano's.

    Raises
    ------
    CompilerFailed
        When it has not, and the user's flags name no processor.
    """
    is_gcc = "g++" in config.cxx and "clang" not in config.cxx
    if not is_gcc or platform.machine() != "x86_64":
        return
    is_chosen = any(flag.lstrip("-").startswith("march=") for flag in config.gcc.cxxflags.split())
    cmodule.GCC_compiler.compile_args()
    if is_chosen or cmodule.GCC_compiler.march_flags:
        return
    command = [config.cxx, "-march=native", "-E", "-v", "-"]
    raise CompilerFailed(
        command,
        f"error: '{' '.join(command)}' has not reported the flags of this processor. Check the limit of processes "
        "(ulimit -u), or name them with gcc.cxxflags=-march=... in THEANO_FLAGS",
    )


def is_at_work() -> bool:
    """Return whether this process waits for the compiler."""
    compiler = _watched()
    return compiler is not None and compiler.n_running > 0


def seconds_spent() -> float:
    """Return how long this process has waited for the compiler."""
    compiler = _watched()
    return 0.0 if compiler is None else compiler.seconds


def hush_compiler(cmodule: Any) -> None:
    """Keep ``theano.gof.cmodule`` from printing a command that failed: it stands in the error."""

    def say(*words: object, **how: Any) -> None:
        if how.get("file") is not sys.stderr:
            print(*words, **how)

    cmodule.print = say


def _environment() -> dict[str, str]:
    """Our own, with a PATH, which the compiler needs to find its linker, and the temporary directory that we take."""
    return {**os.environ, "PATH": os.environ.get("PATH") or os.defpath, "TMPDIR": tempfile.gettempdir()}


def _first_error(said: str) -> str:
    """The line that says why: of a full disk, else the first about an error, else the first."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it says nothing"]
    for sign in ("No space left|quota exceeded|File too large", r"\berror\b", "cannot|not found"):
        for line in lines:
            if re.search(sign, line, re.IGNORECASE):
                return line[:_LONGEST]
    return lines[0][:_LONGEST]
