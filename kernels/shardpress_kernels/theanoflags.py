"""Settings for the import of Theano: our defaults, and the user's settings, which override them."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from shardpress_kernels.compilecache import default_cache

# All BLAS routines that Theano's real-valued operations call.
_BLAS_ROUTINES = ("gemm", "gemv", "ger", "dot", "axpy", "scal")


class UnknownFlag(ValueError):
    """A name in the user's settings that Theano does not know and would ignore."""


@contextmanager
def default_settings() -> Iterator[None]:
    """Pass our defaults to Theano as the first of its configuration files, which has the lowest precedence.

    Later files in THEANORC override earlier ones, and THEANO_FLAGS overrides all files. During the import, a last flag
    sets the device to the CPU. Afterwards the environment is restored, so that child processes start like this one.
    """
    files = os.environ.get("THEANORC", "~/.theanorc")
    flags = os.environ.get("THEANO_FLAGS", "")
    # A parent process with a GPU sets this variable, and Theano in a child process would then refuse to use a GPU.
    os.environ.pop("THEANO_GPU_IS_ALREADY_ACTIVE", None)
    umask = os.umask(0o077)
    try:
        with _defaults_file() as defaults:
            variables = {
                "THEANORC": os.pathsep.join([defaults, files]),
                # The newline ends a comment in the user's flags.
                "THEANO_FLAGS": f"{flags}\n,device=cpu,init_gpu_device=,contexts=",
            }
            with _environment(variables):
                yield
    finally:
        os.umask(umask)


@contextmanager
def _defaults_file() -> Iterator[str]:
    """Yield the path of a configuration file with our defaults. It is in memory, because the disk may be full."""
    with os.fdopen(os.memfd_create("theanorc"), "w") as file:
        file.write(_defaults_text())
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _defaults_text() -> str:
    """Return our defaults as the text of a Theano configuration file."""
    sections = {
        "global": {
            "floatX": "float32",
            "base_compiledir": default_cache(),
            "print_active_device": "False",
        },
        # Processes that fill an empty cache share one lock; on a slow machine Theano's default timeout is too short.
        "compile": {"timeout": "600"},
        "gcc": {"cxxflags": compiler_flags()},
        "blas": {"ldflags": _blas_flags()},
        # Theano supports cuDNN only up to version 7, and this model does not need it.
        "dnn": {"enabled": "False"},
    }
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            escaped = value.replace("%", "%%")
            lines.append(f"{key} = {escaped}")
    return "\n".join(lines) + "\n"


def compiler_flags() -> str:
    """Return the flags for gcc. Theano adds the processor's -march flags, and all flags are part of its cache keys."""
    # The macro alone makes gcc call the vector expf of glibc. The option -ffast-math would also switch the whole
    # process to flush-to-zero. Theano requests debugging information, which takes a quarter of the compiler's time.
    flags = "-O3 -g0 -D__FAST_MATH__"
    if platform.machine() == "x86_64":
        flags += " -mprefer-vector-width=512"
    return flags


def _blas_flags() -> str:
    """Return link flags for the newest OpenBLAS on PyPI, whose symbols have a prefix."""
    import scipy_openblas32

    renames = [f"-D{kind}{name}_=scipy_{kind}{name}_" for kind in "sd" for name in _BLAS_ROUTINES]
    folder = scipy_openblas32.get_lib_dir()
    if len(folder.split()) == 1:
        return " ".join([f"-L{folder}", "-lscipy_openblas", *renames])
    # Theano splits flags at spaces. Compiled code also finds the routines in a library that is already loaded.
    ctypes.CDLL(os.path.join(folder, "libscipy_openblas.so"), mode=ctypes.RTLD_GLOBAL)
    return " ".join(renames)


def requested_device() -> str:
    """Return the device in the user's flags and files; Theano's own code raises `ValueError` for unknown names."""
    from theano import configdefaults, configparser

    flags = configparser.parse_config_string(os.environ.get("THEANO_FLAGS", ""), issue_warnings=False)
    parameter = configdefaults.DeviceParam("cpu")
    parameter.fullname = "device"
    in_files = configparser.theano_raw_cfg.get("global", "device", fallback="cpu")
    return str(parameter.filter(flags.get("device", in_files)))


def check_flags() -> None:
    """Raise `UnknownFlag` for unknown names and for flags without a value, which Theano would ignore."""
    from theano import configparser

    known = {parameter.fullname for parameter in configparser._config_var_list}
    _check_variable(os.environ.get("THEANO_FLAGS", ""), known)
    _check_files(configparser.theano_raw_cfg, known)


def _check_variable(flags: str, known: set[str]) -> None:
    """Refuse unknown names and flags without a value in THEANO_FLAGS."""
    for flag in _split(flags):
        name, equals, _ = flag.partition("=")
        if name not in known:
            raise UnknownFlag(f"THEANO_FLAGS: Theano has no flag {name!r}.{_suggest(name, known)}")
        if not equals:
            raise UnknownFlag(f"THEANO_FLAGS: {name!r} has no value, expected {name}=VALUE")


def _check_files(files: Any, known: set[str]) -> None:
    """Refuse unknown names in the user's configuration files."""
    lower_case = {name.lower() for name in known}  # Theano ignores the case of names in files
    for section in files.sections():
        for option in files.options(section):
            name = option if section == "global" else f"{section}.{option}"
            if name.lower() not in lower_case and option not in files.defaults():
                suggestion = _suggest(name, lower_case)
                raise UnknownFlag(f".theanorc: Theano has no option {option!r} in section [{section}].{suggestion}")


def _split(flags: str) -> list[str]:
    """Split flags like Theano, which supports quotes and comments."""
    words = shlex.shlex(flags, posix=True)
    words.whitespace = ","
    words.whitespace_split = True
    return [word.strip() for word in words if word.strip()]


def _suggest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    if not near:
        return ""
    return f" Did you mean {near[0]}?"
