"""Kinds of whole runs to disturb, and checks of what a disturbed run leaves: files, and what readers see."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pytest

from shardpress.base.errors import NoInput
from shardpress.base.formats import digest
from shardpress.output.folder import DESCRIPTIONS
from shardpress.report.page.build import is_current
from shardpress.report.verify import verify
from shardpress.result.features import open_features, reading
from shardpress.result.finished import Result, load_model
from shardpress.result.records import plain, to_json
from tests.support.cases import ALL_CASES
from tests.support.faulty import RecordingDisk, journal_lines, journal_records
from tests.support.standin import Workspace, features_of

Item = TypeVar("Item")
Selection = slice | Sequence[int]
"""Numbers of calls: a slice, or a list."""

# Three steps, each followed by a checkpoint. The first checkpoint is deleted before the third is written.
STEPS = ("--quiet", "checkpoint_seconds=0", "--epochs", "1", "--batch-size", "12")
ANOTHER_OUTPUT = "{another output}"
# Flags of an earlier, finished run in the same directory, and of the run that is disturbed.
KINDS: dict[str, tuple[Sequence[str] | None, Sequence[str]]] = {
    "new": (None, STEPS),
    "overwrite": ((*STEPS, "--seed", "1"), (*STEPS, "--overwrite")),
    "restart": ((*STEPS, "--seed", "1"), (*STEPS, "--restart")),
    "threads": (None, (*STEPS, "--threads", "3")),
    # The earlier run has a file that the later one lacks: the list of bad data.
    "list before": ((*STEPS, "--seed", "1", "--on-bad-data", "skip"), (*STEPS, "--overwrite")),
    # A new file, a changed one, and one that is gone.
    "append": (STEPS, (*STEPS, "--append", "--drop-missing")),
    "retrain": ((*STEPS, "--seed", "1"), (*STEPS, "--retrain")),
    # During the run, the output contains a copy of the model for the workers.
    "given model": (None, ("--quiet", "--model", ANOTHER_OUTPUT)),
}


class Scenario:
    """A kind of run, the disk calls and result of an undisturbed one, and a check of what a disturbed run leaves."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir()
        self.workspace = Workspace(folder, 20, 0, 15)
        self._folder = folder
        self._n_outputs = 0
        before, flags = KINDS[kind]
        self.flags = [str(folder / "another") if flag == ANOTHER_OUTPUT else flag for flag in flags]
        if ANOTHER_OUTPUT in flags:
            assert self.workspace.run(folder / "another", *STEPS) == 0
        self._before = None if before is None else folder / "before"
        self._run_before: str | None = None
        if before is not None:
            assert self.workspace.run(folder / "before", *before) == 0
            if kind == "append":
                self._change_inputs()
            self._run_before = run_seen_by_readers(folder / "before")
        disk = RecordingDisk()
        output = self.new_output()
        assert self.run(output, disk) == 0
        self.calls = disk.calls
        self._expected = features_of(output)
        self._run_after = run_seen_by_readers(output)
        self._names = _names(output)

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
        numbers: dict[tuple[str, str], list[int]] = {}
        for number, (name, argument) in enumerate(self.calls):
            file = ""
            if not isinstance(argument, memoryview):
                file = re.sub("[0-9a-f]{32}|[0-9]+", "#", Path(str(argument)).name)
            numbers.setdefault((name, file), []).append(number)
        return sorted(same[turn % len(same)] for turn, same in enumerate(numbers.values()))

    def new_output(self) -> Path:
        """Return an output directory in the state before the run."""
        self._n_outputs += 1
        output = self._folder / f"{self._n_outputs}" / "out"
        output.parent.mkdir()
        if self._before is not None:
            shutil.copytree(self._before, output)
        return output

    def run(self, output: Path, disk: RecordingDisk | None = None) -> int:
        """Run the program and return its exit code. A run that has begun to start over is resumed."""
        flags = self.flags
        if "--restart" in flags and _starts_over(output):
            flags = [flag for flag in flags if flag != "--restart"]
        return self.workspace.run(output, *flags, disk=disk or RecordingDisk())

    def check(self, output: Path, label: str) -> None:
        """Check that no result is incomplete and that a rerun gives the undisturbed result. Then clean up."""
        assert run_seen_by_readers(output) in (self._run_before, self._run_after), label
        assert self.run(output) == 0, label
        assert features_of(output) == self._expected, label
        assert run_seen_by_readers(output) == self._run_after, label
        assert invalid_entries(output) == [], label
        assert leftovers(output) == [], label
        assert _names(output) == self._names, label
        assert is_current(output / "report.html", Result.open(output).digest), label
        shutil.rmtree(output.parent)


def _names(output: Path) -> list[str]:
    """Return the names of all files without digests. A scan is lost if a run is killed right after its commit."""
    found = [str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()]
    return sorted(re.sub("[0-9a-f]{32}", "#", name) for name in found if not name.startswith("work/scan"))


