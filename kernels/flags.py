"""What Theano reads while it is imported: our settings below the user's own."""

from __future__ import annotations

import ctypes
import os
import platform
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.abc import MetaPathFinder
from typing import Any

from kernels.compilecache import default_cache

__all__ = ["NoScipy", "UnknownFlag", "below_the_users", "check_flags", "compiler_flags", "requested_device"]

# Every BLAS routine that Theano's real-valued operations call.
_BLAS_ROUTINES = ("gemm", "gemv", "ger", "dot", "axpy", "scal")


class UnknownFlag(ValueError):
    """The user's settings name something that Theano does not know, and would pass over."""


@contextmanager
def below_the_users() -> Iterator[None]:
    """Hand Theano our defaults as the first, and so the weakest, of its configuration files.

    THEANORC is a list of files in which later ones win, and THEANO_FLAGS wins over all of them. The device is taken
    out for the import by a last, strongest flag. The environment is put back, so that a spawned child starts as this
    process did.
    """
    before = {name: os.environ.get(name) for name in ("THEANORC", "THEANO_FLAGS")}
    # A parent that had a GPU leaves this behind, and Theano in a spawned child would refuse to start one.
    os.environ.pop("THEANO_GPU_IS_ALREADY_ACTIVE", None)
    umask = os.umask(0o077)
    try:
        with os.fdopen(os.memfd_create("theanorc"), "w") as ours:  # where no disk has room, either
            ours.write(_default_settings())
            ours.flush()
            theirs = "~/.theanorc" if before["THEANORC"] is None else before["THEANORC"]
            os.environ["THEANORC"] = os.pathsep.join([f"/proc/self/fd/{ours.fileno()}", theirs])
            # The line's end closes a comment: Theano's reader knows them.
            flags = f"{before['THEANO_FLAGS'] or ''}\n,device=cpu,init_gpu_device=,contexts="
            os.environ["THEANO_FLAGS"] = flags
            yield
    finally:
        os.umask(umask)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _default_settings() -> str:
    """Our defaults, as the text of a Theano configuration file."""
    sections = {
        "global": {
            "floatX": "float32",
            "base_compiledir": default_cache(),
            "print_active_device": "False",
        },
        # Several cold processes share one lock, and the default gives up on a slow machine.
        "compile": {"timeout": "600"},
        "gcc": {"cxxflags": compiler_flags()},
        "blas": {"ldflags": _blas_flags()},
        # Theano knows cuDNN up to version 7 only, and this model needs none of it.
        "dnn": {"enabled": "False"},
    }
    lines = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value.replace('%', '%%')}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def compiler_flags() -> str:
    """What gcc is told; Theano adds the processor's own -march flags, and makes them part of its cache's keys."""
    # The macro alone makes gcc call the vector expf of glibc. Real -ffast-math would also switch the whole process to
    # flush-to-zero.
    flags = "-O3 -D__FAST_MATH__"
    return f"{flags} -mprefer-vector-width=512" if platform.machine() == "x86_64" else flags


def _blas_flags() -> str:
    """Link flags for the newest OpenBLAS on PyPI, whose symbols carry a prefix."""
    import scipy_openblas32

    renames = [f"-D{t}{name}_=scipy_{t}{name}_" for t in "sd" for name in _BLAS_ROUTINES]
    folder = scipy_openblas32.get_lib_dir()
    if len(folder.split()) == 1:
        return " ".join([f"-L{folder}", "-lscipy_openblas", *renames])
    # Theano cuts flags at every space. What is compiled finds the routines in a library that is there already, too.
    ctypes.CDLL(os.path.join(folder, "libscipy_openblas.so"), mode=ctypes.RTLD_GLOBAL)
    return " ".join(renames)


def requested_device() -> str:
    """The device in the user's flags and files, read and checked by Theano's own code."""
    from theano import configdefaults, configparser

    flags = configparser.parse_config_string(os.environ.get("THEANO_FLAGS", ""), issue_warnings=False)
    parameter = configdefaults.DeviceParam("cpu")
    parameter.fullname = "device"
    in_files = configparser.theano_raw_cfg.get("global", "device", fallback="cpu")
    return str(parameter.filter(flags.get("device", in_files)))


def check_flags() -> None:
    """Refuse what Theano would pass over with a warning at most: a name that it does not know, a flag without a value.

    Raises
    ------
    UnknownFlag
        It names what is nearest.
    """
    from theano import configparser

    known = {parameter.fullname for parameter in configparser._config_var_list}
    for flag in _split(os.environ.get("THEANO_FLAGS", "")):
        name, equals, _ = flag.partition("=")
        if name not in known:
            raise UnknownFlag(f"THEANO_FLAGS: Theano has no flag {name!r}.{_nearest(name, known)}")
        if not equals:
            raise UnknownFlag(f"THEANO_FLAGS: {name!r} has no value, expected {name}=VALUE")
    files = configparser.theano_raw_cfg
    spelled = {name.lower(): name for name in known}  # Theano ignores the case of names in files
    for section in files.sections():
        for option in files.options(section):
            name = option if section == "global" else f"{section}.{option}"
            if name.lower() not in spelled and option not in files.defaults():
                near = _nearest(name, spelled)
                raise UnknownFlag(f".theanorc: Theano has no option {option!r} in section [{section}].{near}")


def _split(flags: str) -> list[str]:
    """As Theano does it, with its quotes and comments."""
    words = shlex.shlex(flags, posix=True)
    words.whitespace = ","
    words.whitespace_split = True
    return [word.strip() for word in words if word.strip()]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f" Did you mean {near[0]}?" if near else ""


class NoScipy(MetaPathFinder):
    """Theano takes SciPy where it finds it, for operations that this model has none of, and 0.5 s to import it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Say that there is no SciPy, unless it is imported already."""
        if fullname.partition(".")[0] == "scipy":
            raise ModuleNotFoundError("not needed by this model", name=fullname)
