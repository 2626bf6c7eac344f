"""Parquet files: a copy of each part for other programs. Each copy is committed like a part.

A commit record names the part from which its file was written by the digest of the part. If a part is written again,
its Parquet file is written again, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shardpress.encoding.partfile import part_shapes
from shardpress.encoding.parts import PartFacts
from shardpress.errors import DeviceError, quantity
from shardpress.features import Shape, common_dtypes
from shardpress.formats import fingerprint
from shardpress.frames import import_pyarrow
from shardpress.output.groupcommit import GroupCommit
from shardpress.output.ledger import Ledger
from shardpress.output.records import Entry, Record, is_parquet, write_result
from shardpress.progress import Progress
from shardpress.run.context import RunContext
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import Shard

__all__ = ["PARQUET_BYTES", "parquet_key", "write_parquet_files"]

log = logging.getLogger(__name__)

PARQUET_BYTES = 2**26
"""Maximum memory in bytes of pyarrow and of a group of rows: 43 MB were measured, and files of libraries are mapped."""

_KIND = "parquet"
_VERSION = 2  # version of the content of the files; another version writes all of them again


def parquet_key(features_key: str) -> str:
    """Return the fingerprint of the Parquet files, given the fingerprint of the features."""
    return fingerprint(features_key, _KIND, _VERSION)


def write_parquet_files(
    prepared: Prepared, features_key: str, parts: Sequence[PartFacts], context: RunContext
) -> list[Entry]:
    """Write and commit the Parquet files that are missing or damaged.

    Parameters
    ----------
    prepared : Prepared
    features_key : str
        Fingerprint of the features that this run has encoded.
    parts : sequence of PartFacts
        All parts of the results. After an append, earlier ones have other fingerprints.
    context : RunContext

    Returns
    -------
    list of Entry
        The files of all parts, in the order of the rows. Empty if no Parquet files are requested and the finished run
        has none of the same parts.

    Raises
    ------
    DeviceError
        If pyarrow is not installed.
    ReadFailed
        If a part cannot be read.
    WriteFailed, SystemLimit, NotPermitted, TryAgain
        If a file cannot be written or committed.
    """
    is_requested = prepared.config.results.format == "parquet"
    earlier = prepared.finished.parts if prepared.finished is not None else parts
    if not is_requested and not _are_published(context.ledger, earlier):
        return []
    key = parquet_key(features_key)
    if prepared.finished is None:
        _drop_others(context, key, parts)
        files = _committed_files(context, [key], parts)
    else:  # files of replaced parts are published until the append is
        files = _committed_files(context, [*prepared.finished.manifest["kept"], key], parts)
    missing = [part for part in parts if part.entry.blake3 not in files]
    if missing:
        if not is_requested and not _can_write():
            return []
        files = {**files, **_write(missing, _common_names(prepared, parts), key, context)}
        n_bytes = sum(entry.n_bytes for entry in files.values())
        log.info("parquet: %s, %.1f MB", quantity(len(files), "file"), n_bytes / 1e6)
        context.state.end_stage(_KIND)
    return [files[part.entry.blake3] for part in parts]


def _are_published(ledger: Ledger, parts: Sequence[PartFacts]) -> bool:
    """Return whether the last finished run has these parts, and Parquet files."""
    manifest = ledger.manifest() or {"parts": [], "files": []}
    digests = {line["blake3"] for line in manifest["parts"]}
    is_same = digests >= {part.entry.blake3 for part in parts}
    return is_same and any(is_parquet(line["file"]) for line in manifest["files"])


def _can_write() -> bool:
    """Return whether pyarrow is installed; log a warning if it is not."""
    try:
        import_pyarrow()
    except DeviceError as error:
        log.warning("some Parquet files of the earlier run are damaged or missing, so all are removed. %s", error)
        return False
    return True


def _committed_files(context: RunContext, keys: Iterable[str], parts: Sequence[PartFacts]) -> dict[str, Entry]:
    """Return the committed Parquet files with some fingerprints by the digests of their parts."""
    digests = {part.entry.blake3 for part in parts}
    records = [record for key in keys for record in context.earlier.records(_KIND, key)]
    return {record.facts["part"]: record.entry for record in records if record.facts.get("part") in digests}


def _drop_others(context: RunContext, key: str, parts: Sequence[PartFacts]) -> None:
    """Drop the Parquet files of other parts."""
    digests = {part.entry.blake3 for part in parts}
    records = context.earlier.records(_KIND, key)
    context.earlier.drop(*(record for record in records if record.facts.get("part") not in digests))


def _write(parts: Sequence[PartFacts], names: Mapping[str, object], key: str, context: RunContext) -> dict[str, Entry]:
    """Write the Parquet files of parts one after the other, and commit each one; return them by digests of the parts.

    One file at a time is written, so that the memory does not depend on the number of threads.
    """
    from shardpress.encoding.parquet import parquet_file  # needs pyarrow, an optional package

    ledger = context.ledger
    files = {}
    with GroupCommit(ledger) as group, Progress(_KIND, sum(part.n_rows for part in parts), "rows") as progress:
        for part in parts:
            content = parquet_file(ledger.directory / part.entry.file, names)
            entry = write_result(ledger.directory, ledger.disk, f"parts/{part.key}", ".parquet", content)
            record_key = part.key.replace("part", _KIND, 1)
            group.add(Record(record_key, key, entry, {"part": part.entry.blake3}))
            files[part.entry.blake3] = entry
            progress.advance(part.n_rows)
    return files


def _common_names(prepared: Prepared, parts: Sequence[PartFacts]) -> dict[str, np.dtype]:
    """Return the datasets that all parts have with the same dtype, as `open_features` does."""
    if prepared.finished is not None:  # the new shards have the extras that all earlier parts have
        return common_dtypes([_shapes_in(prepared.shards[0])])
    numbers = sorted({part.shard for part in parts})
    return common_dtypes([_shapes_in(prepared.shards[number]) for number in numbers])


def _shapes_in(shard: Shard) -> dict[str, Shape]:
    """Return the shape and dtype of each dataset in the parts of a shard. All strings have the dtype object."""
    shapes = {}
    for name, (dims, dtype) in part_shapes(1, 1, shard.extras).items():
        is_text = dtype.kind == "S" or dtype.hasobject
        shapes[name] = (dims, np.dtype(object) if is_text else dtype)
    return shapes
