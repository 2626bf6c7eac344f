"""Check that workers have the same packages, the same files and the same kind of processor as this process.

Each process describes itself with a flat mapping of names to texts. If the texts of a worker differ from the driver's
texts, the worker is refused. A worker that joins later is retired instead.
"""

from __future__ import annotations

import logging
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

from distributed import Client, Future, Worker, WorkerPlugin

from shardpress.cluster.connection import retry_if_worker_lost, submit_to_each, wait_for_answers, workers_of
from shardpress.cluster.probe import Probe
from shardpress.errors import ConfigError, TryAgain, printable, quantity, short_list
from shardpress.sourceroots import SOURCE_ROOTS
from shardpress_kernels.trust import untrusted_above

log = logging.getLogger(__name__)

# Packages whose versions determine what a task computes, or whether it can be sent.
_PACKAGES = ("numpy", "Theano", "scipy-openblas32", "h5py", "dask", "distributed")
_SOURCES = ("shardpress/**/*.py", "shardpress_kernels/**/*.py", "shardpress_kernels/native/*")
# A scheduler does not compute results, but it unpickles and pickles tasks.
_NEEDED_BY_SCHEDULER = ("Python", "shardpress", "dask", "distributed")
# Instruction sets that affect which code compilers, OpenBLAS and our kernels select.
_INSTRUCTION_SET = re.compile(r"(avx|fma|f16c|amx|sve|asimd)\w*")
_SCRATCH = "dask-scratch-space"  # name of the directories that Dask adds to `sys.path`
_PRIVATE_SCRATCH = {"scratch directory": "writable by its user only"}
_MAX_LISTED = 3  # workers to list in a message

_SECONDS = 120.0  # time limit for an answer, because a worker may run tasks of other clients first
_TOPIC = "shardpress-turned-away"
_PRIORITY = 100  # higher than the priority of other tasks


@dataclass(frozen=True)
class Environment:
    """Description of a process."""

    facts: dict[str, str]  # the same for all processes
    written_file: str  # path relative to the output directory of a file that contains this path


# -- checks of the workers of a run ------------------------------------------------------------------------------------


def check_workers(client: Client, probe: Probe) -> None:
    """Check the scheduler and all its workers, and register a check for workers that join later."""
    _check_scheduler(client)
    driver = describe_environment(probe)
    workers = workers_of(client)
    futures = submit_to_each(client, workers, describe_environment, probe, priority=_PRIORITY)
    wait_for_answers(client, futures, _SECONDS)

    names = {address: f"{printable(worker['name'])} at {address}" for address, worker in workers.items()}
    _check_all_answered(client, futures, names)
    problems = {}
    for address, future in futures.items():
        if future.done():
            problems[names[address]] = _problems_of(probe, driver, future)
    error = refusal(problems)
    if error is not None:
        raise error

    client.subscribe_topic(_TOPIC, _log_retired_worker)
    plugin = _LateWorkerCheck(probe, driver, client.id)
    retry_if_worker_lost(client, lambda: client.register_plugin(plugin))


def _check_scheduler(client: Client) -> None:
    try:
        problems = compare_scheduler(client.run_on_scheduler(describe_scheduler))
    except Exception as error:  # the packages of the scheduler can raise any exception
        problems = [_no_answer(error)]
    if problems:
        raise ConfigError(
            f"scheduler: cannot accept this run's tasks: {'; '.join(problems)}. Start it with the same packages as "
            "the workers, and with a private directory as DASK_TEMPORARY_DIRECTORY."
        )


def _check_all_answered(client: Client, futures: Mapping[str, Future], names: Mapping[str, str]) -> None:
    current = workers_of(client)
    silent = [names[address] for address in current if address in futures and not futures[address].done()]
    if silent:
        raise TryAgain(
            f"{short_list(silent, 3)}: no answer in {_SECONDS:.0f} s. End these workers, or wait until they are free, "
            "then run the same command again."
        )


def _problems_of(probe: Probe, driver: Environment, future: Future) -> list[str]:
    error = future.exception()
    if error is not None:
        return [_no_answer(error)]
    return compare_environments(probe, driver, future.result())


def _no_answer(error: BaseException) -> str:
    return f"it cannot be queried ({type(error).__name__}: {printable(' '.join(str(error).split()))})"


def refusal(problems: Mapping[str, Sequence[str]]) -> ConfigError | None:
    """Return an error that lists each problem once with the affected workers, or None if no worker has a problem."""
    refused = {worker: "; ".join(found) for worker, found in problems.items() if found}
    if not refused:
        return None
    workers_with: dict[str, list[str]] = {}
    for worker, text in refused.items():
        workers_with.setdefault(text, []).append(worker)
    lists = ". ".join(f"{short_list(workers, _MAX_LISTED)}: {text}" for text, workers in workers_with.items())
    return ConfigError(
        f"{len(refused)} of {quantity(len(problems), 'worker')} differ from this process. {lists}. Start all workers "
        "with the same packages, the same paths and a private --local-directory. Processors of several kinds are "
        "allowed with --mixed-processors."
    )


