"""Check whether a file is a shard, and describe it, before any of its rows are read.

A shard is one HDF5 file. Its rows are along the first axis of a numeric dataset, whose further axes are flattened, or
in another form that `shardpress.hdf5.forms` lists.

No input file is trusted, and this process never runs libhdf5 on one. It opens the file and reads the first bytes by
itself. If the file is not plain (`shardpress.hdf5.plain`), it asks a child for the location of the rows. The answer
is checked here, since a forged file may have produced any answer. Then the rows can be read without libhdf5.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shardpress.columns import Columns
from shardpress.errors import DataError, NoInput, ReadFailed, printable
from shardpress.hdf5.child.ask import ask, checking_answer
from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.files import Identity, opened, translated_error, with_retries
from shardpress.hdf5.forms import (
    INDEX_FIELD,
    are_few,
    has_one_for_each_row,
    index_dtype,
    is_requested,
    numbers_of,
    row_names_of,
    rows_of,
    sibling,
)
from shardpress.hdf5.layout import Layout, check_places, layout_of
from shardpress.hdf5.limits import MAX_EXTRAS, MOST_COLUMN_NAMES, MOST_LEFT_OUT, MOST_TEXT_BYTES, MOST_WORDS
from shardpress.hdf5.plain.describe import describe_plain
from shardpress.hdf5.superblock import check_superblock
from shardpress.hdf5.values import text_lengths
from shardpress.shards.shard import Extra, LeftOut, Shard, leave_out_extras, read_dtype

log = logging.getLogger(__name__)

_LONGEST = 400  # characters of a name or reason
_GROUP_ROWS = 1024  # rows whose text lengths are added up; parts hold a multiple of this number of rows
_PAGE = 2**12  # bytes that are read of one column at once
_MOST_READ = 2**23  # bytes that are read of all columns at once

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """Datasets to read from a file."""

    dataset: str | None = None  # path of the rows. None: "X", or the only dataset that can hold rows
    orientation: str | None = None  # axis of the rows: "rows" (the first one) or "columns" (the last one)
    include: tuple[str, ...] = ()  # paths, from the root, of extras anywhere in the file, or of groups with extras


def vet(path: Path, selection: Selection = Selection()) -> Shard:
    """Check the structure of a file, and return the file as a shard. No rows are read.

    Raise `DataError` with the reason if the file is not a shard, and `NoInput`, `NotPermitted`, `ReadFailed` or
    `SystemLimit` if it cannot be read.
    """
    where = f"file={printable(path)}"

    def read(descriptor: int, identity: Identity, base: int) -> Shard:
        facts, arrays = _describe(descriptor, identity, base, selection, where)
        with checking_answer(where, " about it"):
            shard = _shard_of(facts, arrays, str(path), identity)
            _check_extras(shard, selection)
        shard = leave_out_extras(shard, _misplaced_extras(shard, where, base))
        return _with_index_of_table(_measure_all_texts(shard, descriptor))

    return read_structure(path, read)


def read_structure(path: Path, read: Callable[[int, Identity, int], T]) -> T:
    """Return the result of `read` for an opened file, and repeat the call if the storage fails.

    `read` is called with the descriptor, the file's identity and the offset at which HDF5 begins. The errors are those
    of `vet`.
    """
    where = f"file={printable(path)}"

    def read_once() -> T:
        try:
            with opened(str(path)) as (descriptor, identity):
                base = check_superblock(descriptor, identity.size, where)
                return read(descriptor, identity, base)
        except OSError as error:
            failure = translated_error(error, where)
            if isinstance(failure, ReadFailed):
                raise  # `with_retries` repeats the read
            raise failure from error

    return with_retries(read_once, where)


def _describe(
    descriptor: int, identity: Identity, base: int, selection: Selection, where: str
) -> tuple[Any, list[np.ndarray]]:
    """Return the description of a file, from the plain reader if the file is plain, and otherwise from the child."""
    try:
        if not selection.include:  # the plain reader reads one group only, and named extras may be in others
            plain = describe_plain(descriptor, identity.size, selection.dataset, selection.orientation, base)
            if plain is not None:
                return plain
        return _ask_child(descriptor, [selection.dataset, selection.orientation, list(selection.include)], where)
    except DataError:
        # The child opens the file through its descriptor in /proc, which fails once the file is deleted.
        if not os.fstat(descriptor).st_nlink:
            raise NoInput(
                f"{where}: the file was deleted while it was read. Restore it, then run the same command again."
            ) from None
        raise


def _ask_child(descriptor: int, arguments: list[Any], where: str) -> tuple[Any, list[np.ndarray]]:
    """Return the child's description of a file, or of the rows alone if the child fails because of the extras."""
    try:
        return ask("describe", descriptor, arguments, where)
    except DataError as error:
        include = arguments[-1]
        if isinstance(error.__cause__, Refused) or include:
            raise
        try:
            facts, arrays = ask("describe", descriptor, [*arguments, False], where)
        except DataError:
            raise error from None
        log.warning("%s The rows are read without the datasets next to them.", error)
        return facts, arrays


