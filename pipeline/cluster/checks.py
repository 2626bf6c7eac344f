"""Whether every worker would do a task as the driver would: same versions, same files, same kind of processor.

Each process tells what has to be the same everywhere in one flat mapping of names to texts, the driver as well: what is
wrong with a worker is where its texts are others.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kernels.trust import untrusted_above
from pipeline.errors import ConfigError, counted, shown, some

__all__ = [
    "Answer",
    "Question",
    "answer",
    "differences",
    "differences_of_scheduler",
    "facts_of_scheduler",
    "refusal",
    "unlike",
    "versions",
]

# Whose version decides what a task computes, or whether it can be sent at all.
_PACKAGES = ("numpy", "Theano", "scipy-openblas32", "h5py", "dask", "distributed")
_HOME = Path(__file__).parents[2]
_SOURCES = ("pipeline/**/*.py", "kernels/**/*.py", "kernels/native/*")
_CARRY = ("Python", "shardpress", "dask", "distributed")  # what takes a task from one process to another
_APART = "pipeline/shardpress/"  # installed elsewhere, and computes nothing
# Of what a processor can do that by which compilers, OpenBLAS and our kernels choose what they run.
_COMPUTES = re.compile(r"(avx|fma|f16c|amx|sve|asimd)\w*")
_SCRATCH = "dask-scratch-space"  # the name that Dask gives to directories which it puts into `sys.path`
_PRIVATE = {"scratch directory": "one that only its user can write"}
_NAMED = 3  # workers of which the same is wrong


@dataclass(frozen=True)
class Question:
    """What workers are asked.

    Attributes
    ----------
    home : str
        The directory that the driver works in, where its relative paths begin. A worker goes there.
    output : str
        The output directory, an absolute path.
    probe : str
        A file there that the driver has just written.
    inputs : tuple of str
        Files that must be the same ones for everybody.
    mixed_processors : bool
        Whether processors may be of another kind, and with them what code is compiled by and linked with.
    """

    home: str
    output: str
    probe: str
    inputs: tuple[str, ...]
    mixed_processors: bool = False


@dataclass(frozen=True)
class Answer:
    """What a process says.

    Attributes
    ----------
    facts : dict of str to str
        What has to be the same everywhere.
    wrote : str
        A file in the output directory that it has just written, and which holds its own name.
    """

    facts: dict[str, str]
    wrote: str


def answer(question: Question) -> Answer:
    """Look around in this process, in the driver's directory from now on, and leave a file for the driver."""
    output = Path(question.output)
    wrote = f"stages/probe-{uuid.uuid4().hex}.txt"
    looks: dict[str, Callable[[], object]] = {
        f"directory={shown(question.home)}": partial(os.chdir, question.home),
        f"output={shown(output)}": partial(_write, output / wrote, wrote),
        f"file={shown(output / question.probe)}": (output / question.probe).read_text,
        **{f"file={shown(path)}": partial(_known_by, path) for path in question.inputs},
    }
    places = {name: _tried(look) for name, look in looks.items()}
    machine = {} if question.mixed_processors else {**_processor(), **_system()}
    return Answer({**versions(), **_scratch_directories(), **machine, **places}, wrote)


def differences(question: Question, here: Answer, there: Answer) -> list[str]:
    """What is otherwise for a worker than for the driver, in words.

    Parameters
    ----------
    here, there : Answer
        The driver's, who looks for the worker's file now, and the worker's.
    """
    # The driver's own scratch directory, if it has one, sets no example.
    found = unlike({**here.facts, **_PRIVATE}, there.facts)
    path = Path(question.output, there.wrote)
    seen = _tried(path.read_text)
    if not found and seen != f"holds {there.wrote}":
        found.append(f"file={shown(path)}, which it has written, {seen} for the driver")
    return found


