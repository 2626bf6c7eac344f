"""Run the program under system limits: each run must succeed, or end with a message and exit code that name the limit.

    python -m tests.support.ulimits

Limits are set on open files (``ulimit -n``), file sizes (``-f``), processes and threads (``-u``, where root switches to
another user), and address space (``-v``). `tests/run/test_system_faults.py` runs a sample with the stand-in.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from tests.support.failing_calls import EndedRun, problem_of
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, environment
from tests.support.killing import features_of

_SECONDS = 300.0  # time limit; afterwards a run is regarded as stuck
_FREE_USER = 42_424  # an unused user id, because the limit on processes counts all processes of a user
_MIB = 2**20
LIMITS: dict[str, Sequence[int]] = {
    "RLIMIT_NOFILE": (7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 24, 32, 48, 64, 96, 128),
    "RLIMIT_FSIZE": (0, 1, 100, 2**10, 2**12, 2**14, 2**16, 2**18, _MIB, 8 * _MIB, 64 * _MIB),
    "RLIMIT_NPROC": (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32),
    "RLIMIT_AS": tuple(n * _MIB for n in (200, 300, 400, 500, 600, 800, 1200, 2000, 4000)),
}
# 69: a compiler cannot be started. 78: settings exceed the machine.
_ALLOWED = (0, 69, 71, 73, 74, 78)


class Limited:
    """A small data set, and runs over it under limits.

    Parameters
    ----------
    folder : Path
        Folder of the shards and all outputs.
    flags : str
        Additional arguments of the runs.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self._folder = folder
        shards = folder / "shards"
        shards.mkdir()
        rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
        for i in range(2):
            shard_extras = {"nothing": h5py.Empty("f4")} if i else None  # needs the child process
            write_shard(shards / f"{i}.h5", rows[150 * i : 150 * (i + 1)], extras=shard_extras)
        usual = ["--input", str(shards), "--epochs", "1", "--n-features", "4", *flags]
        self._command = [sys.executable, "-W", "error", "scripts/extract.py", *usual]
        ended = self._run(folder / "undisturbed")
        assert ended.code == 0, ended.text
        self._features = features_of(folder / "undisturbed")

    def run_and_rerun(self, name: str, value: int) -> tuple[int, str]:
        """Run under a limit and then without it. Return the first exit code, and a description of any problem."""
        output = self._folder / "out"
        shutil.rmtree(output, ignore_errors=True)
        ended = self._run(output, name, value)
        wrong = "" if _is_ended_by_openblas(ended) else problem_of(ended, _ALLOWED)
        again = self._run(output)
        if not wrong and again.code:
            wrong = f"rerun: exit code {again.code}: {again.text[-2000:]}"
        if not wrong and features_of(output) != self._features:
            wrong = "rerun: different features"
        return ended.code, wrong

    def _run(self, output: Path, name: str = "", value: int = 0) -> EndedRun:
        command = [*self._command, "--output", str(output)]
        variables: dict[str, Path] = {}
        if name == "RLIMIT_NPROC":
            command = [*_as_another_user(), *command]
            variables["XDG_CACHE_HOME"] = self._their_cache()

        def limit() -> None:
            if name:
                resource.setrlimit(getattr(resource, name), (value, value))

        # Use a pipe for the output, because the limit on file sizes may be 0.
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(**variables), preexec_fn=limit, **pipes
        ) as process:
            try:
                raw, _ = process.communicate(timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raw, _ = process.communicate()
                raw += b"\nstuck"
        return EndedRun(process.returncode, -1, raw.decode(errors="replace"))

    def _their_cache(self) -> Path:
        """Return a copy of the compile cache that belongs to the other user. A cache of root would be refused."""
        cache = self._folder / "cache"
        if not cache.exists():
            own_cache = Path(environment()["XDG_CACHE_HOME"]) / "shardpress"
            shutil.copytree(own_cache, cache / "shardpress")
            for path in (cache, *cache.rglob("*")):
                os.chown(path, _FREE_USER, _FREE_USER)
        return cache


def _is_ended_by_openblas(ended: EndedRun) -> bool:
    """Return whether OpenBLAS ended a run: if it cannot start its threads, it prints the limit and raises SIGINT."""
    return ended.code == -signal.SIGINT and "pthread_create failed" in ended.text


def _as_another_user() -> list[str]:
    """Return the command that runs another command as a user without processes and with root's file permissions.

    Limits of processes do not apply to root.
    """
    capabilities = "+dac_override,+fowner,+chown"
    user = [f"--reuid={_FREE_USER}", f"--regid={_FREE_USER}", "--clear-groups"]
    return ["setpriv", *user, f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]


def _skipped(name: str) -> str:
    """Return the reason why a limit cannot be tested here, or an empty text if it can."""
    if name != "RLIMIT_NPROC":
        return ""
    if os.getuid() != 0:
        return "only root can become another user"
    return "" if shutil.which("setpriv") else "setpriv: no such program"


def cases(names: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield each limit and each of its values."""
    for name in names:
        if why := _skipped(name):
            print(f"{name}: skipped: {why}", flush=True)
            continue
        for value in LIMITS[name]:
            yield name, value


def main() -> int:
    """Print the outcome of each limit."""
    names = sys.argv[1:] or list(LIMITS)
    start = time.monotonic()
    n_cases = 0
    n_wrong = 0
    with tempfile.TemporaryDirectory(prefix="shardpress-limits-") as folder:
        limited = Limited(Path(folder))
        for name, value in cases(names):
            code, wrong = limited.run_and_rerun(name, value)
            n_cases += 1
            n_wrong += bool(wrong)
            print(f"{name}={value}: exit code {code}", flush=True)
            if wrong:
                print(f"  WRONG {wrong}", flush=True)
    print(f"{n_cases} runs in {time.monotonic() - start:.0f} s, {n_wrong} of them with problems")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
