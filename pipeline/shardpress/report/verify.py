"""Verification of an output directory without Theano: check the digests of files, and the features of some rows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shardpress.errors import DataError, NoInput, ReadFailed, printable, quantity
from shardpress.model import load_model
from shardpress.output.records import Entry, fault_of, plain_name, read_generation, read_manifest
from shardpress.report.inputs import Inputs, preprocessing_of
from shardpress.report.rows import Fault, Preprocessing, RowCheck, check_rows

_MODEL = "model.h5"
_NOT_ENCODED = Fault("features", "no row can be recomputed, because the model is damaged")


@dataclass(frozen=True)
class _Verification:
    """Result of verifying an output directory."""

    output: str
    n_files: int  # that the manifest lists, including the parts
    n_bytes: int  # their total size
    rows: RowCheck = field(default_factory=RowCheck)
    faults: tuple[Fault, ...] = ()  # of files and features
    unchecked: tuple[Fault, ...] = ()  # files that could not be checked

    def __str__(self) -> str:
        lines = [f"fault: {printable(each.file)}: {each.fault}" for each in self.faults]
        lines += [f"not checked: {printable(each.file)}: {each.fault}" for each in self.unchecked]
        lines.append(self._summary())
        return "\n".join(lines)

    def _summary(self) -> str:
        result = "OK"
        if self.faults:
            result = quantity(len(self.faults), "fault")
        n_right = self.n_files - len({each.file for each in self.faults})
        n_files = quantity(self.n_files, "file")
        files = f"{n_right} of {n_files} match their digests ({self.n_bytes / 1e6:.1f} MB, BLAKE3)"
        return f"{printable(self.output)}: {result}. {files}; {self.rows}.{self._advice()}"

    def _advice(self) -> str:
        """Return how to repair the results, if parts have faults."""
        if not any(each.file.startswith("parts/") for each in self.faults):
            return ""
        return (
            " Run the same command again to recompute parts. If files were appended, delete the wrong files first, and "
            "run it with --append."
        )


def verify(output: str, n_rows: int | None = None) -> _Verification:
    """Compare all files with the manifest, and recompute the features of some rows.

    Features can be recomputed only if the input file has not changed, and still exists at its path or in an input
    directory of the run. By default, those of at most 256 rows are recomputed. Nothing is written. Raise `NoInput` if
    the directory contains no finished run, and `DataError` if the manifest is damaged.
    """
    directory = Path(output)
    manifest = read_manifest(directory)
    earlier = _earlier_parts(directory, manifest)
    lines = (*manifest["parts"], *manifest["files"], *earlier)
    entries = [Entry(line["file"], line["n_bytes"], line["blake3"]) for line in lines]
    faults = _file_faults(directory, entries)
    n_bytes = sum(entry.n_bytes for entry in entries)
    preprocessing = _load_preprocessing(directory, manifest, faults)
    if preprocessing is None:
        return _Verification(output, len(entries), n_bytes, faults=tuple(faults), unchecked=(_NOT_ENCODED,))
    wrong_files = {each.file for each in faults}
    parts = [part for part in manifest["parts"] if part["file"] not in wrong_files]
    inputs = Inputs(manifest, preprocessing.model)
    rows = check_rows(directory, parts, inputs.shard, preprocessing, n_rows)
    return _Verification(output, len(entries), n_bytes, rows, (*faults, *rows.faults), rows.unchecked)


def _earlier_parts(directory: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of the parts of earlier generations. A damaged manifest is reported like any other file."""
    parts = []
    for each in manifest.get("generations", []):
        with suppress(DataError, NoInput):
            parts += read_generation(directory, each["manifest"])["parts"]
    return parts


def _file_faults(directory: Path, entries: list[Entry]) -> list[Fault]:
    """Return the faults of all files that differ from their entries in the manifest."""
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


def _load_preprocessing(directory: Path, manifest: Mapping[str, Any], faults: list[Fault]) -> Preprocessing | None:
    """Return the model and the settings that the run used for encoding, or None if the model is damaged.

    If the digest does not reveal the damage, a fault is added to `faults`.
    """
    if any(plain_name(fault.file) == _MODEL for fault in faults):
        return None
    try:
        model = load_model(directory / _MODEL)
    except (DataError, NoInput) as error:
        # The file matches its digest in the manifest, but its content is invalid.
        faults.append(Fault(_MODEL, str(error)))
        return None
    return preprocessing_of(manifest, model)
