"""Whether an output directory is as it was written, and its features those of its rows: at any time, without Theano."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.columns import Columns
from pipeline.errors import DataError, NoInput, ReadFailed, counted, shown
from pipeline.model import load_model
from pipeline.output.records import Entry, fault_of, plain_name, published_file, read_manifest
from pipeline.report.rows import Encoded, Fault, Part, RowsChecked, check_rows
from pipeline.shards.columns import reordered
from pipeline.shards.shard import Shard, with_offset
from pipeline.shards.vet import Wanted, vet

__all__ = ["Verified", "verify"]

_MODEL = "model.h5"
_NOT_ENCODED = Fault("features", "the model is damaged, so that no row can be encoded again")


@dataclass(frozen=True)
class Verified:
    """What came of a look at an output directory.

    Attributes
    ----------
    n_files, n_bytes : int
        That the manifest names, parts among them.
    rows : RowsChecked
        Those that were encoded again.
    faults : tuple of Fault
        What is wrong, file by file.
    unchecked : tuple of Fault
        What could not be looked at, and why.
    """

    output: str
    n_files: int
    n_bytes: int
    rows: RowsChecked = field(default_factory=RowsChecked)
    faults: tuple[Fault, ...] = ()
    unchecked: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        lines = [f"wrong: {shown(each.file)}: {each.fault}" for each in self.faults]
        lines += [f"not checked: {shown(each.file)}: {each.fault}" for each in self.unchecked]
        n_right = self.n_files - len({each.file for each in self.faults})
        files = (
            f"{n_right} of {counted(self.n_files, 'file')} as they were written ({self.n_bytes / 1e6:.1f} MB, BLAKE3)"
        )
        what = counted(len(self.faults), "fault") if self.faults else "nothing is wrong"
        return "\n".join([*lines, f"{shown(self.output)}: {what}. {files}; {self.rows}."])


def verify(output: str, n_rows: int | None = None) -> Verified:
    """Compare sizes and BLAKE3 of all files with the manifest, and features of some rows with those rows.

    Nothing is written. Rows are encoded again where their shards still are as they were, in their place or in the
    folder of the run.

    Parameters
    ----------
    output : str
        The directory of a finished run.
    n_rows : int, optional
        How many rows are encoded again; 256 at most without it.

    Raises
    ------
    NoInput
        When there is no finished run.
    DataError
        When its manifest is damaged: then nothing is known of the rest.
    """
    directory = Path(output)
    manifest = read_manifest(directory)
    entries = [
        Entry(*map(line.get, ("file", "n_bytes", "blake3"))) for line in (*manifest["parts"], *manifest["files"])
    ]
    faults = _faults(directory, entries)
    wrong, n_bytes = {each.file for each in faults}, sum(entry.n_bytes for entry in entries)
    rows, unchecked = RowsChecked(), []
    if any(plain_name(name) == _MODEL for name in wrong):
        unchecked.append(_NOT_ENCODED)
    else:
        try:
            encoded = _encoded(directory, manifest)
        except (DataError, NoInput) as error:
            # Its digest is the one in the manifest, but not what it holds the one in the file.
            faults.append(Fault(_MODEL, str(error)))
            unchecked.append(_NOT_ENCODED)
        else:
            parts = [part for part in manifest["parts"] if part["file"] not in wrong]
            inputs = _Inputs(manifest, encoded.model.offset, encoded.model.columns)
            rows = check_rows(directory, parts, inputs.shard, encoded, n_rows)
    return Verified(output, len(entries), n_bytes, rows, (*faults, *rows.faults), (*unchecked, *rows.unchecked))


def _faults(directory: Path, entries: list[Entry]) -> list[Fault]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), "verify") as pool:
        faults = pool.map(partial(_fault_of, directory), entries)
        found = [(entry.file, fault) for entry, fault in zip(entries, faults, strict=True) if fault]
    return [Fault(name, fault.removeprefix(f"file={shown(directory / name)}: ")) for name, fault in found]


def _fault_of(directory: Path, entry: Entry) -> str | None:
    """Return what is wrong with a file; one that the storage cannot read is reported like a damaged one."""
    try:
        return fault_of(directory, entry)
    except ReadFailed as error:
        return str(error)


def _encoded(directory: Path, manifest: Mapping[str, Any]) -> Encoded:
    config = manifest["config"]
    drift = config.get("on_drift", config.get("out_of_range"))  # which it was called before
    clips = bool(config.get("model")) and drift == "clip"
    return Encoded(load_model(published_file(directory, "model.h5")), config.get("missing_value"), clips)


class _Inputs:
    """The shards of a run, as its manifest tells where they lay and what they were."""

    def __init__(self, manifest: Mapping[str, Any], offset: np.ndarray | None, columns: Columns) -> None:
        self._offset = offset
        self._columns = columns
        request = manifest["request"]
        self._shards, self._folders = request["inputs"]["shards"], request.get("folders", [])
        self._orientation = manifest["config"].get("orientation")

    def shard(self, part: Part) -> Shard:
        """What a part was made from.

        Raises
        ------
        NoInput
            When it is not there any more.
        DataError
            When it has changed.
        """
        path, was = Path(part["path"]), self._shards[part["shard"]]
        places = [path, *(Path(folder) / path.name for folder in self._folders)]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise NoInput(f"is not there any more, nor in {', '.join(map(shown, self._folders))}")
        shard = vet(found, Wanted(part["dataset"], self._orientation))
        if (shard.identity.size, shard.identity.mtime_ns) != (was["n_bytes"], was["changed"]):
            raise DataError("has changed since the run")
        if "column_order" in was:
            shard = reordered(shard, self._columns)
        return with_offset(shard, self._offset)
