"""Check whether a file is a shard, and describe it, before any of its rows are read.

A shard is one HDF5 file. Its rows are along the first axis of a numeric dataset, whose further axes are flattened, or
in another form that `shardpress.hdf5.forms` lists.

No input file is trusted, and this process never runs libhdf5 on one. It opens the file, reads the first bytes by
itself, and asks a child for the location of the rows. Then the rows can be read without libhdf5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from shardpress.base.errors import DataError, ReadFailed, printable
from shardpress.base.processcache import ProcessCache
from shardpress.hdf5.child.ask import Refusal, ask, asked, understood
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.files import Identity, opened, translated_error, with_retries
from shardpress.hdf5.shard import (
    Description,
    Extra,
    FileContents,
    LeftOut,
    MasterContents,
    MasterFile,
    RowsElsewhere,
    Shard,
)
from shardpress.hdf5.signature import check_signature

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_ANSWER = 2**16  # bytes of an answer that is kept


@dataclass(frozen=True)
class Selection:
    """Datasets to read from a file."""

    dataset: str | None = None  # path of the rows. None: "X", or the only dataset that can hold rows
    orientation: str | None = None  # axis of the rows: "rows" (the first one) or "columns" (the last one)
    include: tuple[str, ...] = ()  # paths, from the root, of extras anywhere in the file, or of groups with extras


class _Described(NamedTuple):
    """What a file contains."""

    contents: FileContents
    answer: bytes | None  # of the child, with the contents; None if it is long, or has failed because of the extras


# Files with which later ones are compared, by their sizes and what was asked of the child.
_LIKE = ProcessCache[tuple[int, Selection, tuple[int, ...] | None], _Described](max_size=16)


@dataclass(frozen=True, eq=False)
class InputFile:
    """A file that can be a shard, or some of its rows, before it is compared with other files."""

    path: str
    identity: Identity
    description: Description
    first_row: int
    n_rows: int
    order: np.ndarray | None = None  # as in `Shard`: the columns that are read, which can be some of those of the file
    master: MasterFile | None = None  # that names the rows
    answer: bytes | None = None  # of the child, with the description; None if it cannot be used for a later run

    def __str__(self) -> str:
        return f"file={printable(self.path)} dataset={printable(self.description.dataset)}"

    @property
    def shape(self) -> tuple[int, ...]:
        if self.order is not None and len(self.order) != self.n_stored:
            return self.n_rows, len(self.order)
        return (self.n_rows, *self.description.shape[1:])

    @property
    def n_stored(self) -> int:
        """Number of columns of the dataset with the rows."""
        return prod(self.description.shape[1:])

    @property
    def columns(self) -> Columns:
        """Columns that are read, in their order."""
        columns = self.description.columns
        return columns if self.order is None else columns.reordered(self.order)

    def choosing(self, order: np.ndarray) -> InputFile:
        """Return the file with some of its columns, in an order: (n_inputs,), int32."""
        if self.description.is_mixed:
            return replace(self, description=self.description.choosing(order.tolist()))
        return replace(self, order=order if self.order is None else self.order[order])

    @property
    def n_inputs(self) -> int:
        return prod(self.shape[1:])

    def with_rows(self, first: int, n_rows: int) -> InputFile:
        """Return the file with some of its rows."""
        return replace(self, first_row=first, n_rows=n_rows)

    def shard(self, columns: Columns, extras: tuple[Extra, ...], left_out: Sequence[LeftOut]) -> Shard:
        """Return the shard with what the comparison of all files has found."""
        rows = self.description
        reads_all = self.order is None or len(self.order) == self.n_stored
        return Shard(
            path=self.path,
            dataset=rows.dataset,
            shape=self.shape,
            stored_dtype=rows.stored_dtype,
            chunk_rows=rows.chunk_rows,
            extras=extras,
            identity=self.identity,
            columns=columns,
            fill_value=rows.fill_value,
            form=rows.form,
            is_transposed=rows.is_transposed,
            fields=rows.fields,
            order=self.order,
            n_stored=None if reads_all else self.n_stored,
            left_out=tuple(left_out),
            first_row=self.first_row,
            master=self.master,
        )


@dataclass(frozen=True, eq=False)
class Master:
    """A file that names rows of other files."""

    path: Path
    identity: Identity
    rows: tuple[RowsElsewhere, ...]


def vet(path: Path, selection: Selection = Selection(), row_shape: tuple[int, ...] | None = None) -> InputFile | Master:
    """Check the structure of a file. No rows are read.

    A dataset of the shape `row_shape`, if it is given, is one row.

    Raise `DataError` with the reason if the file cannot be a shard, and `NoInput`, `NotPermitted`, `ReadFailed` or
    `SystemLimit` if it cannot be read.
    """
    where = f"file={printable(path)}"

    def read(descriptor: int, identity: Identity) -> InputFile | Master:
        contents, answer = _described(descriptor, identity.size, selection, row_shape, where)
        rows = contents.rows
        if isinstance(rows, list):
            return Master(path, identity, tuple(rows))
        return InputFile(str(path), identity, rows, 0, rows.shape[0], answer=answer)

    return read_structure(path, read)


def contents_of_master(master: Master, selection: Selection, shape: tuple[int, ...]) -> MasterContents:
    """Return what a master file has for its rows, which have a shape together. The errors are those of `vet`."""
    where = f"file={printable(master.path)}"
    arguments = [selection.dataset, selection.orientation, list(selection.include), shape]

    def read(descriptor: int, identity: Identity) -> MasterContents:
        if identity != master.identity:
            raise DataError(f"{where}: changed during the run. Run the same command again when no process writes it.")
        return ask("describe_master", descriptor, arguments, MasterContents, where)

    return read_structure(master.path, read)


def read_structure(path: Path, read: Callable[[int, Identity], T]) -> T:
    """Return the result of `read` for an opened file, and repeat the call if the storage fails.

    `read` is called with the descriptor and the file's identity. The errors are those of `vet`.
    """
    where = f"file={printable(path)}"

    def read_once() -> T:
        try:
            with opened(str(path)) as (descriptor, identity):
                check_signature(descriptor, identity.size, str(path))
                return read(descriptor, identity)
        except OSError as error:
            failure = translated_error(error, where)
            if isinstance(failure, ReadFailed):
                raise  # `with_retries` repeats the read
            raise failure from error

    return with_retries(read_once, where)


def _described(
    descriptor: int, n_bytes: int, selection: Selection, row_shape: tuple[int, ...] | None, where: str
) -> _Described:
    """Return what is in a file of `n_bytes`, or its rows alone if the child fails because of the extras.

    A file like an earlier one has the same description, and the child is not asked.
    """
    key = (n_bytes, selection, row_shape)
    like = _LIKE.get(key)
    if like is not None and like.contents.seen is not None and like.contents.seen.is_in(descriptor):
        return like
    arguments = [selection.dataset, selection.orientation, selection.include, row_shape]
    try:
        answer = asked("describe", descriptor, [*arguments, True], where)
        is_short = len(answer) <= _MOST_ANSWER
        described = _Described(understood(answer, FileContents, where), bytes(answer) if is_short else None)
        if described.contents.seen is not None:
            _LIKE.put(key, described)
        return described
    except DataError as error:
        if isinstance(error, Refusal) or selection.include:
            raise
        try:
            contents = ask("describe", descriptor, [*arguments, False], FileContents, where)
        except DataError:
            raise error from None
        log.warning("%s The rows are read without the datasets next to them.", error)
        return _Described(contents, None)
