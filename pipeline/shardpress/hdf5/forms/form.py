"""Base class of the forms in which files store rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import ClassVar, NamedTuple, Self

import numpy as np
from h5py.h5g import GroupID

from shardpress.hdf5.child.find import Dataset, Item, Rejection, names_in
from shardpress.hdf5.fields import Field, joined, read_fields
from shardpress.hdf5.layout import Layout
from shardpress.hdf5.limits import MOST_COLUMN_NAMES, MOST_COLUMNS
from shardpress.hdf5.names import Category, group_of, under
from shardpress.hdf5.shard import Block, Extra, LeftOut

WRITE_ROWS = "Write them as one array of two dimensions"
_NUMBER_SIZES = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}


def is_number(dtype: np.dtype) -> bool:
    """Return whether rows may have this dtype: integer, bool, or floating point with 16, 32 or 64 bits."""
    return dtype.itemsize in _NUMBER_SIZES.get(dtype.kind, ())


@dataclass(frozen=True)
class Member:
    """Values that a table has side by side in each row: numbers of one dtype, or strings."""

    names: tuple[str, ...]  # of the values
    dtype: np.dtype  # of a value
    offset: int = 0  # of the first value in the bytes of a row of the dataset
    part: int = 0  # number of the dataset in `RowDatasets.parts`
    is_column: bool = True  # False for values that can only be extras, such as strings and times
    categories: tuple[Category, ...] | None = None  # meaning of each code

    def one(self, i: int) -> "Member":
        """Return one of the values."""
        return replace(self, names=self.names[i : i + 1], offset=self.offset + i * self.dtype.itemsize)


@dataclass(frozen=True)
class RowDatasets:
    """The datasets that hold the rows."""

    name: str  # path of the dataset, or of the group with a sparse matrix or with the columns
    parent: GroupID  # h5py.h5g.GroupID of the group that contains it
    form: "Form"
    parts: list[tuple[str, Dataset]]  # paths and datasets
    shape: tuple[int, ...]  # rows first
    dtype: np.dtype  # of the numbers, as stored
    is_transposed: bool = False  # True if the rows are along the last axis, or are the columns of a sparse matrix
    members: tuple[Member, ...] = ()  # of the rows of a table, in order
    is_mixed: bool = False  # True for a table whose columns can be chosen by name, because it holds more than a matrix
    left_out: tuple[LeftOut, ...] = ()  # members that can be neither columns nor extras
    extras: tuple[Extra, ...] = ()  # that the form itself has, such as the names of samples
    own_names: frozenset[bytes] = frozenset()  # names in the group of samples and columns that belong to the rows
    # Paths of more parts, and functions that open them: so many that they cannot be open at the same time.
    others: Sequence[tuple[str, Callable[[], Dataset]]] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of a table."""
        return tuple(name for member in self.members if member.is_column for name in member.names)

    def all_parts(self) -> Iterator[tuple[str, Dataset]]:
        yield from self.parts
        for path, open_part in self.others:
            yield path, open_part()

    @property
    def group(self) -> str:
        """Path of the group of the rows, in which extras are."""
        return group_of(self.name, self.form.name)

    def beside(self, name: str) -> str:
        """Return the path of an object in this group."""
        return under(self.group, name) if self.group else name

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


def table(
    name: str, parent: GroupID, form: "Form", parts: list[tuple[str, Dataset]], n_rows: int, members: Sequence[Member]
) -> RowDatasets:
    """Return the rows of a table with these members. Refuse one without columns."""
    columns = [member for member in members if member.is_column]
    n_columns = sum(len(member.names) for member in columns)
    if not 1 <= n_columns <= MOST_COLUMN_NAMES:
        raise Rejection(f"a table with {n_columns} numeric columns, expected 1 to {MOST_COLUMN_NAMES}", name)
    dtypes = {member.dtype for member in columns}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.result_type(*dtypes)  # the latter is in native byte order
    return RowDatasets(name, parent, form, parts, (n_rows, n_columns), dtype, members=tuple(members))


def field_of(member: Member, layouts: Sequence[Layout]) -> Field:
    """Return the place of the values of a member, given the layouts of the datasets."""
    layout = layouts[member.part]
    if member.dtype.hasobject:  # strings of variable length, which only the child can read
        return Field(Layout(under(layout.name, member.names[0]), layout.shape, member.dtype, "asked"), member.dtype)
    return Field(layout, member.dtype, len(member.names), member.offset)


class Form:
    """A form of rows. The child recognizes and describes rows with it, and the driver reads them.

    By default, no object is recognized.
    """

    name: ClassVar[str]
    words: ClassVar[str] = ""  # for the log, if a user should know
    words_if_transposed: ClassVar[str] = ""

    def candidate(self, item: Item) -> Candidate | None:
        """Return what an object could hold in this form, at a glance."""
        return None

    def describe(self, name: str, parent: GroupID, item: Item, orientation: str | None) -> RowDatasets | None:
        """Return the rows in an object of a group, or None if it has another form. Refuse rows that cannot be read."""
        return None

    def fields(self, rows: RowDatasets, layouts: Sequence[Layout]) -> list[Field]:
        """Return the fields of the rows, given the layouts of the datasets."""
        return joined(field_of(member, layouts) for member in rows.members if member.is_column)

    def read(self, block: Block, out: np.ndarray) -> None:
        """Read rows into `out`: (len(block), n_inputs), C order, in the dtype of the shard."""
        shard = block.shard
        read_fields(shard.path, shard.identity, shard.fields, block.start, out)

    def chunk_rows(self, fields: Sequence[Field], shape: tuple[int, ...]) -> int:
        """Return the number of rows that are cheapest to read together."""
        return max(field.chunk_rows for field in fields)
