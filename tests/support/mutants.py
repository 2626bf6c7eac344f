"""Plant mutations in a private copy of the checkout, and check that a test catches each of them.

    python -m tests.support.mutants all        every mutation of the table
    python -m tests.support.mutants 3          a sample: the first mutation of each of the first 3 rows
    python -m tests.support.mutants NAME...    the named mutations
    python -m tests.support.mutants rows       print the number of mutations in each row, and plant none

A row is a group of packages, see `tests.support.mutations.ROWS`.

The table is `tests.support.mutations`. The exit code is 1 if a mutation survives, or if one of its tests fails without
the mutation. This program never writes to the checkout itself, or to the compile cache of the user.

`tests/test_mutants.py` checks the table and plants a sample of three.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.interpreters import REPOSITORY, environment
from tests.support.mutations import MUTATIONS, ROWS, Mutation

_COPIED = ("pipeline", "kernels", "scripts", "tests", "pyproject.toml", "setup.py", "constraints.txt", "README.md")
_NOT_COPIED = ("__pycache__", ".*_cache")
_SECONDS = 900.0  # time limit of a test run, which may include minutes of compilation
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_TESTS_FAILED = 1  # exit code of pytest

# Child processes may ignore the environment, so this check uses the strictest mode.
_WHERE = "import shardpress, shardpress_kernels; print(shardpress.__file__, shardpress_kernels.__file__)"


class Failed(Exception):
    """Raised if tests cannot show whether a mutation is caught."""


@dataclass(frozen=True)
class Result:
    """Outcome of one mutation.

    Attributes
    ----------
    caught_by : str
        First test that failed. Empty if no test failed.
    seconds : float
        Duration of the test run.
    problem : str
        Reason why the mutation could not be tested. Empty if it was tested.
    """

    mutation: Mutation
    caught_by: str = ""
    seconds: float = 0.0
    problem: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.mutation.name}: NOT TESTED: {self.problem}"
        outcome = f"caught by {self.caught_by}" if self.caught_by else "SURVIVED"
        return f"{self.mutation.name}: {outcome} ({self.seconds:.1f} s)"


def copy_remaining(source: Path, target: Path, copy_file: Callable[[str, str], object] = shutil.copy2) -> None:
    """Copy a directory, without the entries that another process removes in the meantime.

    Theano takes no lock when a process ends and removes its modules without a version. It also takes no lock when it
    writes the record of a module under a temporary name like ``key.pkl.4711``.

    Raises
    ------
    shutil.Error
        If an entry that still exists cannot be copied.
    """
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("key.pkl.*"), copy_function=copy_file)
    except shutil.Error as error:
        remaining = [problem for problem in error.args[0] if os.path.lexists(problem[0])]
        if remaining:
            raise shutil.Error(remaining) from error


class Sources:
    """Files of a copy. One of them can be mutated at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last_time = int(time.time())

    @contextmanager
    def apply(self, mutation: Mutation) -> Iterator[None]:
        """Apply a mutation to its file for the duration of the context.

        Raises
        ------
        Failed
            If the text of the mutation does not occur exactly once in the file.
        """
        path = self.root / mutation.file
        original = path.read_text()
        n_found = original.count(mutation.text)
        if n_found != 1:
            raise Failed(f"{mutation.name}: {mutation.text!r} occurs {n_found} times in {mutation.file}, expected once")
        self._write(path, original.replace(mutation.text, mutation.replacement))
        try:
            yield
        finally:
            self._write(path, original)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        # Python recognizes stale byte code by size and time in whole seconds, so each version gets its own second.
        self._last_time += 1
        os.utime(path, (self._last_time, self._last_time))


