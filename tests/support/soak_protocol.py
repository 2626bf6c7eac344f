"""Inject every disk error, kill and power cut into whole runs.

    python -m tests.support.soak_protocol                every kill of every kind of run; other faults: all of them in
    a new run, and every seventh in the other kinds of runs
    python -m tests.support.soak_protocol 1              all faults, which takes many hours
    python -m tests.support.soak_protocol 7 overwrite    one kind of run only

The program prints the number of faults. It tests several kinds of runs at the same time, one on each processor.

`tests/run/test_protocol.py` injects a sample of these faults.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from shardpress.errors import NoInput
from shardpress.features import open_features, reading
from shardpress.formats import digest, unseal
from shardpress.model import load_model
from shardpress.output import groupcommit
from shardpress.output.records import (
    MANIFEST,
    NAMES,
    OUTPUT,
    plain_name,
    read_manifest,
)
from shardpress.report.page.build import read_report
from shardpress.report.verify import verify
from tests.support.faulty import FailingDisk, KillingDisk, PowerLog, RecordingDisk, ShortWriteDisk, forked, materialize
from tests.support.standin import Workspace, features_of, install

Item = TypeVar("Item")
Selection = slice | Sequence[int]
"""Numbers of calls: a slice, or a list."""

ALLOWED_CODES = (0, 71, 73, 74)
# Three steps, each followed by a checkpoint. The first checkpoint is deleted before the third is written.
STEPS = ("--quiet", "checkpoint_seconds=0", "--epochs", "1", "--batch-size", "12")
ANOTHER_OUTPUT = "{another output}"
# Flags of an earlier, finished run in the same directory, and of the run that is disturbed.
KINDS: dict[str, tuple[Sequence[str] | None, Sequence[str]]] = {
    "new": (None, STEPS),
    "overwrite": ((*STEPS, "--seed", "1"), (*STEPS, "--overwrite")),
    "restart": ((*STEPS, "--seed", "1"), (*STEPS, "--restart")),
    "threads": (None, (*STEPS, "--threads", "3")),
    "together": (None, STEPS),
    # The earlier run has a file that the later one lacks: the list of bad data.
    "list before": ((*STEPS, "--seed", "1", "--on-bad-data", "skip"), (*STEPS, "--overwrite")),
    # A new file, a changed one, and one that is gone.
    "append": (STEPS, (*STEPS, "--append", "--drop-missing")),
    "retrain": ((*STEPS, "--seed", "1"), (*STEPS, "--retrain")),
    # During the run, the output contains a copy of the model for the workers.
    "given model": (None, ("--quiet", "--model", ANOTHER_OUTPUT)),
}


class Scenario:
    """A kind of run, its undisturbed result, and a check of the output that a disturbed run leaves.

    Attributes
    ----------
    calls : list of (str, object)
        Disk calls of an undisturbed run.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        # Commit all parts except the first in one group, or each part separately.
        self._pause = math.inf if kind == "together" else 0.0
        self.workspace = Workspace(folder, 20, 0, 15)
        self._folder = folder
        self._n_outputs = 0
        before, flags = KINDS[kind]
        self.flags = [str(folder / "another") if flag == ANOTHER_OUTPUT else flag for flag in flags]
        if ANOTHER_OUTPUT in flags:
            assert self.workspace.run(folder / "another", *STEPS) == 0
        self._before = None if before is None else folder / "before"
        self._runs_before: set[str | None] = set()
        if before is not None:
            assert self.workspace.run(folder / "before", *before) == 0
            if kind.startswith("append"):
                self._change_inputs()
            self._runs_before = {run_seen_by_readers(folder / "before")}
        disk = RecordingDisk()
        output = self.new_output()
        assert self.run(output, disk) == 0
        self.calls = disk.calls
        self._expected = features_of(output)
        self._run_after = run_seen_by_readers(output)
        self._n_records = len(records(output))
        self._names = named(output)

    def _change_inputs(self) -> None:
        """Add a file, change one and remove one."""
        rng = np.random.default_rng(1)
        for name in ("3.h5", "2.h5"):
            self.workspace.add_shard(name, rng.normal(size=(9, 4)).astype(np.float32))
        (self.workspace.shards / "0.h5").unlink()

    def calls_of_each_kind(self) -> list[int]:
        """Return the number of one call of each kind. Calls of a kind have the same method and the same kind of file.

        If a kind has several calls, the first, the last or a middle one is chosen in turn.
        """
        numbers = self.calls_by_kind().values()
        return sorted(same[turn % len(same)] for turn, same in enumerate(numbers))

    def calls_by_kind(self) -> dict[tuple[str, str], list[int]]:
        """Return the numbers of the calls of each kind."""
        numbers: dict[tuple[str, str], list[int]] = {}
        for number, (name, argument) in enumerate(self.calls):
            file = ""
            if not isinstance(argument, memoryview):
                file = re.sub("[0-9a-f]{32}|[0-9]+", "#", Path(str(argument)).name)
            numbers.setdefault((name, file), []).append(number)
        return numbers

    def new_output(self) -> Path:
        """Return an output directory in the state before the run."""
        self._n_outputs += 1
        output = self._folder / f"{self._n_outputs}" / "out"
        output.parent.mkdir()
        if self._before is not None:
            shutil.copytree(self._before, output, symlinks=True)
        return output

    def run(self, output: Path, disk: RecordingDisk | None = None) -> int:
        """Run the program and return its exit code."""
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(groupcommit, "_pause", lambda seconds: self._pause)
            return self.workspace.run(output, *self.flags, disk=disk or RecordingDisk())

    def check(self, output: Path, label: str) -> None:
        """Check that no result is incomplete and that a rerun gives the undisturbed result. Then clean up."""
        assert invalid_entries(output) == [], label
        self.check_readers(output, label)
        assert self.run(output) == 0, label
        assert features_of(output) == self._expected, label
        assert invalid_entries(output) == [], label
        assert leftovers(output) == [], label
        assert named(output) == self._names, label
        assert len(records(output)) == self._n_records, label
        shutil.rmtree(output.parent)

    def check_readers(self, output: Path, label: str) -> None:
        """Check that all readers see the same run: the previous one, the new one, or none."""
        if not output.exists():
            return
        visible = run_seen_by_readers(output)
        assert visible in {None, self._run_after, *self._runs_before}, label
        # No run is readable only if there was no earlier run, or if the run first discards all results.
        assert visible is not None or self._before is None or "--restart" in self.flags, label