def _misplaced_extras(shard: Shard, where: str, base: int) -> dict[str, str]:
    """Map the names of extras that are outside the file, or too large when decompressed, to the reasons.

    Raise `DataError` if this concerns the rows, or if values overlap: it is then unknown which of them are damaged.
    """
    size = shard.identity.size
    layouts = {extra.name: extra.layout for extra in shard.extras if extra.layout}
    if _places_objection([*shard.layouts, *layouts.values()], size, where, base) is None:
        return {}
    check_places(shard.layouts, size, where, base)
    reasons: dict[str, str] = {}
    for name, layout in layouts.items():
        objection = _places_objection([layout], size, where, base)
        if objection is not None:
            reasons[name] = objection
    others = [layout for name, layout in layouts.items() if name not in reasons]
    check_places([*shard.layouts, *others], size, where, base)
    return reasons


def _places_objection(layouts: Sequence[Layout], size: int, where: str, base: int) -> str | None:
    try:
        check_places(layouts, size, where, base)
    except DataError as error:
        return str(error)
    return None


def _measure_all_texts(shard: Shard, descriptor: int) -> Shard:
    """Return the shard with the lengths of its texts, without extras whose texts are too long."""
    extras: list[Extra] = []
    reasons: dict[str, str] = {}
    for extra in shard.extras:
        measured = _measure_texts(extra, shard, descriptor)
        if measured.layout is not None and measured.layout.longest > MOST_TEXT_BYTES:
            reasons[extra.name] = f"a string of {measured.layout.longest} bytes, expected at most {MOST_TEXT_BYTES}"
        extras.append(measured)
    return leave_out_extras(replace(shard, extras=tuple(extras)), reasons)


