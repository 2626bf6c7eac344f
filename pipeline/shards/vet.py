"""The gate: whether a file is a shard, and if not, why, before anything of it is read.

A shard is one HDF5 file with a numeric dataset, rows first, whose further axes are flattened per row; or with rows in
another of the forms that `forms` lists.

No input file is trusted, and this process never runs libhdf5 on one. It opens the file, looks at the first bytes by
itself, and if the file is not plain (`plainfile`), has a child say where the rows lie. What is said is checked here,
since a forged file may have made the child say anything; then the rows can be read without HDF5 (`rawread`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite, prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import DataError, NoInput, ReadFailed, shown
from pipeline.hdf5.child.ask import ask
from pipeline.hdf5.files import Identity, opened, persistently, stand_in
from pipeline.hdf5.forms import numbers_of, rows_of
from pipeline.hdf5.layout import Layout, check_places, layout_of
from pipeline.hdf5.limits import MOST_LEFT_OUT, MOST_RIDERS, MOST_WORDS
from pipeline.hdf5.plain.describe import describe_plain
from pipeline.hdf5.riders import are_few, rides
from pipeline.hdf5.superblock import check_superblock
from pipeline.shards.shard import LeftOut, Rider, Shard

__all__ = ["code_dtype", "look_at", "vet"]

_LONGEST = 400  # characters of a name or reason

T = TypeVar("T")

_NATIVE_DTYPES = {
    "bool": "uint8",  # Theano's 8-bit integers are what a device copies fastest
    "float16": "float32",  # Theano has no float16 arithmetic on the CPU
    **{name: name for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")},
    **{name: name for name in ("float32", "float64")},
}


_PAGE, _MOST_READ = 2**12, 2**23  # bytes of one column, and of all


def vet(path: Path, dataset: str | None, orientation: str | None = None, carry: Sequence[str] = ()) -> Shard:
    """Look at a file's structure, not at its rows.

    Parameters
    ----------
    path : Path
    dataset : str, optional
        The dataset that holds the rows. With none: ``X``, else the only candidate.
    orientation : str, optional
        Along which of its axes they lie: ``rows``, the first one, or ``columns``, the last one.
    carry : sequence of str
        Paths of what rides along wherever it lies, from the root.

    Raises
    ------
    DataError
        When it is no shard, in words that say why.
    NoInput, NotPermitted, ReadFailed, SystemLimit
        When it cannot be looked at.
    """
    wanted = [dataset, orientation, list(carry)]
    return look_at(path, lambda descriptor, found, base: _looked_into(descriptor, found, base, path, wanted))


def look_at(path: Path, look: Callable[[int, Identity, int], T]) -> T:
    """What `look` finds in a file, given its descriptor, its identity and where in it HDF5 begins.

    There are more tries when the storage fails.

    Raises
    ------
    DataError
        When it is no HDF5 file.
    NoInput, NotPermitted, ReadFailed, SystemLimit
        When it cannot be looked at.
    """
    where = f"file={shown(path)}"

    def once() -> T:
        try:
            with opened(str(path)) as (descriptor, found):
                base = check_superblock(descriptor, found.size, where)
                return look(descriptor, found, base)
        except OSError as error:
            told = stand_in(error, where)
            if isinstance(told, ReadFailed):
                raise  # and try again
            raise told from error

    return persistently(once, where)


def _looked_into(descriptor: int, found: Identity, base: int, path: Path, wanted: list[Any]) -> Shard:
    where = f"file={shown(path)}"
    dataset, orientation, carry = wanted
    try:
        plain = None if carry else describe_plain(descriptor, found.size, dataset, orientation, base)
        facts, arrays = plain or ask("describe", descriptor, wanted, where)
    except DataError:
        if not os.fstat(descriptor).st_nlink:
            raise NoInput(f"{where}: deleted meanwhile, expected an HDF5 file") from None
        raise
    try:
        shard = _shard(facts, arrays, str(path), found)
        if not {rider.name for rider in shard.riders if rider.is_carried} <= set(carry):
            raise ValueError("carried")
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StopIteration) as error:
        raise DataError(
            f"{where}: what the HDF5 library says about it makes no sense ({shown(error)}). The file is damaged or "
            "forged: do not use it."
        ) from error
    check_places([*shard.layouts, *(rider.layout for rider in shard.riders if rider.layout)], found.size, where, base)
    return shard


def _shard(facts: Any, arrays: list[np.ndarray], path: str, found: Identity) -> Shard:
    """What is said, once it is of the right form."""
    left = iter(arrays)
    layouts = [layout_of(claim, left) for claim in facts["rows"]]
    riders = [_rider(claim, layout_of(claim["layout"], left)) for claim in facts["riders"]]
    form, shapes, dtypes = facts["form"], [each.shape for each in layouts], [each.dtype for each in layouts]
    shape, stored = rows_of(form, shapes, dtypes, facts["shape"])
    native = _NATIVE_DTYPES[stored.newbyteorder("=").name]
    numbers = numbers_of(dtypes[0])
    columns = facts["columns"] or (numbers.names if numbers else [])
    if len(riders) > 2 * MOST_RIDERS or not all(rider.layout and _fits(rider.layout, shape[0]) for rider in riders):
        raise ValueError("riders")
    if len({(rider.name, rider.is_carried) for rider in riders}) < len(riders) or not isinstance(facts["dataset"], str):
        raise ValueError("names")
    if not all(isinstance(name, str) for name in columns):
        raise ValueError("columns")
    return Shard(
        path=path,
        dataset=facts["dataset"],
        shape=shape,
        stored_dtype=stored.str,
        dtype=native,
        form=form,
        chunk_rows=_chunk_rows(form, layouts, shape),
        riders=tuple(riders),
        size=found.size,
        mtime_ns=found.mtime_ns,
        inode=found.inode,
        device=found.device,
        columns=tuple(columns),
        fill_value=_finite(facts["fill_value"]),
        layouts=tuple(layouts),
        left_out=_left_out(facts["left_out"]),
    )


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


def _chunk_rows(form: str, layouts: list[Layout], shape: tuple[int, ...]) -> int:
    """How many rows are cheapest to read together."""
    first = layouts[0]
    if form == "sparse":  # as many as a chunk of values holds, if all are alike
        return max(1, first.chunks[0] * shape[0] // max(1, first.shape[0])) if first.chunks else 1
    if first.chunks:
        return first.chunks[-1 if form == "columns" else 0]
    if form == "columns":  # a piece of each column is read, and a page takes as long as a number
        return max(1, min(_PAGE, _MOST_READ // prod(shape[1:])) // first.dtype.itemsize)
    return 1


def _left_out(claims: Any) -> tuple[LeftOut, ...]:
    found = tuple(LeftOut(name[:_LONGEST], reason[:_LONGEST], bool(is_missed)) for name, reason, is_missed in claims)
    if len(found) > MOST_LEFT_OUT or not all(isinstance(each.name + each.reason, str) for each in found):
        raise ValueError("left out")
    return found