def invalid_entries(output: Path) -> list[str]:
    """Return entries of commit records and manifest that do not match their files. Do not use the program's ledger."""
    named = [record["entry"] for record in records(output)]
    manifest = _manifest(output)
    return [entry["file"] for entry in [*named, *manifest["parts"], *manifest["files"]] if not _as_named(output, entry)]


def _manifest(output: Path) -> dict[str, Any]:
    path = output / MANIFEST
    if not path.exists():
        return {"parts": [], "files": []}
    return unseal(OUTPUT, path.read_bytes())


def named(output: Path) -> list[str]:
    """Return the files with fixed names in the manifest, and the number of views of parts."""
    return [re.sub("-[0-9a-f]{32}", "", plain_name(entry["file"])) for entry in _manifest(output)["files"]]


# -- readers -------------------------------------------------------------------------------------------------------


def run_seen_by_readers(output: Path) -> str | None:
    """Return the run that every reader sees, as a digest of features and settings. Return None for no run.

    Raises
    ------
    AssertionError
        If two readers see different runs, or if a reader sees a damaged run.
    """
    try:
        manifest = read_manifest(output)
    except NoInput:
        present = [name for name in NAMES if (output / name).exists()]
        assert present == [], f"no finished run, but {present}"
        return None
    opened = open_features(output)
    features = opened.features.compute()
    found = verify(str(output), 4)
    assert not found.faults, str(found)
    report = read_report(output)
    assert report["fingerprints"] == {"request": manifest["fingerprint"], "model": manifest["model"]}
    assert load_model(output / "model.h5").fingerprint == manifest["model"]
    # HDF5's lock is off, because the run may have parts open in the same process.
    with reading(output / "index.h5") as index:
        assert index["features"][()].tobytes() == features.tobytes()
        assert index.attrs["model"] == manifest["model"]
    names = {plain_name(entry["file"]) for entry in manifest["files"]}
    assert "bad_rows.jsonl" not in names or (output / "bad_rows.jsonl").exists()
    return f"{digest([features.tobytes()])} {manifest['fingerprint']}"


def records(output: Path) -> list[dict[str, Any]]:
    """Return every commit record as plain values."""
    found: list[dict[str, Any]] = []
    for path in sorted(output.glob("commits/*.json")):
        found += unseal("shardpress-commits/2", path.read_bytes())["records"]
    return found


def _as_named(output: Path, entry: dict[str, Any]) -> bool:
    path = output / entry["file"]
    data = path.read_bytes() if path.is_file() else b""
    return (len(data), digest([data])) == (entry["n_bytes"], entry["blake3"])


def unreferenced(output: Path) -> set[str]:
    """Return half-written files, and results that are in no record and not in the manifest."""
    named = {record["entry"]["file"] for record in records(output)}
    named |= {entry["file"] for entry in _manifest(output)["files"]}
    current = output / "published/current"
    current_folder = f"published/{os.readlink(current)}/" if current.is_symlink() else "nothing"
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file() or path.is_symlink()}
    return {
        name
        for name in found
        if name.endswith(".writing")
        or (name.startswith(("parts", "stages", "index-")) and name not in named)
        or (name.startswith("published/") and name != "published/current" and not name.startswith(current_folder))
        or not (output / name).exists()
    }


