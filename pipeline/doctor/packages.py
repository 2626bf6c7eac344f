"""Whether this Python, its packages and its memory will do: told in a sentence, before anything is loaded.

Python 3.6 has to be able to read and run this file, and it must cost next to nothing: `packaging` and
`importlib.metadata` would take 60 ms to say the same.
"""

import importlib.util
import operator
import os
import re
import resource
import shlex
import sys

__all__ = ["HOW_TO_GET_IT", "complaint", "installed", "misfits", "missing_proc", "too_little_memory"]

# A run over a hundred rows takes 350 MiB, which its two threads and the libraries do. With less, HDF5 has crashed.
_LEAST_ADDRESSES = 360 * 2**20
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_COMPARED = {"<": operator.lt, ">=": operator.ge, "==": operator.eq}
# Those with a marker of another kind are what an extra asks for.
_MARKER = r"(?: *; *python_version *([<>=]+) *.([\d.]+).)?"
_REQUIREMENT = r"^Requires-Dist: ([\w.-]+)(?:\[.*?\])? *\(?([^ ;()\n]*)\)?" + _MARKER + "$"
# As of scripts/setup.sh, which a wheel has not.
HOW_TO_GET_IT = (
    "Python 3.11 comes from Debian 12 (apt-get install python3.11-venv python3.11-dev g++), pyenv "
    "(PYTHON_CONFIGURE_OPTS=--enable-shared pyenv install 3.11) or uv (uv python install 3.11); install the same wheel "
    "there: python3.11 -m venv night && night/bin/pip install shardpress. What reads features works here: see "
    "shardpress --help."
)


def complaint() -> str:
    """What is wrong with this Python and what to do, in one sentence; empty when nothing is."""
    if sys.version_info[:2] == (3, 11):
        wrong = misfits(installed())
        if wrong or importlib.util.find_spec("theano"):
            return "; ".join(wrong)
    version = ".".join(str(part) for part in sys.version_info[:3])
    needed = "3.11 with what make setup installs" if _in_checkout() else "3.11: Theano runs on no later one"
    return (
        f"{_program()} cannot run in this Python ({version} at {sys.executable}): shardpress needs "
        f"{needed}. {_what_to_type() if _in_checkout() else HOW_TO_GET_IT}"
    )


def too_little_memory() -> str:
    """Which limit on the process's memory no run fits into; empty when there is none."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY or limit >= _LEAST_ADDRESSES:
        return ""
    return (
        f"the process may have {limit >> 10} KiB of address space (ulimit -v), expected {_LEAST_ADDRESSES >> 10} at "
        "least: Python and its libraries alone need that. Raise the limit."
    )


def missing_proc() -> str:
    """Return what to do about a machine without ``/proc``; empty when it is mounted."""
    if os.path.isdir("/proc/self/fd"):
        return ""
    return (
        "/proc is not mounted, and Dask, Theano and the processes that look at HDF5 files need it. Mount it (mount -t "
        "proc proc /proc), or let the container have it."
    )


def _program() -> str:
    """As it was typed: of `shardpress` not every command needs Theano."""
    name = os.path.basename(sys.argv[0])
    return " ".join([name, *sys.argv[1:2]]) if name == "shardpress" else name


def _in_checkout() -> bool:
    return os.path.exists(os.path.join(_ROOT, "scripts", "setup.sh"))


def _what_to_type() -> str:
    python = os.path.join(_ROOT, ".venv", "bin", "python")
    command = " ".join(map(shlex.quote, (os.path.relpath(python), sys.argv[0])))
    if os.path.exists(python) and os.path.abspath(sys.executable) != python:
        return f"Type: {command}"
    return f"Type make setup in {_ROOT}, then: {command}"


def installed() -> "dict[str, str]":
    """What is known of each distribution (Debian's lie in .egg-info), by its normalized name; the first one wins."""
    found: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:  # imports pass over it, too
            continue
        for name in names:
            if re.fullmatch(r"[^-]+-.*\.(dist|egg)-info", name):
                found.setdefault(_normal(name.split("-")[0]), os.path.join(folder, name))
    return found


def misfits(found: "dict[str, str]") -> "list[str]":
    """Of each requirement of ours that is not met, what is there and what to do."""
    if "shardpress" not in found:
        return []  # run from a checkout alone: nobody has said which versions these are
    wrong = []
    with open(os.path.join(found["shardpress"], "METADATA"), encoding="utf-8") as file:
        requirements = re.findall(_REQUIREMENT, file.read(), re.M)
    for name, ranges, how, bound in requirements:
        if how and not _COMPARED[how](sys.version_info[:2], _numbers(bound)):
            continue
        version = os.path.basename(found.get(_normal(name), "")).rpartition(".")[0].partition("-")[2]
        if not version or not _fits(version, ranges):
            state = f"{version} is installed" if version else "is not installed"
            command = f"{shlex.quote(sys.executable)} -m pip install '{name}{ranges}'"
            wrong.append(f"{name} {state}, expected {ranges}: {command}")
    return wrong


def _normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _fits(version: str, ranges: str) -> bool:
    """Whether a version lies in ranges of the kinds that setup.py uses."""
    bounds = re.findall(r"([<>=]+) *([\d.]+)", ranges)
    return all(_COMPARED[how](_numbers(version), _numbers(bound)) for how, bound in bounds)


def _numbers(version: str) -> "tuple[int, ...]":
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))