def _measure_texts(extra: Extra, shard: Shard, descriptor: int) -> Extra:
    if extra.layout is None or not extra.layout.dtype.hasobject or not shard.n_rows:
        return extra
    pieces = text_lengths(descriptor, shard.identity.size, extra.layout, shard.n_rows)
    if pieces is None:
        return extra
    group_rows = min(_GROUP_ROWS, shard.n_rows)
    try:
        longest, greatest_sum = _greatest_length_and_sum(pieces, group_rows)
    except DataError:  # a damaged chunk, whose values are lost when they are read
        return extra
    return replace(extra, layout=replace(extra.layout, longest=longest), text_bytes=-(-greatest_sum // group_rows))


def _greatest_length_and_sum(pieces: Iterator[np.ndarray], group_rows: int) -> tuple[int, int]:
    """Return the greatest of some lengths, and the greatest sum over a group of rows."""
    longest = 0
    greatest_sum = 0
    rest = np.empty(0, dtype=np.int64)
    for piece in pieces:
        lengths = np.concatenate([rest, piece])
        longest = max(longest, int(lengths.max(initial=0)))
        n_whole = len(lengths) // group_rows * group_rows
        sums = lengths[:n_whole].reshape(-1, group_rows).sum(axis=1)
        greatest_sum = max(greatest_sum, int(sums.max(initial=0)))
        rest = lengths[n_whole:]
    return longest, max(greatest_sum, int(rest.sum()))


def _with_index_of_table(shard: Shard) -> Shard:
    """Return a shard with a leading field `index` of its records as an extra, which is a pandas frame's index.

    The extra counts as named, so that it is not part of the identity of the rows.
    """
    if shard.form != "table":
        return shard
    (layout,) = shard.layouts
    dtype = index_dtype(layout.dtype)
    name = sibling(shard.dataset, INDEX_FIELD)
    if dtype is None or any(extra.name == name for extra in shard.extras):
        return shard
    extra = Extra(name, dtype, layout, is_named=True, record_field=INDEX_FIELD)
    return replace(shard, extras=(*shard.extras, extra))


# -- from a description to a shard, with checks ----------------------------------------------------------------------


def _shard_of(facts: Any, arrays: list[np.ndarray], path: str, identity: Identity) -> Shard:
    remaining = iter(arrays)  # in the order of the layouts
    # Use lists, because a generator would turn the StopIteration of missing arrays into RuntimeError.
    layouts = [layout_of(claim, remaining) for claim in facts["rows"]]
    extras = [_extra_of(claim, layout_of(claim["layout"], remaining)) for claim in facts["extras"]]
    form = facts["form"]
    shapes = [layout.shape for layout in layouts]
    dtypes = [layout.dtype for layout in layouts]
    shape, stored = rows_of(form, shapes, dtypes, facts["shape"])
    if not isinstance(facts["dataset"], str):
        raise ValueError("invalid name of the dataset")
    columns = _columns(facts["columns"], layouts[0].dtype, prod(shape[1:]), remaining)
    return Shard(
        path=path,
        dataset=facts["dataset"],
        shape=shape,
        stored_dtype=stored.str,
        dtype=read_dtype(stored),
        form=form,
        chunk_rows=_chunk_rows(form, layouts[0], shape),
        extras=tuple(extras),
        identity=identity,
        columns=columns,
        fill_value=_finite_number(facts["fill_value"]),
        layouts=tuple(layouts),
        left_out=_left_out(facts["left_out"]),
    )


def _check_extras(shard: Shard, selection: Selection) -> None:
    extras = shard.extras
    n_rows = shard.n_rows
    # A user may also give the paths of extras or groups, each with as many extras. The layouts are untrusted.
    if len(extras) > (2 + len(selection.include)) * MAX_EXTRAS or not all(
        extra.layout and _fits(extra.layout, n_rows) for extra in extras
    ):
        raise ValueError("invalid number or shape of extras")
    if len({(extra.name, extra.is_named) for extra in extras}) < len(extras):
        raise ValueError("repeated names of extras")
    expected = (*selection.include, row_names_of(shard.dataset))
    if not all(is_requested(extra.name, expected) for extra in extras if extra.is_named):
        raise ValueError("unexpected named extras")


def _columns(claim: Any, dtype: np.dtype, n_inputs: int, remaining: Iterator[np.ndarray]) -> Columns:
    columns = _column_names(claim, dtype, n_inputs)
    values_from = claim["values_from"]
    if values_from is None:
        return columns
    data = next(remaining)
    if not isinstance(values_from, str) or data.dtype != np.uint8 or data.shape != (8 * n_inputs,):
        raise ValueError("invalid numbers of columns")
    return replace(columns, values=np.frombuffer(data.tobytes(), np.float64), values_from=values_from[:_LONGEST])


def _column_names(claim: Any, dtype: np.dtype, n_inputs: int) -> Columns:
    """Return the names of the columns. If the file has none, return the names of the fields of a table."""
    names = claim["names"]
    names_from = claim["names_from"]
    if names is None:
        names, names_from = _names_of_fields(dtype)
    texts = [names_from, claim["note"], *names]
    if not isinstance(names, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError("invalid names of columns")
    if len(names) not in (0, n_inputs) or len(names) > MOST_COLUMN_NAMES:
        raise ValueError("invalid number of column names")
    return Columns(tuple(names), names_from[:_LONGEST], note=claim["note"][:_LONGEST])


def _names_of_fields(dtype: np.dtype) -> tuple[list[str], str]:
    """Return the names of a table's number fields, if there are any, and their origin."""
    numbers = numbers_of(dtype)
    if numbers is None or not numbers.names:
        return [], ""
    return list(numbers.names), "the fields of the table"


def _extra_of(claim: Any, layout: Layout) -> Extra:
    name = claim["name"]
    is_named = claim["is_named"]
    if not isinstance(name, str) or is_named not in (True, False) or ("/" in name and not is_named):
        raise ValueError("invalid name of an extra")
    name.encode()  # raises an error if the name cannot be written
    extra = Extra(name, layout.dtype, layout, is_named=bool(is_named))
    return _with_categories(extra, claim["categories"])


def _with_categories(extra: Extra, categories: Any) -> Extra:
    if categories is None or extra.dtype.kind not in "iu":
        return extra
    if not isinstance(categories, list) or not _are_categories(categories) or not are_few(categories):
        raise ValueError("invalid categories")
    codes = tuple(range(len(categories)))
    return replace(extra, dtype=code_dtype(codes), fill=-1, categories=tuple(categories), codes=codes)


def code_dtype(categories: Sequence[Any]) -> np.dtype:
    """Return the smallest signed dtype for the codes of these categories and for -1."""
    return np.min_scalar_type(-max(1, len(categories)))


def _are_categories(claims: list[Any]) -> bool:
    """Return whether these are texts whose total length is allowed, or numbers that NumPy can hold."""
    if all(isinstance(each, str) for each in claims):
        return sum(len(each.encode("utf-8", "surrogateescape")) for each in claims) <= MOST_WORDS
    return all(type(each) in (float, bool) or (type(each) is int and abs(each) < 2**63) for each in claims)


def _fits(layout: Layout, n_rows: int) -> bool:
    """Return whether a layout holds a value for each row. If values are arrays, the rows must be the first axis."""
    return has_one_for_each_row(layout.shape, n_rows) and (layout.dtype.subdtype is None or layout.shape[0] == n_rows)


def _finite_number(claim: Any) -> float | None:
    if claim is not None and (type(claim) not in (int, float) or not isfinite(claim)):
        raise ValueError("invalid fill value")
    return claim


def _chunk_rows(form: str, first: Layout, shape: tuple[int, ...]) -> int:
    """Return the number of rows that are cheapest to read together, given the layout of the first dataset."""
    if first.chunks and form == "sparse":  # about the rows of one chunk of values
        return max(1, first.chunks[0] * shape[0] // max(1, first.shape[0]))
    if first.chunks:
        axis = -1 if form == "columns" else 0
        return first.chunks[axis]
    if form == "columns":  # a piece of each column is read, and reading a page takes as long as reading a number
        piece_bytes = min(_PAGE, _MOST_READ // prod(shape[1:]))
        return max(1, piece_bytes // first.dtype.itemsize)
    return 1


def _left_out(claims: Any) -> tuple[LeftOut, ...]:
    left_out = []
    for name, reason, is_missed in claims:
        left_out.append(LeftOut(name[:_LONGEST], reason[:_LONGEST], bool(is_missed)))
    if len(left_out) > MOST_LEFT_OUT or not all(isinstance(each.name + each.reason, str) for each in left_out):
        raise ValueError("invalid list of datasets left out")
    return tuple(left_out)