def leftovers(output: Path) -> list[str]:
    """Return unreferenced files, and records of a finished training run."""
    checkpoints = {str(path.relative_to(output)) for path in output.rglob("*checkpoint*")}
    return sorted(unreferenced(output) | checkpoints)


class ObservedDisk(RecordingDisk):
    """Disk that calls `look` after each call that changes a name. Readers cannot see other changes."""

    def __init__(self, look: Callable[[str], None]) -> None:
        super().__init__()
        self._look = look

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        result = do(*arguments)
        if name in ("replace", "remove", "link", "symlink", "remove_directory"):
            self._look(f"after call {number}, {name} {Path(str(arguments[-1])).name}")
        return result


def watch_readers(scenario: Scenario) -> list[str | None]:
    """Run all readers after each change of a run. Return the runs that they see, in order of time."""
    output = scenario.new_output()
    visible = [run_seen_by_readers(output)] if output.exists() else [None]
    faults: list[str] = []

    def look(label: str) -> None:
        try:
            found = run_seen_by_readers(output)
        except Exception as error:
            faults.append(f"{label}: {error!r}")
            return
        if found != visible[-1]:
            visible.append(found)

    assert scenario.run(output, ObservedDisk(look)) == 0
    assert faults == [], faults
    return visible


# -- faults --------------------------------------------------------------------------------------------------------


def _select(items: Sequence[Item], selection: Selection) -> Sequence[Item]:
    """Return the items of a slice, or those with these numbers."""
    return items[selection] if isinstance(selection, slice) else [items[number] for number in selection]


def fail_every_call(
    scenario: Scenario, code: int, is_permanent: bool, takes_effect: bool = False, selection: Selection = slice(None)
) -> Counter[int]:
    """Make each call fail in turn. Return the number of runs by exit code."""
    codes = Counter[int]()
    for number in _select(range(len(scenario.calls)), selection):
        output = scenario.new_output()
        found = scenario.run(output, FailingDisk(number, code, is_permanent, takes_effect))
        call = _call_name(scenario, number)
        label = f"{call} fails with {errno.errorcode[code]}, permanent: {is_permanent}, takes effect: {takes_effect}"
        assert found in ALLOWED_CODES, f"{label}: exit code {found}"
        scenario.check(output, label)
        codes[found] += 1
    return codes


def fail_every_write(scenario: Scenario, code: int = 0, selection: Selection = slice(None)) -> Counter[int]:
    """Shorten each write in turn. If `code` is not 0, later writes fail. Return the number of runs by exit code."""
    codes = Counter[int]()
    n_writes = [name for name, _ in scenario.calls].count("write")
    for number in _select(range(n_writes), selection):
        output = scenario.new_output()
        found = scenario.run(output, ShortWriteDisk(number, code))
        assert found in (ALLOWED_CODES[1:] if code else (0,)), f"write {number} is short: exit code {found}"
        scenario.check(output, f"write {number} is short, then {code}")
        codes[found] += 1
    return codes


def kill_at_every_call(scenario: Scenario, after: bool, selection: Selection = slice(None)) -> int:
    """Kill the run (SIGKILL) right before or right after each call. Return the number of kills."""
    numbers = _select(range(len(scenario.calls)), selection)
    for number in numbers:
        output = scenario.new_output()
        label = f"killed {'after' if after else 'before'} {_call_name(scenario, number)}"
        outcome = forked(lambda out=output, n=number: scenario.run(out, KillingDisk(n, after)))
        assert outcome == (-signal.SIGKILL, None), label
        scenario.check(output, label)
    return len(numbers)


def cut_power(scenario: Scenario, n_random: int, selection: slice = slice(None)) -> Counter[str]:
    """Cut the power after each call. Return the number of distinct states of each kind."""
    log = PowerLog(scenario.new_output().parent)
    assert scenario.run(log.folder / "out", log) == 0
    kinds = Counter[str]()
    for number, kind, remains in [*log.cuts(n_random)][selection]:
        output = scenario.new_output()
        shutil.rmtree(output.parent)
        materialize(remains, output.parent)
        scenario.check(output, f"power cut after {_call_name(scenario, number)}: {kind}")
        kinds[kind] += 1
    return kinds


