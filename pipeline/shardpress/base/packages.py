"""Check of Python, packages and memory before anything is loaded.

Python 3.6 must be able to run this file.
"""

import operator
import os
import re
import resource
import shlex
import sys
import sysconfig

from shardpress.base.sourceroots import CHECKOUT

# A run over a hundred rows needs 350 MiB for two threads and the libraries. With less, HDF5 crashed.
_MIN_ADDRESS_SPACE = 360 * 2**20
_COMPARED = {"<": operator.lt, ">=": operator.ge, "==": operator.eq}
# Lines with a marker belong to extras.
_REQUIREMENT = r"([\w.-]+)(?:\[.*?\])? *\(?([^ ;()]*)\)?"
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
        version = ".".join(str(part) for part in sys.version_info[:3])
        return f"Python {version} ({sys.executable}) cannot be used: {unsuitable}. {PYTHON_ADVICE}"
    wrong = unmet_requirements()
    if wrong:
        return "; ".join(wrong)
    return missing_theano()


def unsuitable_python() -> str:
    """Return why no run is possible in this version of Python, or an empty string."""
    if not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        return f"shardpress needs {_PYTHONS}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "shardpress does not support free-threaded builds of Python"
    return ""


def missing_theano() -> str:
    """Return what to do if this version of shardpress has not installed Theano, otherwise an empty string."""
    from shardpress_kernels.theanofiles import is_set_up

    if is_set_up():
        return ""
    fault = f"Theano is not set up in {sys.executable}"
    if os.path.exists(os.path.join(CHECKOUT, "scripts", "setup.sh")):
        python = os.path.relpath(os.path.join(CHECKOUT, ".venv", "bin", "python"))
        command = " ".join(map(shlex.quote, (python, sys.argv[0])))
        return f"{fault}. Run make setup in {CHECKOUT}, then: {command}"
    # With -I, Python imports nothing from the current directory.
    return f"{fault}. Run: {shlex.quote(sys.executable)} -I -m shardpress setup-theano"


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


def unmet_requirements() -> "list[str]":
    """Return a message with advice for each requirement of shardpress that is not met."""
    from importlib.metadata import PackageNotFoundError, requires

    try:
        requirements = requires("shardpress") or []
    except PackageNotFoundError:
        return []  # a checkout that is not installed has no list of versions
    messages = []
    for requirement in requirements:
        match = re.fullmatch(_REQUIREMENT, requirement)
        if match is None:
            continue
        name, ranges = match.groups()
        version = version_of(name)
        if version and _fits(version, ranges):
            continue
        state = f"{version} is installed" if version else "is not installed"
        command = f"{shlex.quote(sys.executable)} -m pip install '{name}{ranges}'"
        messages.append(f"{name} {state}, expected {ranges}: {command}")
    return messages


def version_of(name: str) -> str:
    """Return the version of an installed package, or an empty string."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        package = distribution(name)
    except PackageNotFoundError:
        return ""
    # A wheel has the first file. Packages of Debian have the second one, or one that is their metadata itself.
    files = (package.read_text(file) for file in ("METADATA", "PKG-INFO", ""))
    metadata = next(filter(None, files), "")
    match = re.search(r"^Version: *(\S+)", metadata, re.MULTILINE)  # Python parses all fields, which takes longer
    return match[1] if match else ""


def _fits(version: str, ranges: str) -> bool:
    """Return whether a version is in ranges of the kinds that setup.py uses."""
    bounds = re.findall(r"([<>=]+) *([\d.]+)", ranges)
    return all(_COMPARED[operation](_numbers(version), _numbers(bound)) for operation, bound in bounds)


def _numbers(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))
