"""Descriptions of files by the child: the rows, their extras and their columns, all of them plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardpress.columns import Columns
from shardpress.formats import missing_value
from shardpress.hdf5.layout import Layout


@dataclass(frozen=True)
class Extra:
    """A dataset with one value for each row, which is copied to the output."""

    name: str  # in the output
    dtype: np.dtype  # of the values as they are read
    # Location of the values in the file, and their path there. None if the shard lacks the extra. It differs between
    # copies of a file.
    layout: Layout | None = field(default=None, compare=False, repr=False)
    fill: Any = None  # for rows without a value, and for values that cannot be read. None: the default of the dtype
    is_named: bool = False  # True if a user has given its path, which can be anywhere in the file
    categories: tuple[Any, ...] | None = field(default=None, repr=False)  # meaning of each code
    # Code in the output for each code in the file. None if the values are not codes.
    codes: tuple[int, ...] | None = field(default=None, repr=False)
    mask: str | None = None  # name of the extra that marks the rows with a value, if some shards lack this one
    record_field: str | None = field(default=None, compare=False)  # field of the records at `layout` with the values
    # Average bytes of a variable-length string, over the 1024 successive rows with the longest strings.
    text_bytes: int = field(default=0, compare=False, repr=False)

    @property
    def value_bytes(self) -> int:
        return self.dtype.itemsize + self.text_bytes

    @property
    def resolved_fill(self) -> Any:
        if self.fill is None:
            return missing_value(self.dtype.base)  # the base dtype, if each row has an array
        return self.fill

    @property
    def fill_in_words(self) -> str:
        value = self.resolved_fill
        if isinstance(value, bytes) and not value.strip(b"\0"):
            return "an empty text"
        return str(value)


def extra_at(layout: Layout, name: str, categories: list[Any] | None, is_named: bool) -> Extra:
    """Return an extra with the values at a layout. `categories` give the meaning of codes."""
    if categories is None or layout.dtype.kind not in "iu":
        return Extra(name, layout.dtype, layout, is_named=is_named)
    codes = tuple(range(len(categories)))
    return Extra(name, code_dtype(codes), layout, fill=-1, is_named=is_named, categories=tuple(categories), codes=codes)


def code_dtype(categories: tuple[Any, ...]) -> np.dtype:
    """Return the smallest signed dtype for the codes of these categories and for -1."""
    return np.min_scalar_type(-max(1, len(categories)))


@dataclass(frozen=True)
class LeftOut:
    """A dataset next to the rows that is not copied to the output."""

    name: str
    reason: str
    is_missed: bool  # True if a user might expect it in the output


@dataclass(frozen=True)
class Description:
    """The rows of a file, and what belongs to them."""

    dataset: str  # path of the rows
    form: str  # as in `shardpress.hdf5.forms`
    shape: tuple[int, ...]  # rows first
    layouts: list[Layout]  # of the datasets that store the rows
    extras: list[Extra]
    left_out: list[LeftOut]
    columns: Columns
    fill_value: float | None  # marks missing values
