"""From a file to a shard: whether it is one, and if not, why, before anything of its rows is read.

A shard is one HDF5 file with a numeric dataset, rows first, whose further axes are flattened per row; or with rows in
another of the forms that `pipeline.hdf5.forms` lists.

No input file is trusted, and this process never runs libhdf5 on one. It opens the file, looks at the first bytes by
itself, and if the file is not plain (`pipeline.hdf5.plain`), has a child say where the rows lie. What it says is
checked here, since a forged file may have made it say anything; then the rows can be read without HDF5.
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

from pipeline.columns import Columns
from pipeline.errors import DataError, NoInput, ReadFailed, shown
from pipeline.hdf5.child.ask import ask, believed
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.files import Identity, opened, persistently, stand_in
from pipeline.hdf5.forms import are_few, numbers_of, rides, rows_of
from pipeline.hdf5.layout import Layout, check_places, layout_of
from pipeline.hdf5.limits import MOST_COLUMN_NAMES, MOST_LEFT_OUT, MOST_RIDERS, MOST_TEXT_BYTES, MOST_WORDS
from pipeline.hdf5.plain.describe import describe_plain
from pipeline.hdf5.superblock import check_superblock
from pipeline.hdf5.values import text_lengths
from pipeline.shards.shard import LeftOut, Rider, Shard, read_dtype, without

__all__ = ["Wanted", "code_dtype", "look_at", "vet"]

log = logging.getLogger(__name__)

_LONGEST = 400  # characters of a name or reason
_GROUP_ROWS = 1024  # whose texts are added up: parts hold a multiple of so many rows
_PAGE = 2**12  # bytes that are read at once of one column
_MOST_READ = 2**23  # bytes that are read at once of all columns

T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """What to look for in a file."""

    dataset: str | None = None  # that holds the rows; with none `X`, else the only candidate
    orientation: str | None = None  # along which of its axes they lie: `rows`, the first, or `columns`, the last
    carry: tuple[str, ...] = ()  # paths, from the root, of what rides along wherever it lies


def vet(path: Path, wanted: Wanted = Wanted()) -> Shard:
    """Look at a file's structure, not at its rows.

    Raises
    ------
    DataError
        When it is no shard, in words that say why.
    NoInput, NotPermitted, ReadFailed, SystemLimit
        When it cannot be looked at.
    """
    where = f"file={shown(path)}"

    def look(descriptor: int, identity: Identity, base: int) -> Shard:
        facts, arrays = _described(descriptor, identity, base, wanted, where)
        with believed(where, " about it"):
            shard = _shard(facts, arrays, str(path), identity)
            _check_riders(shard, wanted)
        shard = without(shard, _misplaced(shard, where, base))
        return _with_measured_texts(shard, descriptor)

    return look_at(path, look)


def look_at(path: Path, look: Callable[[int, Identity, int], T]) -> T:
    """What `look` finds in a file, given its descriptor, its identity and where in it HDF5 begins; raises like `vet`.

    There are more tries when the storage fails.
    """
    where = f"file={shown(path)}"

    def once() -> T:
        try:
            with opened(str(path)) as (descriptor, identity):
                base = check_superblock(descriptor, identity.size, where)
                return look(descriptor, identity, base)
        except OSError as error:
            failure = stand_in(error, where)
            if isinstance(failure, ReadFailed):
                raise  # and try again
            raise failure from error

    return persistently(once, where)


def _described(
    descriptor: int, identity: Identity, base: int, wanted: Wanted, where: str
) -> tuple[Any, list[np.ndarray]]:
    """What lies where in the file: understood here if it is plain, else as the child says."""
    try:
        if not wanted.carry:  # these extras may lie anywhere, and the plain reader looks at one group only
            plain = describe_plain(descriptor, identity.size, wanted.dataset, wanted.orientation, base)
            if plain is not None:
                return plain
        return _asked(descriptor, [wanted.dataset, wanted.orientation, list(wanted.carry)], where)
    except DataError:
        # The child opens the file by its descriptor's name, under which nothing is found once it is deleted.
        if not os.fstat(descriptor).st_nlink:
            raise NoInput(f"{where}: deleted meanwhile, expected an HDF5 file") from None
        raise


def _asked(descriptor: int, arguments: list[Any], where: str) -> tuple[Any, list[np.ndarray]]:
    """Ask the child; without the extras if it does not survive them, since they never cost the file."""
    try:
        return ask("describe", descriptor, arguments, where)
    except DataError as error:
        carry = arguments[-1]
        if isinstance(error.__cause__, Refused) or carry:
            raise
        try:
            facts, arrays = ask("describe", descriptor, [*arguments, False], where)
        except DataError:
            raise error from None
        log.warning("%s The datasets next to the rows are left out, and the rows are read.", error)
        return facts, arrays


def _misplaced(shard: Shard, where: str, base: int) -> dict[str, str]:
    """Return why extras lie outside the file or unfold to too much, by name.

    Raises
    ------
    DataError
        If the rows do, or if values overlap: then it is unknown whose they are.
    """
    size = shard.identity.size
    layouts = {rider.name: rider.layout for rider in shard.riders if rider.layout}
    try:
        check_places([*shard.layouts, *layouts.values()], size, where, base)
    except DataError:
        pass
    else:
        return {}
    check_places(shard.layouts, size, where, base)
    found: dict[str, str] = {}
    for name, layout in layouts.items():
        try:
            check_places([layout], size, where, base)
        except DataError as error:
            found[name] = str(error)
    others = [layout for name, layout in layouts.items() if name not in found]
    check_places([*shard.layouts, *others], size, where, base)
    return found


def _with_measured_texts(shard: Shard, descriptor: int) -> Shard:
    """Return the shard with the lengths of its texts, without those extras that hold one that is too long."""
    riders: list[Rider] = []
    reasons: dict[str, str] = {}
    for rider in shard.riders:
        measured = _measured(rider, shard, descriptor)
        if measured.layout is not None and measured.layout.longest > MOST_TEXT_BYTES:
            reasons[rider.name] = f"a text of {measured.layout.longest} bytes, expected {MOST_TEXT_BYTES} at most"
        riders.append(measured)
    return without(replace(shard, riders=tuple(riders)), reasons)


def _measured(rider: Rider, shard: Shard, descriptor: int) -> Rider:
    """Return an extra with the lengths of its texts, if it has texts of any length."""
    if rider.layout is None or not rider.layout.dtype.hasobject or not shard.n_rows:
        return rider
    pieces = text_lengths(descriptor, shard.identity.size, rider.layout, shard.n_rows)
    if pieces is None:
        return rider
    group_rows = min(_GROUP_ROWS, shard.n_rows)
    try:
        longest, most = _longest_and_most(pieces, group_rows)
    except DataError:  # a damaged chunk, whose values are lost when they are read
        return rider
    return replace(rider, layout=replace(rider.layout, longest=longest), text_bytes=-(-most // group_rows))


def _longest_and_most(pieces: Iterator[np.ndarray], group_rows: int) -> tuple[int, int]:
    """Return the largest of some lengths, and the largest sum of one of the groups of rows."""
    longest = 0
    most = 0
    rest = np.empty(0, dtype=np.int64)
    for piece in pieces:
        lengths = np.concatenate([rest, piece])
        longest = max(longest, int(lengths.max(initial=0)))
        n_whole = len(lengths) // group_rows * group_rows
        sums = lengths[:n_whole].reshape(-1, group_rows).sum(axis=1)
        most = max(most, int(sums.max(initial=0)))
        rest = lengths[n_whole:]
    return longest, max(most, int(rest.sum()))


# -- from what is said to a shard, once it is of the right form ----------------------------------------------------


def _shard(facts: Any, arrays: list[np.ndarray], path: str, identity: Identity) -> Shard:
    left = iter(arrays)  # which are in the order of the layouts
    # Lists, out of which StopIteration comes as it is where arrays are missing.
    layouts = [layout_of(claim, left) for claim in facts["rows"]]
    riders = [_rider(claim, layout_of(claim["layout"], left)) for claim in facts["riders"]]
    form = facts["form"]
    shapes = [layout.shape for layout in layouts]
    dtypes = [layout.dtype for layout in layouts]
    shape, stored = rows_of(form, shapes, dtypes, facts["shape"])
    if not isinstance(facts["dataset"], str):
        raise ValueError("names")
    columns = _columns(facts["columns"], dtypes[0], prod(shape[1:]), left)
    return Shard(
        path=path,
        dataset=facts["dataset"],
        shape=shape,
        stored_dtype=stored.str,
        dtype=read_dtype(stored),
        form=form,
        chunk_rows=_chunk_rows(form, layouts[0], shape),
        riders=tuple(riders),
        identity=identity,
        columns=columns,
        fill_value=_finite(facts["fill_value"]),
        layouts=tuple(layouts),
        left_out=_left_out(facts["left_out"]),
    )


def _check_riders(shard: Shard, wanted: Wanted) -> None:
    riders = shard.riders
    n_rows = shard.n_rows
    # The same number again may be named. Their layouts are claims, too, and are checked like those of the rows.
    if len(riders) > 2 * MOST_RIDERS or not all(rider.layout and _fits(rider.layout, n_rows) for rider in riders):
        raise ValueError("riders")
    if len({(rider.name, rider.is_carried) for rider in riders}) < len(riders):
        raise ValueError("names")
    if not {rider.name for rider in riders if rider.is_carried} <= set(wanted.carry):
        raise ValueError("carried")


def _columns(claim: Any, dtype: np.dtype, n_inputs: int, left: Iterator[np.ndarray]) -> Columns:
    """Return the description of the columns."""
    columns = _column_names(claim, dtype, n_inputs)
    values_from = claim["values_from"]
    if values_from is None:
        return columns
    data = next(left)
    if not isinstance(values_from, str) or data.dtype != np.uint8 or data.shape != (8 * n_inputs,):
        raise ValueError("columns")
    return replace(columns, values=np.frombuffer(data.tobytes(), np.float64), values_from=values_from[:_LONGEST])


def _column_names(claim: Any, dtype: np.dtype, n_inputs: int) -> Columns:
    """Return the names of the columns; those of a table's fields if the file gives no others."""
    names = claim["names"]
    names_from = claim["names_from"]
    if names is None:
        numbers = numbers_of(dtype)
        names = list(numbers.names) if numbers else []
        names_from = "the fields of the table" if names else ""
    texts = [names_from, claim["note"], *names]
    if not isinstance(names, list) or not all(isinstance(each, str) for each in texts):
        raise ValueError("columns")
    if len(names) not in (0, n_inputs) or len(names) > MOST_COLUMN_NAMES:
        raise ValueError("columns")
    return Columns(tuple(names), names_from[:_LONGEST], note=claim["note"][:_LONGEST])


