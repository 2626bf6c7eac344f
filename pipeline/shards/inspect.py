"""What is in input files, for people: datasets, which of them would be taken and why, and what would read faster.

Files of one make are told of once. Nothing of their rows is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.hdf5.child.ask import ask, believed
from pipeline.hdf5.files import Identity
from pipeline.hdf5.filters.codecs import FILTERS
from pipeline.hdf5.layout import Layout
from pipeline.shards.columns import IN_ORDER, ColumnRule
from pipeline.shards.open import open_shards
from pipeline.shards.riding import cut
from pipeline.shards.shard import Shard
from pipeline.shards.vet import Wanted, look_at

__all__ = ["Files", "Inspected", "faster", "inspected"]

_SMALL_PIECE = 2**16  # bytes: of less, seeking takes longer than reading
_SMALL_FILE = 2**20  # bytes: of less, opening does
_LARGE_CHUNK = 2**24  # bytes: larger ones are undone once for each slab of the training that lies in them
_MANY_FILES = 1000
_LISTED = 10  # refused files that are looked into


@dataclass(frozen=True)
class Files:
    """Files of one make.

    Attributes
    ----------
    names : list of str
    n_rows : int
        Of all of them.
    taken, why : str
        The dataset that holds the rows, and what makes it that one.
    shape : list of int
        A row's, before it is flattened.
    dtype : str
        As stored.
    form : str
        As in `pipeline.hdf5.forms`.
    columns : str
        Where their names or numbers are stored, which are compared over all files.
    riding : list of str
        What rides along.
    left_out : dict of str to str
        Why others do not.
    datasets : list of dict
        What is in the first of them, as of `pipeline.hdf5.child.describe.listed`.
    faster : list of str
        What would be read faster if it were stored otherwise.
    """

    names: list[str]
    n_rows: int
    taken: str
    why: str
    shape: list[int]
    dtype: str
    form: str
    columns: str
    riding: list[str]
    left_out: dict[str, str]
    datasets: list[dict[str, Any]]
    faster: list[str]


@dataclass(frozen=True)
class Inspected:
    """What is in all files.

    Attributes
    ----------
    shards : tuple of Shard
        That can be read together; empty where none can be used.
    files : list of Files
    refused : list of dict
        ``file``, ``reason``, and of the first ones ``datasets``.
    """

    shards: tuple[Shard, ...] = ()
    files: list[Files] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)


def inspected(
    patterns: Sequence[str], wanted: Wanted, followed: Sequence[str] = (), columns: ColumnRule = IN_ORDER
) -> Inspected:
    """Look at every file that patterns name; arguments and errors as of `pipeline.shards.open.open_shards`.

    That a file is refused, or that none is left, is no error here.
    """
    refused: list[dict[str, Any]] = []

    def refuse(path: Path, error: DataError) -> None:
        datasets = _datasets(path) if len(refused) < _LISTED else []
        refused.append({"file": str(path), "reason": str(error), "datasets": datasets})

    try:
        shards = open_shards(patterns, wanted.dataset, refuse, followed, wanted.orientation, wanted.carry, columns)
    except DataError:
        if not refused:
            raise
        return Inspected(refused=refused)
    alike: dict[object, list[Shard]] = {}
    for shard in shards:
        alike.setdefault(_make(shard), []).append(shard)
    return Inspected(shards, [_told(each, wanted) for each in alike.values()], refused)


def _make(shard: Shard) -> object:
    """Equal for files that differ in nothing but their rows."""
    layouts = tuple((layout.kind, layout.chunks, layout.filters) for layout in shard.layouts)
    riders = tuple((rider.name, str(rider.dtype), rider.layout is None) for rider in shard.riders)
    left_out = tuple((each.name, each.reason) for each in shard.left_out)
    return shard.dataset, shard.shape[1:], shard.stored_dtype, shard.form, layouts, riders, left_out


def _told(shards: Sequence[Shard], wanted: Wanted) -> Files:
    first = shards[0]
    return Files(
        names=[shard.path for shard in shards],
        n_rows=sum(shard.n_rows for shard in shards),
        taken=first.dataset,
        why=_why(first, wanted),
        shape=list(first.shape[1:]),
        dtype=str(np.dtype(first.stored_dtype)),
        form=first.form,
        columns=str(first.columns),
        riding=[rider.name for rider in first.riders],
        left_out={cut(each.name): cut(each.reason) for each in first.left_out},
        datasets=_datasets(Path(first.path)),
        faster=list(faster(shards)),
    )


def _why(shard: Shard, wanted: Wanted) -> str:
    if wanted.dataset is not None:
        return "it is named"
    return "it is called X" if shard.dataset == "X" else "it is the only one that can hold rows"


# -- what is in a file ---------------------------------------------------------------------------------------------


def _datasets(path: Path) -> list[dict[str, Any]]:
    """What the child says is in a file; nothing where it cannot say."""
    where = f"file={shown(path)}"

    def look(descriptor: int, identity: Identity, base: int) -> Any:
        return ask("listed", descriptor, [], where)[0]

    try:
        claims = look_at(path, look)
        with believed(where, " about what is in it"):
            return [_checked(claim) for claim in claims]
    except DataError:  # what is wrong with it has been said
        return []


def _checked(claim: dict[str, Any]) -> dict[str, Any]:
    found = {"name": _text(claim["name"]), "what": _text(claim["what"]), "shape": _whole(claim.get("shape"))}
    if found["what"]:
        return found
    n_bytes = claim["n_bytes"]
    _whole([n_bytes])
    return {
        **found,
        "dtype": _text(claim["dtype"]),
        "layout": _text(claim["layout"]),
        "chunks": _whole(claim["chunks"]),
        "filters": [_text(each) for each in claim["filters"]],
        "n_bytes": n_bytes,
    }


def _text(claim: Any) -> str:
    if not isinstance(claim, str):
        raise ValueError("text")
    return shown(claim)


def _whole(claim: Any) -> list[int] | None:
    if claim is not None and not all(type(n) is int and 0 <= n < 2**64 for n in claim):
        raise ValueError("numbers")
    return claim


# -- what would be faster --------------------------------------------------------------------------------------------


def faster(shards: Sequence[Shard]) -> Iterator[str]:
    """What would be read faster if files of one make were stored otherwise, one sentence each."""
    first = shards[0]
    layout = first.layouts[0]
    if first.form == "columns":
        yield f"rows are stored by columns: each is gathered from {first.n_inputs} places. Write rows first."
    if first.stored_dtype.startswith(">"):
        yield "the bytes come in the other order, and every value is turned. Write them in this machine's order."
    if layout.kind == "asked":
        yield "only the HDF5 library can read it, in a process of its own. Write plain numbers."
    slow = [FILTERS[code].name for code, _ in layout.filters if FILTERS[code].is_slow]
    if slow:
        yield (
            f"{slow[0]} takes the processor longer to undo than all else that is done to rows before they are trained "
            "on, in every epoch where they are streamed. Write them uncompressed, or with lz4 or lzf."
        )
    if first.form == "dense" and layout.chunks:
        yield from _of_chunks(first, layout)
    if len(shards) > _MANY_FILES and sum(shard.identity.size for shard in shards) < len(shards) * _SMALL_FILE:
        yield f"{len(shards)} files of less than a megabyte: each is opened by itself. Write fewer, larger ones."


def _of_chunks(shard: Shard, layout: Layout) -> Iterator[str]:
    n_rows = max(1, 2**20 // shard.row_bytes)
    good = f"chunks of about a megabyte, like {(n_rows, *shard.shape[1:])}"
    n_across = prod(-(-n // size) for n, size in zip(shard.shape[1:], layout.chunks[1:], strict=True))
    if n_across > 1:
        yield f"a row lies in {n_across} chunks of shape {layout.chunks}, all of which are read for it. Write {good}."
    elif layout.chunk_bytes < _SMALL_PIECE and layout.n_bytes > _SMALL_FILE:
        yield f"chunks of {layout.chunk_bytes} bytes, each of which is read by itself. Write {good}."
    if layout.chunk_bytes > _LARGE_CHUNK:
        n_bytes = layout.chunk_bytes / 1e6
        yield f"chunks of {n_bytes:.0f} MB, which shuffled training reads and undoes over and over. Write {good}."
