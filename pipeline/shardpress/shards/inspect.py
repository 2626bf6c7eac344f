"""Descriptions of input files for users: datasets, the reason for the choice of the rows, and advice on storage.

Files that differ only in numbers, such as those of rows, are described together. No rows are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.base.errors import DataError, printable
from shardpress.hdf5.child.ask import ask
from shardpress.hdf5.files import Identity
from shardpress.hdf5.filters.codecs import GZIP
from shardpress.hdf5.layout import Layout, grid_of
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.shard import Shard
from shardpress.shards.column_order import IN_ORDER, ColumnCheck, ColumnRule
from shardpress.shards.extras import shorten
from shardpress.shards.open import open_shards
from shardpress.shards.vet import Selection, read_structure

_SMALL_PIECE = 2**16  # bytes; seeking takes longer than reading fewer bytes
_SMALL_FILE = 2**20  # bytes; opening a smaller file takes longer than reading it
_LARGE_CHUNK = 2**24  # bytes; larger chunks are decompressed once for every slab in them
_MANY_FILES = 1000
_LISTED = 10  # number of refused files whose datasets are listed


@dataclass(frozen=True)
class FileGroup:
    """Files that differ only in numbers."""

    names: list[str]  # paths of the files
    n_rows: int  # of all files
    taken: str  # dataset with the rows
    why: str  # reason for its choice
    shape: list[int]  # of a row before it is flattened
    dtype: str  # as stored
    form: str  # as in `shardpress.hdf5.forms`, or `dense by columns`
    columns: str  # location of the names or numbers of columns, which are compared across all files
    extras: list[str]
    left_out: dict[str, str]  # reasons by the names of datasets that are not extras
    datasets: list[dict[str, Any]]  # of the first file, as `shardpress.hdf5.child.describe.listed` describes them
    faster: list[str]  # advice on how to store the rows so that they are read faster, for any of the files


@dataclass(frozen=True)
class Inspection:
    """Contents of all files."""

    shards: tuple[Shard, ...] = ()  # empty if no file can be used
    files: list[FileGroup] = field(default_factory=list)
    # Refused files: "file", "reason", and "datasets" of the first ones.
    refused: list[dict[str, Any]] = field(default_factory=list)


def inspect_files(patterns: Sequence[str], selection: Selection, columns: ColumnRule = IN_ORDER) -> Inspection:
    """Describe every file that matches the patterns.

    The arguments and errors are those of `shardpress.shards.open.open_shards`, but refused files are not an error.
    """
    refused: list[dict[str, Any]] = []

    def refuse(path: Path, error: DataError) -> None:
        datasets = _datasets(path) if len(refused) < _LISTED else []
        refused.append({"file": str(path), "reason": str(error), "datasets": datasets})

    check = ColumnCheck(columns)
    try:
        shards = open_shards(patterns, selection.dataset, refuse, selection.orientation, selection.include, check)
    except DataError:
        if not refused:
            raise
        return Inspection(refused=refused)
    files = [_describe(group, selection) for group in _groups(shards)]
    return Inspection(shards, files, refused)


def _groups(shards: Sequence[Shard]) -> list[list[Shard]]:
    groups: dict[object, list[Shard]] = {}
    for shard in shards:
        groups.setdefault(_group_key(shard), []).append(shard)
    return list(groups.values())


def _group_key(shard: Shard) -> object:
    # The sizes of chunks, parameters of filters, and storage in the metadata can depend on the number of rows.
    layouts = []
    for layout in (stored.layout for stored in shard.fields):
        codes = tuple(code for code, _ in layout.filters)
        layouts.append((bool(layout.chunks), layout.kind == "asked", codes))
    return shard.dataset, shard.shape[1:], shard.stored_dtype, shard.form, tuple(layouts), _missing(shard)


def _missing(shard: Shard) -> tuple[str, ...]:
    """Return the names of extras that other files have, but not this one."""
    if not shard.n_rows:  # then no value is missing
        return ()
    return tuple(extra.name for extra in shard.extras if extra.mask and extra.stored is None)


def _left_out(shards: Sequence[Shard]) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for shard in shards:
        for dataset in shard.left_out:
            reasons.setdefault(shorten(dataset.name), shorten(dataset.reason))
    for name in _missing(shards[0]):
        reasons.setdefault(shorten(name), "missing in these files")
    return dict(islice(reasons.items(), MOST_LEFT_OUT))


def _describe(shards: Sequence[Shard], selection: Selection) -> FileGroup:
    first = shards[0]
    return FileGroup(
        names=[shard.path for shard in shards],
        n_rows=sum(shard.n_rows for shard in shards),
        taken=first.dataset,
        why=_reason_for_choice(first, selection),
        shape=list(first.shape[1:]),
        dtype=str(np.dtype(first.stored_dtype)),
        form="dense by columns" if first.form == "dense" and first.is_transposed else first.form,
        columns=str(first.columns),
        extras=[extra.name for extra in first.extras if extra.name not in _missing(first)],
        left_out=_left_out(shards),
        datasets=_datasets(Path(first.path)),
        faster=list(_advice(shards)),
    )


def _reason_for_choice(shard: Shard, selection: Selection) -> str:
    if shard.master is not None:
        return f"the master file={printable(shard.master.path)} names it"
    if selection.dataset is not None:
        return "it is given by --dataset"
    if shard.dataset == "X":
        return "it is named X"
    return "it is the only dataset that can hold rows"


# -- datasets of a file ------------------------------------------------------------------------------------------


def _datasets(path: Path) -> list[dict[str, Any]]:
    """Return the datasets that the child process lists for a file, or an empty list if it fails."""
    where = f"file={printable(path)}"

    def read(descriptor: int, identity: Identity) -> Any:
        return ask("listed", descriptor, [], list[dict[str, Any]], where)

    try:
        return [{"shape": None, **_printable_texts(dataset)} for dataset in read_structure(path, read)]
    except DataError:  # already reported
        return []


def _printable_texts(claim: Any) -> Any:
    """Return the child's answer, or an item in it, with escaped texts."""
    if isinstance(claim, dict):
        return {key: _printable_texts(item) for key, item in claim.items()}
    if isinstance(claim, list):
        return [_printable_texts(item) for item in claim]
    return printable(claim) if isinstance(claim, str) else claim