def unlike(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """What is otherwise there, in words."""
    return [f"{name} {there.get(name)}, expected {said}" for name, said in here.items() if there.get(name) != said]


def refusal(wrong: Mapping[str, Sequence[str]]) -> ConfigError | None:
    """The error that lists what is wrong with workers, each difference once; None where nothing is.

    Parameters
    ----------
    wrong : mapping of str to sequence of str
        For each worker its `differences`, or why it gave no answer.
    """
    alike: dict[str, list[str]] = {}
    for worker, words in wrong.items():
        if words:
            alike.setdefault("; ".join(words), []).append(worker)
    if not alike:
        return None
    lists = ". ".join(f"{some(workers, _NAMED)}: {words}" for words, workers in alike.items())
    n = sum(map(len, alike.values()))
    return ConfigError(
        f"{n} of {counted(len(wrong), 'worker')} would not do what this process does. {lists}. Give all of them the "
        "same packages, the same paths and a private --local-directory; processors may be of several kinds with "
        "--mixed-processors."
    )


@cache
def versions() -> dict[str, str]:
    """Of this Python, our own files and the packages that compute or carry tasks."""
    ours = f"{_version('shardpress')} of source {_digest()}"
    return {"Python": platform.python_version(), "shardpress": ours, **{name: _version(name) for name in _PACKAGES}}


def facts_of_scheduler() -> dict[str, str]:
    """Return what a scheduler is asked, which computes nothing."""
    return {**versions(), **_scratch_directories()}


def differences_of_scheduler(there: Mapping[str, str]) -> list[str]:
    """Return why a scheduler with these facts could not handle, or must not be given, tasks of this process."""
    mine = versions()
    return unlike({**{name: mine[name] for name in _CARRY}, **_PRIVATE}, there)


def _scratch_directories() -> dict[str, str]:
    """Return whether other users can write to a directory of Dask's that this process imports from."""
    entries = [entry for entry in sys.path if _SCRATCH in entry]
    problems = [problem for entry in entries if (problem := _problem_of(entry)) is not None]
    return {"scratch directory": problems[0]} if problems else _PRIVATE


def _problem_of(entry: str) -> str | None:
    """Return why other users could put a module into a directory; None if they cannot."""
    try:
        problem = untrusted_above(os.path.join(entry, "module"))
    except OSError as error:
        problem = str(error)
    return None if problem is None else f"{shown(entry)}, but {shown(problem)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digest() -> str:
    """Of our own files: two checkouts of one version need not be the same."""
    files = {path.relative_to(_HOME).as_posix(): path for each in _SOURCES for path in _HOME.glob(each)}
    whole = sha256()
    for name in sorted(files):
        if files[name].is_file() and not name.startswith(_APART):
            whole.update(name.encode() + b"\0" + files[name].read_bytes())
    return whole.hexdigest()[:12]


@cache
def _processor() -> dict[str, str]:
    """Its name, and what it can do, which a virtual machine may hide."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {"processor": platform.machine()}
    told = dict(re.findall(r"^(model name|flags|Features)\s*:\s*(.*)$", text, re.MULTILINE))
    can = sorted(word for word in (told.get("flags") or told.get("Features", "")).split() if _COMPUTES.fullmatch(word))
    return {"processor": told.get("model name", platform.machine()), "its instructions": " ".join(can)}


@cache
def _system() -> dict[str, str]:
    """What turns our sources and Theano's into the machine's code, and what has exponentials and logarithms."""
    try:
        told = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
        compiler = told.stdout.strip() or "that does not tell its version"
    except OSError:
        compiler = "not there"
    return {"g++": compiler, "C library": " ".join(platform.libc_ver())}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _tried(look: Callable[[], object]) -> str:
    """What comes of a look at a file, in words."""
    try:
        found = look()
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    except ValueError:
        found = "no text"
    return "can be used" if found is None else f"holds {found}"


def _known_by(path: str) -> str:
    """As `pipeline.hdf5.files.Identity`, but for the device, whose number is each host's own."""
    status = os.stat(path)
    return f"{status.st_size} bytes in inode {status.st_ino}, changed at {status.st_mtime_ns} ns"