def _rider(claim: Any, layout: Layout) -> Rider:
    name = claim["name"]
    is_carried = claim["is_carried"]
    categories = claim["categories"]
    if not isinstance(name, str) or is_carried not in (True, False) or ("/" in name and not is_carried):
        raise ValueError("rider")
    name.encode()  # an error where it could not be written
    rider = Rider(name, layout.dtype, layout, is_carried=bool(is_carried))
    if categories is None or layout.dtype.kind not in "iu":
        return rider
    if not isinstance(categories, list) or not _are_categories(categories) or not are_few(categories):
        raise ValueError("categories")
    codes = tuple(range(len(categories)))
    return replace(rider, dtype=code_dtype(codes), fill=-1, categories=tuple(categories), codes=codes)


def code_dtype(categories: Sequence[Any]) -> np.dtype:
    """The smallest dtype of codes for so many categories, and for -1: in a file they may be unsigned."""
    return np.min_scalar_type(-max(1, len(categories)))


def _are_categories(claims: list[Any]) -> bool:
    """Whether they are texts that can be written, not too long in all, or numbers that NumPy has."""
    if all(isinstance(each, str) for each in claims):
        return sum(len(each.encode("utf-8", "surrogateescape")) for each in claims) <= MOST_WORDS
    return all(type(each) in (float, bool) or (type(each) is int and abs(each) < 2**63) for each in claims)