# -- advice ------------------------------------------------------------------------------------------------------


def _advice(shards: Sequence[Shard]) -> Iterator[str]:
    """Yield a reason and a remedy for everything that makes reading some files of one group slow."""
    by_kind: dict[str, list[str]] = {}
    for shard in shards:
        for kind, words in _faster_storage(shard):
            by_kind.setdefault(kind, []).append(words)
    for advice in by_kind.values():
        few = "" if len(advice) == len(shards) else f"in {len(advice)} of {len(shards)} files, "
        yield few + advice[0]
    if len(shards) > _MANY_FILES and sum(shard.identity.size for shard in shards) < len(shards) * _SMALL_FILE:
        yield f"{len(shards)} files of less than 1 MB: opening takes longer than reading. Write fewer, larger files."


def _faster_storage(shard: Shard) -> Iterator[tuple[str, str]]:
    """Yield the kind of each advice, and the advice."""
    layout = shard.fields[0].layout
    if shard.form == "dense" and shard.is_transposed:
        words = f"rows are stored by columns: each is read from {shard.n_inputs} places"
        yield "columns", f"{words}. Store rows along the first axis."
    if shard.stored_dtype.startswith(">"):
        yield "swapped", "the bytes of every value are swapped. Store values in the byte order of this machine."
    if layout.kind == "asked":
        words = "only libhdf5 can read the rows, in a separate process"
        yield "special", f"{words}. Store plain numbers without special filters."
    if any(code == GZIP for code, _ in layout.filters):
        words = (
            "decompressing gzip takes longer than all other preparation of the rows, in every epoch that streams them"
        )
        yield "gzip", f"{words}. Store the rows uncompressed, or with lz4 or lzf."
    if shard.form == "dense" and not shard.is_transposed and layout.chunks:
        yield from _faster_chunks(shard, layout)


def _faster_chunks(shard: Shard, layout: Layout) -> Iterator[tuple[str, str]]:
    n_rows = max(1, 2**20 // shard.row_bytes)
    advice = f"chunks of about 1 MB, for example {(n_rows, *shard.shape[1:])}"
    n_across = prod(grid_of(shard.shape, layout.chunks)[1:])
    if n_across > 1:
        yield "across", f"reading a row reads {n_across} chunks of shape {layout.chunks}. Use {advice}."
    elif layout.chunk_bytes < _SMALL_PIECE and layout.n_bytes > _SMALL_FILE:
        words = f"each chunk holds only {layout.chunk_bytes} bytes and needs a separate read"
        yield "small", f"{words}. Use {advice}."
    if layout.chunk_bytes > _LARGE_CHUNK:
        words = f"each chunk holds {layout.chunk_bytes / 1e6:.0f} MB, and shuffled training decompresses it many times"
        yield "large", f"{words}. Use {advice}."