class _LateWorkerCheck(WorkerPlugin):
    """Plugin that checks workers that join during the run, and retires workers that differ from the driver."""

    def __init__(self, probe: Probe, driver: Environment, client: str) -> None:
        self.name = f"shardpress-{client}"
        self._probe = probe
        self._driver = driver
        self._client = client  # id of the driver's client; after it has disconnected, no worker is checked

    async def setup(self, worker: Worker) -> None:
        """Check a worker. This blocks its event loop, but for less time than the scheduler waits for a heartbeat."""
        if not await self._is_running(worker):
            return
        problems = compare_environments(self._probe, self._driver, describe_environment(self._probe))
        if problems:
            worker.log_event(_TOPIC, f"{worker.name} at {worker.address}: {'; '.join(problems)}")
            # Let the scheduler retire the worker, so that this does not count as a death. `worker.close()` would cause
            # a deadlock, because it waits for the nanny, and the nanny waits for this method.
            await worker.scheduler.retire_workers(workers=[worker.address], close_workers=True, stimulus_id=self.name)

    async def _is_running(self, worker: Worker) -> bool:
        events = await worker.scheduler.events(topic=self._client)
        if not events:
            return False
        return all(event.get("action") != "remove-client" for _, event in events)


def _log_retired_worker(event: tuple[float, str]) -> None:
    log.warning("cluster: rejected a new worker: %s", printable(event[1]))


# -- descriptions of processes -----------------------------------------------------------------------------------------


def describe_environment(probe: Probe) -> Environment:
    """Change to the driver's directory, write a file to the output directory, and describe this process."""
    written_file = f"work/probe-{uuid.uuid4().hex}.txt"
    files = _access_files(probe, written_file)
    machine = {}
    if not probe.mixed_processors:
        machine = {**_processor(), **_system()}
    return Environment({**_versions(), **_scratch_directories(), **machine, **files}, written_file)


def _access_files(probe: Probe, written_file: str) -> dict[str, str]:
    """Return the outcome of each access as text."""
    output = Path(probe.output)
    outcomes = {f"directory={printable(probe.directory)}": _outcome(partial(os.chdir, probe.directory))}
    outcomes[f"output={printable(output)}"] = _outcome(partial(_write, output / written_file, written_file))
    for path in probe.inputs:
        outcomes[f"file={printable(path)}"] = _outcome(partial(_file_identity, path))
    return outcomes


def compare_environments(probe: Probe, driver: Environment, worker: Environment) -> list[str]:
    """Return the differences as texts. This also reads the file that the worker has written."""
    # Workers need a private scratch directory, but the driver needs none. So the driver's fact is replaced.
    problems = _different_facts({**driver.facts, **_PRIVATE_SCRATCH}, worker.facts)
    path = Path(probe.output, worker.written_file)
    outcome = _outcome(path.read_text)
    if not problems and outcome != f"holds {worker.written_file}":
        problems.append(f"file={printable(path)}, written by the worker, {outcome} on the driver")
    return problems


def describe_scheduler() -> dict[str, str]:
    return {**_versions(), **_scratch_directories()}


def compare_scheduler(scheduler: Mapping[str, str]) -> list[str]:
    """Return the reasons why a scheduler with these facts cannot handle the tasks of this process safely."""
    driver = _versions()
    expected = {name: driver[name] for name in _NEEDED_BY_SCHEDULER}
    return _different_facts({**expected, **_PRIVATE_SCRATCH}, scheduler)


def _different_facts(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    return [
        f"{name} {actual.get(name)}, expected {text}" for name, text in expected.items() if actual.get(name) != text
    ]


@cache
def _versions() -> dict[str, str]:
    found = {
        "Python": platform.python_version(),
        "shardpress": f"{_version('shardpress')} of source {_digest()}",
    }
    for package in _PACKAGES:
        found[package] = _version(package)
    return found


def _scratch_directories() -> dict[str, str]:
    """Return a fact that reports whether this process imports from a Dask directory that other users can write to."""
    for entry in sys.path:
        if _SCRATCH in entry:
            problem = _problem_of_directory(entry)
            if problem is not None:
                return {"scratch directory": problem}
    return _PRIVATE_SCRATCH


def _problem_of_directory(entry: str) -> str | None:
    """Return why other users could put a module into a directory, or None if they cannot."""
    try:
        problem = untrusted_above(os.path.join(entry, "module"))
    except OSError as error:
        problem = str(error)
    return None if problem is None else f"{printable(entry)}, but {printable(problem)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _digest(roots: Sequence[str] = SOURCE_ROOTS) -> str:
    """Return a digest of our source files, because checkouts of the same version can differ."""
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
    return {
        "processor": fields.get("model name", platform.machine()),
        "instruction sets": " ".join(instruction_sets),
    }


@cache
def _system() -> dict[str, str]:
    """Return the versions of the C++ compiler, which builds all kernels, and the C library, which computes exp."""
    try:
        done = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
        compiler = done.stdout.strip() or "of unknown version"
    except OSError:
        compiler = "not installed"
    return {"g++": compiler, "C library": " ".join(platform.libc_ver())}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _outcome(access: Callable[[], object]) -> str:
    try:
        content = access()
    except OSError as error:
        return f"cannot be used ({error.strerror})"
    except ValueError:  # not UTF-8
        content = "binary data"
    return "can be used" if content is None else f"holds {content}"


def _file_identity(path: str) -> str:
    """Return the identity of a file without its device number, which each host assigns itself."""
    status = os.stat(path)
    return f"{status.st_size} bytes in inode {status.st_ino}, changed at {status.st_mtime_ns} ns"