def _fits(layout: Layout, n_rows: int) -> bool:
    """Whether it rides along; of an array for each row only rows first."""
    return rides(layout.shape, n_rows) and (layout.dtype.subdtype is None or layout.shape[0] == n_rows)


def _finite(claim: Any) -> float | None:
    if claim is not None and (type(claim) not in (int, float) or not isfinite(claim)):
        raise ValueError("fill value")
    return claim


def _chunk_rows(form: str, first: Layout, shape: tuple[int, ...]) -> int:
    """How many rows are cheapest to read together, by the first of the datasets that make them up."""
    if first.chunks and form == "sparse":  # about the rows of one chunk of values
        return max(1, first.chunks[0] * shape[0] // max(1, first.shape[0]))
    if first.chunks:
        return first.chunks[-1 if form == "columns" else 0]
    if form == "columns":  # a piece of each column is read, and a page takes as long as a number
        return max(1, min(_PAGE, _MOST_READ // prod(shape[1:])) // first.dtype.itemsize)
    return 1


def _left_out(claims: Any) -> tuple[LeftOut, ...]:
    left_out = tuple(LeftOut(name[:_LONGEST], reason[:_LONGEST], bool(is_missed)) for name, reason, is_missed in claims)
    if len(left_out) > MOST_LEFT_OUT or not all(isinstance(each.name + each.reason, str) for each in left_out):
        raise ValueError("left out")
    return left_out
