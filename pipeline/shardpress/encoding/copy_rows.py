"""Copies of rows in new parts, so that a result keeps no parts that are mostly dead, and not too many small ones.

The input is not read, because the values are those that an earlier run has encoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from msgspec import structs

from shardpress.encoding.partfile import part_file
from shardpress.encoding.parts import PartSize
from shardpress.output.disk import Disk
from shardpress.output.folder import PARTS, unique_name, write_file
from shardpress.result.features import reading
from shardpress.result.finished import ERROR, FEATURES, VALID, given_name
from shardpress.result.records import Part, Range


def groups_of(pairs: Iterable[tuple[Part, Range]], size: PartSize, most_bytes: int) -> list[list[tuple[Part, Range]]]:
    """Divide ranges into groups, in their order. A group has at most as many rows, ranges and bytes as a part."""
    groups: list[list[tuple[Part, Range]]] = []
    n_rows = 0
    n_bytes = 0
    for part, rows in pairs:
        of_file = part.entry.n_bytes * rows.n_rows // max(1, part.n_rows)  # about the bytes of the range
        is_full = not groups or len(groups[-1]) == size.n_shards or n_rows + rows.n_rows > size.n_rows
        if is_full or n_bytes + of_file > most_bytes:
            groups.append([])
            n_rows = 0
            n_bytes = 0
        groups[-1].append((part, rows))
        n_rows += rows.n_rows
        n_bytes += of_file
    return groups


class CopyTask(NamedTuple):
    """Task to copy ranges of rows, whose parts have the same datasets, to a new part."""

    pairs: Sequence[tuple[Part, Range]]
    stem: str  # beginning of the name of the part
    directory: Path  # of the output
    disk: Disk
    categories: Mapping[str, np.ndarray | str]  # see `stored_categories`
    compression: str


def copy_rows(task: CopyTask) -> Part:
    """Write the new part, which counts when the journal names it."""
    pairs = task.pairs
    n_rows = sum(rows.n_rows for _, rows in pairs)
    values: dict[str, np.ndarray] = {}
    ranges = []
    first = 0
    for part, rows in pairs:
        with reading(task.directory / part.file) as file:
            for name, dataset in _datasets(file):
                if name not in values:
                    values[name] = np.empty((n_rows, *dataset.shape[1:]), dataset.dtype)
                values[name][first : first + rows.n_rows] = dataset[rows.first : rows.first + rows.n_rows]
        ranges.append(structs.replace(rows, first=first))
        first += rows.n_rows
    features = values.pop(FEATURES)
    valid = values.pop(VALID)
    errors = values.pop(ERROR, None)
    extras = {given_name(name): array for name, array in values.items()}
    content = part_file(features, valid, extras, task.categories, task.compression, errors)
    entry = write_file(task.directory, task.disk, unique_name(f"{PARTS}/{task.stem}", ".h5"), content)
    losses = [part.max_error for part, _ in pairs if part.max_error is not None]
    return Part(entry, n_rows, ranges, pairs[0][0].dtype, max(losses, default=None))


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the datasets with rows, by the names in a part."""
    for name, item in file.items():
        if isinstance(item, h5py.Dataset):
            yield name, item
