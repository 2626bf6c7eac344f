"""Base class of the forms in which files store rows."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import ClassVar, NamedTuple, Self

import numpy as np
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Item, names_in
from shardpress.hdf5.fields import Field, read_fields
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import MOST_COLUMNS
from shardpress.hdf5.shard import Block

WRITE_ROWS = "Write them as one array of two dimensions"
_NUMBER_SIZES = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}


def is_number(dtype: np.dtype) -> bool:
    """Return whether rows may have this dtype: integer, bool, or floating point with 16, 32 or 64 bits."""
    return dtype.itemsize in _NUMBER_SIZES.get(dtype.kind, ())


@dataclass(frozen=True)
class RowDatasets:
    """The datasets that hold the rows."""

    name: str  # path of the dataset, or of the group with a sparse matrix
    parent: GroupID  # h5py.h5g.GroupID of the group that contains it
    form: "Form"
    parts: list[tuple[str, Dataset]]  # paths and datasets
    shape: tuple[int, ...]  # rows first
    dtype: np.dtype  # of the numbers, as stored
    is_transposed: bool = False  # True if the rows are along the last axis, or are the columns of a sparse matrix

    @cached_property
    def names_around(self) -> list[bytes]:
        """Names in the parent group."""
        return names_in(self.parent)


class Candidate(NamedTuple):
    """A dataset or group that could hold rows."""

    form: str  # ``none`` if it cannot be used
    shape: tuple[int, ...] = ()
    kind: object = ""  # of a value, in words
    n_rows: int = 0
    n_inputs: int = MOST_COLUMNS  # the default means that the number is unknown

    def __str__(self) -> str:
        return f"{self.shape} {self.kind}" if self.shape else self.form

    @property
    def is_single(self) -> bool:
        """True if the candidate is a single number or record."""
        return self.n_rows == 1 and (self.n_inputs == 1 or self.form == "records")

    def oriented(self, orientation: str | None) -> Self:
        """Return a copy with the numbers of rows and columns for an orientation."""
        if self.form != "dense":
            return self
        shape = self.shape[::-1] if orientation == "columns" else self.shape
        n_rows, *others = shape
        return self._replace(n_rows=n_rows, n_inputs=prod(others))


class Form(ABC):
    """A form of rows. The child recognizes and describes rows with it, and the driver reads them."""

    name: ClassVar[str]
    words: ClassVar[str] = ""  # for the log, if a user should know
    words_if_transposed: ClassVar[str] = ""

    @abstractmethod
    def candidate(self, item: Item) -> Candidate | None:
        """Return what an object could hold in this form, at a glance."""

    @abstractmethod
    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        """Return the rows in an object of a group, or None if it has another form. Refuse rows that cannot be read."""

    @abstractmethod
    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        """Return the fields of the rows, given the layouts of the datasets."""

    def read(self, block: Block, out: np.ndarray) -> None:
        """Read rows into `out`: (len(block), n_inputs), C order, in the dtype of the shard."""
        shard = block.shard
        read_fields(shard.path, shard.identity, shard.fields, block.start, out)

    def chunk_rows(self, fields: Sequence[Field], shape: tuple[int, ...]) -> int:
        """Return the number of rows that are cheapest to read together."""
        return max(field.chunk_rows for field in fields)
