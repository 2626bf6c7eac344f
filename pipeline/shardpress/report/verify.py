"""Verification of an output directory without Theano: check the digests of files, and the features of some rows."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from shardpress.errors import DataError, NoInput, ReadFailed, printable, quantity
from shardpress.features import FAILURES, reading
from shardpress.model import load_model
from shardpress.output.records import Entry, fault_of, plain_name, read_generation, read_manifest
from shardpress.report.inputs import Inputs, preprocessing_of
from shardpress.report.rows import Fault, Preprocessing, RowCheck, check_rows

_MODEL = "model.h5"
_NOT_ENCODED = Fault("features", "no row can be recomputed, because the model is damaged")


@dataclass(frozen=True)
class _Verification:
    """Result of verifying an output directory.

    Attributes
    ----------
    n_files, n_bytes : int
        Number and total size of the files that the manifest lists, including the parts.
    rows : RowCheck
        Result of recomputing the features of some rows.
    faults : tuple of Fault
        Faults of files and features.
    unchecked : tuple of Fault
        Files that could not be checked, with reasons.
    """

    output: str
    n_files: int
    n_bytes: int
    rows: RowCheck = field(default_factory=RowCheck)
    faults: tuple[Fault, ...] = ()
    unchecked: tuple[Fault, ...] = ()

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

    The manifest lists the size and the BLAKE3 digest of each file. Features can be recomputed only if the input file
    has not changed, and still exists at its path or in an input directory of the run. Nothing is written.

    Parameters
    ----------
    output : str
        Output directory of a finished run.
    n_rows : int, optional
        Number of rows to recompute. By default, at most 256 rows are recomputed.

    Raises
    ------
    NoInput
        If the directory contains no finished run.
    DataError
        If the manifest is damaged.
    """
    directory = Path(output)
    manifest = read_manifest(directory)
    earlier = _earlier_parts(directory, manifest)
    entries = [_entry(line) for line in (*manifest["parts"], *manifest["files"], *earlier)]
    faults = _file_faults(directory, entries)
    faults += _other_encoders(directory, manifest, {fault.file for fault in faults})
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


def _other_encoders(directory: Path, manifest: Mapping[str, Any], wrong_files: Collection[str]) -> list[Fault]:
    """Return a fault for each part that another encoder has made according to its attributes."""
    faults = []
    for line in manifest["parts"]:
        if line["file"] in wrong_files:
            continue
        try:
            with reading(directory / line["file"]) as file:
                encoder = file.attrs.get("model")
        except FAILURES as error:
            faults.append(Fault(line["file"], f"cannot be read: {error}"))
            continue
        if encoder is not None and encoder != manifest["model"]:
            expected = f"expected {manifest['model']} as in the manifest"
            faults.append(Fault(line["file"], f"contains features of the encoder {encoder}, {expected}"))
    return faults


def _entry(line: Mapping[str, Any]) -> Entry:
    """Convert a line of the manifest to an entry."""
    return Entry(line["file"], line["n_bytes"], line["blake3"])


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
    """Return the fault of a file, or None if the file is intact.

    A file that cannot be read because the storage fails is reported like a damaged file.
    """
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
