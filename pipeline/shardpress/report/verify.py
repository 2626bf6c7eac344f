"""Verification of an output directory without Theano: check the digests of files, and the features of some rows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from msgspec import field

from shardpress.base.errors import DataError, NoInput, ReadFailed, printable, quantity
from shardpress.base.formats import Facts
from shardpress.output.folder import fault_of
from shardpress.report.origin import InputShards, preprocessing_of
from shardpress.report.recompute import check_rows
from shardpress.result.facts import Fault, RowCheck
from shardpress.result.finished import GENERATION, Result, file_of
from shardpress.result.records import Entry


class _Verification(Facts, frozen=True):
    """Result of verifying an output directory. If its index is damaged, nothing else can be checked."""

    output: str
    n_files: int  # the index, and the files that it names
    n_bytes: int  # their total size
    rows: RowCheck = RowCheck()
    faults: list[Fault] = field(default_factory=list)  # of files and features
    unchecked: list[Fault] = field(default_factory=list)  # files that could not be checked

    def __str__(self) -> str:
        lines = [f"fault: {printable(fault.file)}: {fault.fault}" for fault in self.faults]
        lines += [f"not checked: {printable(fault.file)}: {fault.fault}" for fault in self.unchecked]
        lines.append(self._summary())
        return "\n".join(lines)

    def _summary(self) -> str:
        result = "OK"
        if self.faults:
            result = quantity(len(self.faults), "fault")
        index = file_of(self.output).name
        if any(fault.file == index for fault in self.faults):
            return f"{printable(self.output)}: {result}. Other files were not checked, because {index} names them."
        n_right = self.n_files - len({fault.file for fault in self.faults})
        n_files = quantity(self.n_files, "file")
        files = f"{n_right} of {n_files} match their digests ({self.n_bytes / 1e6:.1f} MB, BLAKE3)"
        return f"{printable(self.output)}: {result}. {files}; {self.rows}.{self._advice()}"

    def _advice(self) -> str:
        """Return how to repair the results, if parts have faults."""
        if not any(fault.file.startswith("parts/") for fault in self.faults):
            return ""
        return (
            " Run the same command again to recompute parts. If files were appended, delete the wrong files first, and "
            "run it with --append."
        )


def verify(output: str, n_rows: int | None = None) -> _Verification:
    """Compare all files with their digests, and recompute the features of some rows.

    Features can be recomputed only if the input file still exists at its path, with the same size and modification
    time. By default, those of at most 256 rows are recomputed. Nothing is written. Raise `NoInput` if the directory
    contains no finished run, and `OtherVersion` if another version of shardpress has written it.
    """
    try:
        result = Result.open(output)
    except DataError as error:
        return _Verification(output, n_files=1, n_bytes=0, faults=[_fault_of_result(file_of(output), error)])
    earlier, faults = _earlier_results(result)
    entries: dict[str, Entry] = {}
    for kept in (result, *earlier):  # generations share parts
        entries |= {part.file: part.entry for part in kept.parts}
    faults += _file_faults(result.directory, list(entries.values()))
    n_files = len(entries) + 1 + len(result.facts.model.generations)
    n_bytes = sum(entry.n_bytes for entry in entries.values()) + sum(len(kept.data) for kept in (result, *earlier))
    wrong_files = {fault.file for fault in faults}
    pairs = [(part, rows) for part, rows in result.ranges if part.file not in wrong_files]
    rows = check_rows(
        result.directory, pairs, result.shards, InputShards(result).shard, preprocessing_of(result), n_rows
    )
    return _Verification(output, n_files, n_bytes, rows, [*faults, *rows.faults], rows.unchecked)


def _earlier_results(result: Result) -> tuple[list[Result], list[Fault]]:
    """Return the earlier generations, and the faults of their files."""
    results = []
    faults = []
    for kept in result.facts.model.generations:
        try:
            results.append(result.generation(kept.generation))
        except (DataError, NoInput) as error:
            path = result.directory / GENERATION.format(kept.generation)
            faults.append(_fault_of_result(path, error))
    return results, faults


def _fault_of_result(path: Path, error: Exception) -> Fault:
    """Return a fault that names the file only once."""
    return Fault(path.name, str(error).removeprefix(f"result={printable(path)}: "))


def _file_faults(directory: Path, entries: list[Entry]) -> list[Fault]:
    """Return the faults of all files that differ from their entries."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "verify") as pool:
        messages = list(pool.map(partial(_file_fault, directory), entries))
    faults = []
    for entry, message in zip(entries, messages, strict=True):
        if message:
            where = f"file={printable(directory / entry.file)}: "
            faults.append(Fault(entry.file, message.removeprefix(where)))
    return faults


def _file_fault(directory: Path, entry: Entry) -> str | None:
    """Return the fault of a file, or None. A file that a failing storage cannot read is reported like a damaged one."""
    try:
        return fault_of(directory, entry)
    except ReadFailed as error:
        return str(error)