def _starts_over(output: Path) -> bool:
    """Return whether an interrupted run with --restart can be resumed without this flag."""
    lines = _lines(output)
    return bool(lines) and lines[0]["restarts"]


# -- files -----------------------------------------------------------------------------------------------------------


def _lines(output: Path) -> list[dict[str, Any]]:
    """Return the lines of the journal, unless another index is published."""
    journal = output / "work/journal.jsonl"
    index = output / "index.h5"
    lines = journal_lines(journal.read_bytes()) if journal.exists() else []
    published = index.read_bytes()[-32:].hex() if index.exists() else None
    return lines if lines and lines[0]["digest"] == published else []


def records(output: Path) -> list[dict[str, Any]]:
    """Return the results that the journal names, as plain values. Do not use the program's journal."""
    return journal_records(_lines(output))


def committed(output: Path) -> dict[str, str]:
    """Return the file of each result that the journal names, and of each part of the published result."""
    found = {record["key"]: record["entry"]["file"] for record in records(output)}
    published = _results(output)[:1]
    return found | {Path(part.file).stem: part.file for result in published for part in result.parts}


def _results(output: Path) -> list[Result]:
    """Return the published result and all earlier generations."""
    if not (output / "index.h5").exists():
        return []
    result = Result.open(output)
    return [result, *(result.generation(each.generation) for each in result.facts.model.generations)]


def invalid_entries(output: Path) -> list[str]:
    """Return files that do not match the journal or an index that names them."""
    entries = [record["entry"] for record in records(output)]
    for result in _results(output):
        entries += [plain(part.entry) for part in result.parts]
    return [entry["file"] for entry in entries if not _as_named(output, entry)]


def _as_named(output: Path, entry: dict[str, Any]) -> bool:
    path = output / entry["file"]
    data = path.read_bytes() if path.is_file() else b""
    return (len(data), digest([data])) == (entry["n_bytes"], entry["blake3"])


def unreferenced(output: Path) -> set[str]:
    """Return half-written files, and results that neither the journal nor an index names."""
    named = {record["entry"]["file"] for record in records(output)}
    for result in _results(output):
        named |= {*result.files}
    for result in _results(output)[:1]:
        named |= {f"generation-{each.generation}.h5" for each in result.facts.model.generations}
    named |= {DESCRIPTIONS.format(result.digest) for result in _results(output)[:1]}
    found = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    kinds = ("parts/", "work/scan", "work/model", "work/checkpoint", "work/descriptions", "generation-")
    return {name for name in found if name.endswith(".writing") or (name.startswith(kinds) and name not in named)}


def leftovers(output: Path) -> list[str]:
    """Return unreferenced files, and files of a finished training run."""
    trained = {str(path.relative_to(output)) for path in output.glob("work/[cm]*-*")}
    return sorted(unreferenced(output) | trained)


# -- readers -------------------------------------------------------------------------------------------------------


def run_seen_by_readers(output: Path) -> str | None:
    """Return the run that every reader sees, as digests of features, use and request. Return None for no run.

    Raises
    ------
    AssertionError
        If two readers see different runs, or if a reader sees a damaged run.
    """
    if not (output / "index.h5").exists():
        for read in (Result.open, open_features, load_model):
            with pytest.raises(NoInput):
                read(output)
        return None
    result = Result.open(output)
    opened = open_features(output)
    features = opened.features.compute()
    found = verify(str(output), 4)
    assert not found.faults, str(found)
    assert load_model(output).fingerprint == opened.manifest["model"] == result.encoder
    # HDF5's lock is off, because the run may have parts open in the same process.
    with reading(output / "index.h5") as index:
        assert index["features"][()].tobytes() == features.tobytes()
        assert index["y"][()].tobytes() == opened.extras["y"].compute().tobytes()
    earlier = [open_features(output, generation=each.generation) for each in result.facts.model.generations]
    digests = [digest([each.features.compute().tobytes()]) for each in (opened, *earlier)]
    request = digest([to_json(result.facts.rows.request), result.use().tobytes()])
    return " ".join([*digests, request])


# -- calls ---------------------------------------------------------------------------------------------------------


def select(items: Sequence[Item], selection: Selection) -> Sequence[Item]:
    """Return the items of a slice, or those with these numbers. With TEST_CASES=all, return all items."""
    if ALL_CASES:
        return items
    return items[selection] if isinstance(selection, slice) else [items[number] for number in selection]


def call_name(scenario: Scenario, number: int) -> str:
    name, argument = scenario.calls[number]
    return f"call {number}, {name} {Path(str(argument)).name}"


def edit(path: Path) -> None:
    """Change a row of a file, but neither its size nor its modification time."""
    before = path.stat()
    with h5py.File(path, "r+") as file:
        file["X"][3] += np.float32(0.25)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