def several_faults(scenario: Scenario, n_sequences: int, seed: int = 0) -> Counter[str]:
    """Disturb several runs in a row at random before an undisturbed one. Return the number of faults of each kind."""
    rng = random.Random(seed)
    kinds = Counter[str]()
    for sequence in range(n_sequences):
        output = scenario.new_output()
        label = f"sequence {sequence}:"
        for _ in range(rng.randrange(2, 6)):
            kind = rng.choice(["fails", "is short", "killed", "power"])
            number = rng.randrange(len(scenario.calls))
            label += f" {kind} {number},"
            kinds[kind] += 1
            if kind == "killed":
                # The run may end before that call.
                code, _ = forked(
                    lambda out=output, n=number: scenario.run(out, KillingDisk(n, after=rng.random() < 0.5))
                )
                assert code in (0, -signal.SIGKILL), label
            elif kind == "power":
                output = _after_power_cut(scenario, output, rng)
            else:
                code = rng.choice([errno.ENOSPC, errno.EIO, errno.EMFILE])
                failing = FailingDisk(number, code, is_permanent=rng.random() < 0.5, takes_effect=rng.random() < 0.2)
                short = ShortWriteDisk(number // 8, rng.choice([0, code]))
                assert scenario.run(output, failing if kind == "fails" else short) in ALLOWED_CODES, label
            assert invalid_entries(output) == [], label
            scenario.check_readers(output, label)
        scenario.check(output, label)
    return kinds


def _after_power_cut(scenario: Scenario, output: Path, rng: random.Random) -> Path:
    """Cut the power at a random call, and return the output to resume. Assume that earlier results are on the disk."""
    log = PowerLog(output.parent)
    assert scenario.run(output, log) == 0
    cuts = [*log.cuts(1, rng.randrange(1000))]
    if not cuts:
        return output  # the output was already complete
    after = scenario.new_output()
    shutil.rmtree(after.parent)
    shutil.rmtree(output.parent)
    _, _, remains = rng.choice(cuts)
    materialize(remains, after.parent)
    return after


def _call_name(scenario: Scenario, number: int) -> str:
    name, argument = scenario.calls[number]
    return f"call {number}, {name} {Path(str(argument)).name}"


# -- command line --------------------------------------------------------------------------------------------------


def _experiments(scenario: Scenario, step: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield all tests: each kill, and every `step`-th fault of the other kinds."""
    selection = slice(None, None, step)
    yield "readers after every change", lambda: len(watch_readers(scenario))
    for code in (errno.ENOSPC, errno.EIO):
        for is_permanent in (False, True):
            label = f"calls fail with {errno.errorcode[code]} {'permanently' if is_permanent else 'once'}"
            yield (
                label,
                lambda code=code, is_permanent=is_permanent: fail_every_call(
                    scenario, code, is_permanent, selection=selection
                ),
            )
    yield (
        "calls take effect and report EIO",
        lambda: fail_every_call(scenario, errno.EIO, False, takes_effect=True, selection=selection),
    )
    yield "writes are short", lambda: fail_every_write(scenario, selection=selection)
    yield "writes are short, then ENOSPC", lambda: fail_every_write(scenario, errno.ENOSPC, selection=selection)
    yield "killed before every call", lambda: kill_at_every_call(scenario, after=False)
    yield "killed after every call", lambda: kill_at_every_call(scenario, after=True)
    yield "power cuts", lambda: cut_power(scenario, n_random=5, selection=selection)
    yield "several faults in a row", lambda: several_faults(scenario, 200 // step)


def try_kind(kind: str, step: int) -> None:
    """Print how many faults of each kind a kind of run survives. Raise `AssertionError` at the first failure."""
    logging.getLogger().addHandler(logging.NullHandler())
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        install(monkeypatch)
        scenario = Scenario(Path(folder) / kind, kind)
        which = "all" if step == 1 else f"one in {step}"
        names = dict(Counter(name for name, _ in scenario.calls))
        print(f"{kind}: {len(scenario.calls)} calls: {names}; {which} of the faults except kills", flush=True)
        for label, inject in _experiments(scenario, step):
            start = time.monotonic()
            found = inject()
            print(f"  {label}: {found} ({time.monotonic() - start:.0f} s)", flush=True)


def _try_in_a_process(kind: str, step: int) -> int:
    """Test a kind of run in a child process. Print the output of the process, and return its exit code."""
    command = [sys.executable, "-m", "tests.support.soak_protocol", str(step), kind]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(result.stdout, end="", flush=True)
    return result.returncode


def main(arguments: Sequence[str]) -> int:
    """Test all kinds of runs, or one. Return 1 if a run does not survive."""
    step = int(arguments[0]) if arguments else 7
    if len(arguments) > 1:
        try_kind(arguments[1], step)
        return 0
    steps = [1 if kind == "new" else step for kind in KINDS]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        codes = list(pool.map(_try_in_a_process, KINDS, steps))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
