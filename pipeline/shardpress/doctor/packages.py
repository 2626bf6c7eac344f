"""Check of Python, packages and memory before anything is loaded.

Python 3.6 must be able to run this file, and it must take almost no time: importing `packaging` and
`importlib.metadata` would take 60 ms.
"""

import importlib.util
import operator
import os
import re
import resource
import shlex
import sys
import sysconfig

from shardpress.sourceroots import CHECKOUT

# A run over a hundred rows needs 350 MiB for two threads and the libraries. With less, HDF5 crashed.
_MIN_ADDRESS_SPACE = 360 * 2**20
_COMPARED = {"<": operator.lt, ">=": operator.ge, "==": operator.eq}
# Lines with a marker belong to extras.
_REQUIREMENT = r"^Requires-Dist: ([\w.-]+)(?:\[.*?\])? *\(?([^ ;()\n]*)\)?$"
_OLDEST = (3, 11)
_NEWEST = (3, 14)
_PYTHONS = "Python 3.11 to 3.14"
# The same advice as in scripts/setup.sh, which is not part of a wheel.
PYTHON_ADVICE = (
    "Install one from your distribution (Debian: apt-get install python3-venv python3-dev g++), with pyenv (pyenv "
    "install 3.13) or with uv (uv python install 3.13). Then create an environment with it: python3 -m venv env && "
    "env/bin/pip install shardpress && env/bin/shardpress setup-theano."
)


def complaint() -> str:
    """Return what is wrong with this Python and what to do, or an empty string."""
    unsuitable = unsuitable_python()
    if unsuitable:
        return _refuse(f"{unsuitable}. {PYTHON_ADVICE}")
    wrong = unmet_requirements(find_distributions())
    if wrong:
        return "; ".join(wrong)
    if importlib.util.find_spec("theano"):
        return ""
    return _refuse(missing_theano())


def unsuitable_python() -> str:
    """Return why no run is possible in this version of Python, or an empty string."""
    if not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        return f"shardpress needs {_PYTHONS}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "shardpress does not support free-threaded builds of Python"
    return ""


def missing_theano() -> str:
    """Return what to do if Theano is not installed, as the end of a sentence about this Python."""
    if _in_checkout():
        return f"shardpress needs {_PYTHONS} with the packages that make setup installs. {_what_to_type()}"
    # With -I, Python imports nothing from the current directory.
    return f"Theano is not installed. Run: {shlex.quote(sys.executable)} -I -m shardpress setup-theano"


def _refuse(reason: str) -> str:
    """Return a message that this Python cannot run the program, and the reason."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    return f"{_program()} cannot run in this Python ({version} at {sys.executable}): {reason}"


def too_little_memory() -> str:
    """Return a message if the limit on memory is too low for any run, otherwise an empty string."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= _MIN_ADDRESS_SPACE:
        return ""
    return (
        f"the address space is limited to {limit >> 10} KiB (ulimit -v), expected at least {_MIN_ADDRESS_SPACE >> 10} "
        "KiB, which Python and its libraries need. Raise the limit."
    )


def missing_proc() -> str:
    """Return a message if ``/proc`` is not mounted, otherwise an empty string."""
    if os.path.isdir("/proc/self/fd"):
        return ""
    return (
        "/proc is not mounted, but Dask, Theano and the processes that check HDF5 files need it. Mount it (mount -t "
        "proc proc /proc), or make it available in the container."
    )


def _program() -> str:
    """Return the name of the program.

    For `shardpress`, the name includes the command, because not all commands need Theano.
    """
    name = os.path.basename(sys.argv[0])
    if name == "shardpress":
        return " ".join([name, *sys.argv[1:2]])
    return name


def _in_checkout() -> bool:
    return os.path.exists(os.path.join(CHECKOUT, "scripts", "setup.sh"))


def _what_to_type(root: str = CHECKOUT) -> str:
    """Return advice to use the virtual environment of a checkout, whose directory is `root`."""
    python = os.path.join(root, ".venv", "bin", "python")
    command = " ".join(map(shlex.quote, (os.path.relpath(python), sys.argv[0])))
    if os.path.exists(python) and os.path.abspath(sys.executable) != python:
        return f"Run: {command}"
    return f"Run make setup in {root}, then: {command}"


def find_distributions() -> "dict[str, str]":
    """Return the metadata directories of all distributions, by normalized name.

    If a distribution is found twice, the first one counts, as for imports. Debian uses .egg-info directories.
    """
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # imports ignore such an entry, too
            continue
        for name in names:
            if re.fullmatch(r"[^-]+-.*\.(dist|egg)-info", name):
                found.setdefault(_normal(name.split("-")[0]), os.path.join(folder, name))
    return found


def unmet_requirements(found: "dict[str, str]") -> "list[str]":
    """Return a message with advice for each requirement of shardpress that is not met.

    Parameters
    ----------
    found : dict of str to str
        Installed distributions, see `find_distributions`.
    """
    if "shardpress" not in found:
        return []  # a checkout that is not installed has no list of versions
    sentences = []
    for name, ranges in _requirements(found["shardpress"]):
        version = os.path.basename(found.get(_normal(name), "")).rpartition(".")[0].partition("-")[2]
        if version and _fits(version, ranges):
            continue
        state = f"{version} is installed" if version else "is not installed"
        command = f"{shlex.quote(sys.executable)} -m pip install '{name}{ranges}'"
        sentences.append(f"{name} {state}, expected {ranges}: {command}")
    return sentences


def _requirements(metadata: str) -> "list[tuple[str, str]]":
    """Return the names and version ranges that a distribution requires."""
    with open(os.path.join(metadata, "METADATA"), encoding="utf-8") as file:
        return re.findall(_REQUIREMENT, file.read(), re.M)


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _fits(version: str, ranges: str) -> bool:
    """Return whether a version is in ranges of the kinds that setup.py uses."""
    bounds = re.findall(r"([<>=]+) *([\d.]+)", ranges)
    return all(_COMPARED[operation](_numbers(version), _numbers(bound)) for operation, bound in bounds)


def _numbers(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))