class Sandbox:
    """A copy of the checkout in which tests run, with a separate virtual environment, home and compile cache.

    The virtual environment consists of links to the packages of the current one. Only our own packages are found in the
    copy, also by child processes with a cleaned environment.

    Parameters
    ----------
    folder : Path
        An empty directory.
    copies_cache : bool
        True to start with the content of the user's compile cache. Copying takes a minute, and saves minutes in tests
        that compile.

    Raises
    ------
    Failed
        If our packages would not be imported from the copy.
    """

    def __init__(self, folder: Path, copies_cache: bool) -> None:
        self._folder = folder
        self._root = folder / "checkout"
        self._python = self._root / ".venv" / "bin" / "python"
        self._copy_checkout()
        if copies_cache:
            self._copy_cache()
        (folder / "cache").mkdir(exist_ok=True)
        self._make_environment()
        self._check_imports()
        self.sources = Sources(self._root)
        # Some tests switch to another user, who must be able to reach the temporary files.
        folder.chmod(0o755)
        for name in ("home", "tmp"):
            (folder / name).mkdir()

    def run(self, tests: Sequence[str], keeps_cache: bool = False) -> tuple[list[str], float]:
        """Run tests until the first one fails.

        Parameters
        ----------
        tests : sequence of str
            Files or node ids.
        keeps_cache : bool
            True to let later runs use the code that this run compiles. By default, compiled code is deleted, because it
            may be mutated.

        Returns
        -------
        failures : list of str
            Node ids of the tests that failed.
        seconds : float

        Raises
        ------
        Failed
            If pytest ends with another exit code, for example because a test does not exist, or does not end in time.
        """
        options = ["-x", "-q", "-rfE", "--tb=no", "--no-header", "-p", "no:randomly", "-p", "no:cacheprovider"]
        start = time.monotonic()
        with self._compile_cache(keeps_cache) as cache:
            code, output = self._run_command([str(self._python), "-m", "pytest", *options, *tests], cache)
        seconds = time.monotonic() - start
        failures = _FAILURE.findall(output)
        if code not in (0, _TESTS_FAILED) or (code == _TESTS_FAILED) != bool(failures):
            raise Failed(f"pytest {' '.join(tests)} ended with exit code {code}, expected 0 or 1:\n{output}")
        return failures, seconds

    def _run_command(self, command: Sequence[str], cache: Path) -> tuple[int, str]:
        """Run a command in the copy. Return its exit code and its output."""
        variables = {
            "HOME": self._folder / "home",
            "TMPDIR": self._folder / "tmp",
            "XDG_CACHE_HOME": cache,
            "PYTHONPATH": self._root,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TEST_ISA": None,
            "THEANORC": None,
        }
        env = {name: value for name, value in environment(**variables).items() if not name.startswith("PYTEST_")}
        # Use a separate session, so that it can be killed with its child processes.
        process = subprocess.Popen(
            command,
            cwd=self._root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"{' '.join(command)}: did not end within {_SECONDS:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, output

    @contextmanager
    def _compile_cache(self, is_kept: bool) -> Iterator[Path]:
        """Provide the compile cache of this copy, or a temporary copy of the cache."""
        cache = self._folder / "cache"
        if is_kept:
            yield cache
            return
        temporary = self._folder / "temporary-cache"
        shutil.copytree(cache, temporary)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _copy_cache(self) -> None:
        """Copy the content of the user's compile cache."""
        users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shardpress"
        if not users.is_dir():
            return
        with ExitStack() as stack:
            # While the lock of `shardpress_kernels.compilelock` is held, no module becomes complete, and Theano ignores
            # incomplete ones.
            for path in users.glob("*/compiledir_*/.lock"):
                file = stack.enter_context(path.open())
                fcntl.flock(file, fcntl.LOCK_EX)
            copy_remaining(users, self._folder / "cache" / "shardpress")

    def _copy_checkout(self) -> None:
        self._root.mkdir()
        for name in _COPIED:
            source = REPOSITORY / name
            if source.is_dir():
                shutil.copytree(source, self._root / name, ignore=shutil.ignore_patterns(*_NOT_COPIED))
            else:
                shutil.copy2(source, self._root / name)

    def _make_environment(self) -> None:
        old = Path(sys.prefix)
        new = self._root / ".venv"
        packages = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
        (new / "bin").mkdir(parents=True)
        (new / packages).mkdir(parents=True)
        shutil.copy2(old / "pyvenv.cfg", new)
        for name in ("python", "python3", packages.parts[1]):
            (new / "bin" / name).symlink_to(os.path.realpath(sys.executable))
        libraries = [path for path in (old / "lib").iterdir() if path.name != packages.parts[1]]
        for path in libraries:
            (new / "lib" / path.name).symlink_to(path)
        for path in (old / packages).iterdir():
            if path.name == "__pycache__":
                continue
            if path.name == "shardpress.pth" or (path.name.startswith("__editable__") and path.is_file()):
                # The files of the editable installation and of set-up contain the location of our packages.
                text = path.read_text().replace(str(REPOSITORY), str(self._root))
                (new / packages / path.name).write_text(text)
            else:
                (new / packages / path.name).symlink_to(path)

    def _check_imports(self) -> None:
        # The copy is not the current directory, and is neither on the search path nor in the environment.
        command = [str(self._python), "-I", "-c", _WHERE]
        result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        files = result.stdout.split()
        if result.returncode or not all(Path(file).is_relative_to(self._root) for file in files):
            found = f"{' '.join(files)}\n{result.stderr}"
            raise Failed(f"our packages are not imported from the copy {self._root}, but from {found}")


def sample(n: int, table: Sequence[Mutation] = MUTATIONS) -> list[Mutation]:
    """Return the first mutation of each of the first `n` rows of a table."""
    first: dict[str, Mutation] = {}
    for mutation in table:
        first.setdefault(mutation.row, mutation)
    return list(first.values())[:n]


def n_by_row(table: Sequence[Mutation] = MUTATIONS) -> dict[str, int]:
    """Return the number of mutations in each row."""
    numbers = dict.fromkeys(ROWS, 0)
    for mutation in table:
        numbers[mutation.row] += 1
    return numbers


def select(arguments: Sequence[str], table: Sequence[Mutation] = MUTATIONS) -> list[Mutation]:
    """Return the mutations of a table that the command line selects.

    Raises
    ------
    SystemExit
        If a name is not in the table, or if there are no arguments.
    """
    if list(arguments) == ["all"]:
        return list(table)
    if len(arguments) == 1 and arguments[0].isdigit():
        return sample(int(arguments[0]), table)
    known = {mutation.name: mutation for mutation in table}
    unknown = [name for name in arguments if name not in known]
    if unknown or not arguments:
        names = "\n  ".join(known)
        found = unknown or "nothing"
        raise SystemExit(f"expected all, rows, a number or names, found {found}. The names are\n  {names}")
    return [known[name] for name in arguments]


def _is_used_here(mutation: Mutation) -> bool:
    """Return whether this machine's processor runs the mutated code."""
    features = Path("/proc/cpuinfo").read_text().split()
    return not mutation.needs or any(need in features for need in mutation.needs)


def plant_all(mutations: Sequence[Mutation]) -> Iterator[Result]:
    """Plant mutations one after the other and run their tests.

    Raises
    ------
    Failed
        If a test fails without any mutation, or cannot be run.
    """
    # Some tests leave files that cannot be removed.
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        copies_cache = any(mutation.file.startswith("kernels/shardpress_kernels/") for mutation in mutations)
        sandbox = Sandbox(Path(folder).resolve(), copies_cache)
        tests = list(dict.fromkeys(test for mutation in mutations for test in mutation.tests))
        failures, _ = sandbox.run(tests, keeps_cache=True)
        if failures:
            raise Failed(
                f"{' '.join(failures)}: fails in a copy of the checkout without any mutation, expected to pass"
            )
        for mutation in mutations:
            yield _try_mutation(sandbox, mutation)


def _try_mutation(sandbox: Sandbox, mutation: Mutation) -> Result:
    """Plant one mutation and run its tests."""
    try:
        with sandbox.sources.apply(mutation):
            failures, seconds = sandbox.run(mutation.tests)
    except Failed as error:
        return Result(mutation, problem=str(error))
    return Result(mutation, failures[0] if failures else "", seconds)


def main(arguments: Sequence[str], table: Sequence[Mutation] = MUTATIONS) -> int:
    """Plant the selected mutations of a table, print a line for each, and return the exit code."""
    if list(arguments) == ["rows"]:
        for row, n in n_by_row(table).items():
            print(f"{n:4} {row}")
        return 0
    mutations = []
    for mutation in select(arguments, table):
        if _is_used_here(mutation):
            mutations.append(mutation)
        else:
            print(f"{mutation.name}: not planted, this processor has none of {', '.join(mutation.needs)}")
    survivors = []
    try:
        for result in plant_all(mutations):
            print(result, flush=True)
            if not result.caught_by:
                survivors.append(result.mutation.name)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutations caught")
    if survivors:
        print(f"not caught: {' '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
