"""From a file to a shard: whether it is one, and if not, why, before anything of its rows is read.

A shard is one HDF5 file with a numeric dataset, rows first, whose further axes are flattened per row; or with rows in
another of the forms that `pipeline.hdf5.forms` lists.

No input file is trusted, and this process never runs libhdf5 on one. It opens the file, looks at the first bytes by
itself, and if the file is not plain (`pipeline.hdf5.plain`), has a child say where the rows lie. What it says is
checked here, since a forged file may have made it say anything; then the rows can be read without HDF5.
"""

from __future__ import annotations

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
from pipeline.hdf5.files import Identity, opened, persistently, stand_in
from pipeline.hdf5.forms import numbers_of, rows_of
from pipeline.hdf5.layout import Layout, check_places, layout_of
from pipeline.hdf5.limits import MOST_COLUMN_NAMES, MOST_LEFT_OUT, MOST_RIDERS, MOST_WORDS
from pipeline.hdf5.plain.describe import describe_plain
from pipeline.hdf5.riders import are_few, rides
from pipeline.hdf5.superblock import check_superblock
from pipeline.shards.shard import LeftOut, Rider, Shard, read_dtype

__all__ = ["Wanted", "code_dtype", "look_at", "vet"]

_LONGEST = 400  # characters of a name or reason
_PAGE, _MOST_READ = 2**12, 2**23  # bytes that are read at once of one column, and of all

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
        layouts = [*shard.layouts, *(rider.layout for rider in shard.riders if rider.layout)]
        check_places(layouts, identity.size, where, base)
        return shard

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
            told = stand_in(error, where)
            if isinstance(told, ReadFailed):
                raise  # and try again
            raise told from error

    return persistently(once, where)


def _described(
    descriptor: int, identity: Identity, base: int, wanted: Wanted, where: str
) -> tuple[Any, list[np.ndarray]]:
    """What lies where in the file: understood here if it is plain, else as the child says."""
    dataset, orientation, carry = wanted.dataset, wanted.orientation, list(wanted.carry)
    try:
        # What is named may lie anywhere, and the plain way looks at one group only.
        plain = None if carry else describe_plain(descriptor, identity.size, dataset, orientation, base)
        return plain or ask("describe", descriptor, [dataset, orientation, carry], where)
    except DataError:
        # The child opens the file by its descriptor's name, under which nothing is found once it is deleted.
        if not os.fstat(descriptor).st_nlink:
            raise NoInput(f"{where}: deleted meanwhile, expected an HDF5 file") from None
        raise


# -- from what is said to a shard, once it is of the right form ----------------------------------------------------


def _shard(facts: Any, arrays: list[np.ndarray], path: str, identity: Identity) -> Shard:
    left = iter(arrays)  # which are in the order of the layouts
    # Lists, out of which StopIteration comes as it is where arrays are missing.
    layouts = [layout_of(claim, left) for claim in facts["rows"]]
    riders = [_rider(claim, layout_of(claim["layout"], left)) for claim in facts["riders"]]
    form, dtypes = facts["form"], [layout.dtype for layout in layouts]
    shape, stored = rows_of(form, [layout.shape for layout in layouts], dtypes, facts["shape"])
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
    riders, n_rows = shard.riders, shard.n_rows
    # As many again may be named. Where they lie was said too, and is checked as that of the rows is.
    if len(riders) > 2 * MOST_RIDERS or not all(rider.layout and _fits(rider.layout, n_rows) for rider in riders):
        raise ValueError("riders")
    if len({(rider.name, rider.is_carried) for rider in riders}) < len(riders):
        raise ValueError("names")
    if not {rider.name for rider in riders if rider.is_carried} <= set(wanted.carry):
        raise ValueError("carried")


def _columns(claim: Any, dtype: np.dtype, n_inputs: int, left: Iterator[np.ndarray]) -> Columns:
    """Return the description of the columns; their names are those of a table's fields if the file gives no others."""
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
    note = claim["note"][:_LONGEST]
    values_from = claim["values_from"]
    if values_from is None:
        return Columns(tuple(names), names_from[:_LONGEST], note=note)
    data = next(left)
    if not isinstance(values_from, str) or data.dtype != np.uint8 or data.shape != (8 * n_inputs,):
        raise ValueError("columns")
    values = np.frombuffer(data.tobytes(), np.float64)
    return Columns(tuple(names), names_from[:_LONGEST], values, values_from[:_LONGEST], note)


def _rider(claim: Any, layout: Layout) -> Rider:
    name, is_carried, categories = claim["name"], claim["is_carried"], claim["categories"]
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
    if form == "sparse":  # as many as a chunk of values holds, if all are alike
        return max(1, first.chunks[0] * shape[0] // max(1, first.shape[0])) if first.chunks else 1
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
