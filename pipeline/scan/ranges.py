"""One Dask pass over every block: the range of each column, and the rows that hold NaN or Inf."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from pipeline.cluster.executor import reduce
from pipeline.cluster.threads import check
from pipeline.errors import DataError, counted, shown, some
from pipeline.formats import pack, unpack
from pipeline.shards.rows import bad_entries, bad_rows, read
from pipeline.shards.shard import Block, Shard, block_of, blocks, first_rows

__all__ = ["Scan", "ScanSettings", "check_usable", "describe_bad_rows", "readable", "scan"]

log = logging.getLogger(__name__)

_MAX_TASKS = 4096  # a graph's cost grows with its tasks, so a task takes as many blocks as keeps it below this
_COLUMNS = 10  # that a sentence names

# A block with its shard's place in the input before it, and the number, over all shards, of that shard's first row.
_Piece = tuple[int, int, Block]


@dataclass(frozen=True)
class Scan:
    """What one pass over the rows tells.

    Attributes
    ----------
    n_rows : int
        All rows, bad ones included.
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Over the good rows.
    bad_rows : ndarray of int64
        Numbers, counted over all shards, of the rows that hold NaN, Inf or the missing value; sorted. All rows of a
        shard that cannot be read are among them.
    unreadable : dict of int to str
        Why, for each shard that cannot be read, by its place in the input.
    """

    n_rows: int
    minimum: np.ndarray
    maximum: np.ndarray
    bad_rows: np.ndarray
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @property
    def n_good(self) -> int:
        """Rows that can be used."""
        return self.n_rows - len(self.bad_rows)

    @property
    def constant(self) -> np.ndarray:
        """Which columns hold one value only: bool, shape (n_inputs,)."""
        return self.minimum == self.maximum

    def to_npz(self) -> bytes:
        """The bytes of its file."""
        arrays = {"minimum": self.minimum, "maximum": self.maximum, "bad_rows": self.bad_rows}
        return pack(arrays, {"n_rows": self.n_rows, "unreadable": [*self.unreadable.items()]})

    @classmethod
    def from_npz(cls, data: bytes) -> Scan:
        """What `to_npz` wrote.

        Raises
        ------
        ValueError
            When it is anything else.
        """
        arrays, about = unpack(data)
        try:
            return cls(int(about["n_rows"]), **arrays, unreadable=dict(about["unreadable"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"is no scan: {error!r}") from error


@dataclass(frozen=True)
class ScanSettings:
    """How rows are looked at.

    Attributes
    ----------
    block_rows : int
        Rows that one task holds in memory at a time.
    missing : float, optional
        A value that stands for a missing one.
    max_unreadable : int, optional
        How many shards may be left out because they cannot be read; with None the first one is an error.
    """

    block_rows: int
    missing: float | None = None
    max_unreadable: int | None = None


def scan(
    shards: Sequence[Shard],
    settings: ScanSettings,
    executor: Executor,
    n_at_once: int,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Scan:
    """Read every row once; where shards turn out to be unreadable, all others again.

    What can be read of a bad shard depends on the size of the blocks, and the result must not.

    Parameters
    ----------
    n_at_once : int
        Tasks under way at a time.
    advance : callable
        Told the number of rows of each task that is done, and a negative one before rows are read again.

    Raises
    ------
    DataError
        When more shards than the settings allow cannot be read.
    """
    known, look = _unread(shards, {}), partial(_scan_blocks, settings)
    while True:  # twice at most, but for files that go bad meanwhile
        found = known
        tasks = [(look, pieces) for pieces in _shared_out(shards, settings.block_rows, known.unreadable)]
        if tasks:  # there are none where no shard can be read
            found = reduce(tasks, _merge, executor, n_at_once, lambda done: advance(done.n_rows))
            found = _merge([known, found])
        if len(found.unreadable) == len(known.unreadable):
            return found
        limit = settings.max_unreadable or 0
        if len(found.unreadable) > limit:  # now: a night of reading is not spent on what is refused at its end
            first = next(why for i, why in found.unreadable.items() if i not in known.unreadable)
            raise DataError(
                f"{len(found.unreadable)} of {len(shards)} shards cannot be read, expected {limit} at most: {first} "
                "Mend the files, or raise --max-bad-shards."
            )
        known = _unread(shards, found.unreadable)
        advance(known.n_rows - found.n_rows)  # what is read again counts once


def check_usable(shards: Sequence[Shard], found: Scan, missing: float | None = None) -> None:
    """Whether rows can be scaled by what a scan has found.

    Raises
    ------
    DataError
        When there are no two good rows that differ, or a column's range is no float64.
    """
    first = shards[0]
    if not found.n_good:
        raise DataError(
            f"no usable rows: all {found.n_rows} rows hold {_words(missing)}, or cannot be read, from "
            f"file={shown(first.path)} on"
        )
    if found.n_good == 1:
        raise DataError(
            f"{first}: 1 usable row of {found.n_rows}, expected two or more: nothing can be learnt from one. Give more "
            "rows, or encode with a fitted model (--model)."
        )
    if found.constant.all():
        raise DataError(
            f"{first}: all {found.n_good} usable rows are the same, expected columns that vary: there is nothing to "
            "learn. Name another dataset with --dataset, or give other rows."
        )
    with np.errstate(over="ignore"):  # Inf is the answer
        endless = np.flatnonzero(np.isinf(found.maximum - found.minimum))
    if len(endless):
        raise DataError(
            f"file={shown(first.path)} and what follows it: the range of columns "
            f"{some(map(str, endless), _COLUMNS)} is beyond float64, expected numbers that can be scaled. Scale them "
            "down."
        )
    if found.constant.any():
        columns = np.flatnonzero(found.constant)
        log.info("scan: %s set to 0: %s", counted(len(columns), "constant column"), some(map(str, columns), _COLUMNS))


def readable(shards: Sequence[Shard], found: Scan) -> tuple[tuple[Shard, ...], Scan]:
    """The shards that can be read, and what a scan of them alone would have told."""
    if not found.unreadable:
        return tuple(shards), found
    firsts = first_rows(shards)
    is_bad = np.isin(np.arange(len(shards)), list(found.unreadable))
    shard_of = np.searchsorted(firsts, found.bad_rows, side="right") - 1
    shift = np.cumsum(np.where(is_bad, np.diff(firsts), 0))[shard_of]  # rows of bad shards before each
    kept = ~is_bad[shard_of]
    left = tuple(shard for shard, bad in zip(shards, is_bad, strict=True) if not bad)
    n_rows = sum(shard.n_rows for shard in left)
    return left, Scan(n_rows, found.minimum, found.maximum, (found.bad_rows - shift)[kept])


def describe_bad_rows(shards: Sequence[Shard], found: Scan, missing: float | None = None) -> str:
    """Where the first bad row lies, its first bad column, and how many bad rows there are."""
    counts = f"{len(found.bad_rows)} of {found.n_rows} rows in all hold {_words(missing)}"
    if found.unreadable:
        return f"{next(iter(found.unreadable.values()))} {counts}, or lie in one of {len(found.unreadable)} such shards"
    number = int(found.bad_rows[0])
    block = block_of(shards, first_rows(shards), number, number + 1)
    row = read(block)  # once more, since a scan keeps numbers only
    column = int(np.flatnonzero(bad_entries(row, missing, block.shard.stored_dtype)[0])[0])
    return f"{block.shard}: {row[0, column]} in row {block.start}, column {column}; {counts}"


def _scan_blocks(settings: ScanSettings, pieces: Sequence[_Piece]) -> Scan:
    """What one task finds; where a block cannot be read that may be, of its shard no more than why."""
    found = []
    for number, first_row, block in pieces:
        check()
        try:
            found.append(_scan_block(first_row + block.start, block, settings.missing))
        except DataError as error:
            if settings.max_unreadable is None:
                raise
            nothing = _nothing(block.shard.n_inputs)  # what its other blocks tell is thrown away, with the pass
            found.append(Scan(len(block), *nothing, np.empty(0, np.int64), {number: str(error)}))
    return _merge(found)


def _shared_out(shards: Sequence[Shard], block_rows: int, unreadable: Mapping[int, str]) -> Iterator[list[_Piece]]:
    """For each task its pieces of all shards but the unreadable ones, in their order."""
    pieces = [
        (i, first_row, block)
        for i, (shard, first_row) in enumerate(zip(shards, first_rows(shards)[:-1].tolist(), strict=True))
        if i not in unreadable
        for block in blocks([shard], block_rows)
    ]
    # Neighbours share a task: a file is read from front to back.
    stride = max(1, -(-len(pieces) // _MAX_TASKS))
    return (pieces[i : i + stride] for i in range(0, len(pieces), stride))


def _unread(shards: Sequence[Shard], unreadable: Mapping[int, str]) -> Scan:
    """What shards count for that cannot be read: rows, all of them bad."""
    firsts = first_rows(shards)
    bad = [np.arange(firsts[i], firsts[i + 1]) for i in sorted(unreadable)]
    numbers = np.concatenate([np.empty(0, dtype=np.int64), *bad])
    return Scan(len(numbers), *_nothing(shards[0].n_inputs), numbers, dict(unreadable))


def _scan_block(first_row: int, block: Block, missing: float | None) -> Scan:
    rows = read(block)
    minimum, maximum = rows.min(axis=0), rows.max(axis=0)  # in the rows' own dtype: no copy of a block
    bad = np.empty(0, dtype=np.int64)
    # NaN and Inf come through as a minimum or maximum, so good blocks need no second look.
    if missing is not None or not (np.isfinite(minimum).all() and np.isfinite(maximum).all()):
        bad = bad_rows(rows, missing, block.shard.stored_dtype)
        if len(bad) == len(rows):  # NumPy knows no minimum of nothing
            return Scan(len(rows), *_nothing(rows.shape[1]), first_row + bad)
        if len(bad):
            rows = np.delete(rows, bad, axis=0)
            minimum, maximum = rows.min(axis=0), rows.max(axis=0)
    return Scan(len(block), minimum.astype(np.float64), maximum.astype(np.float64), first_row + bad)


def _nothing(n_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and maximum over no rows."""
    return np.full(n_inputs, np.inf), np.full(n_inputs, -np.inf)  # which change nothing when they are merged


def _merge(scans: Sequence[Scan]) -> Scan:
    return Scan(
        n_rows=sum(found.n_rows for found in scans),
        minimum=np.minimum.reduce([found.minimum for found in scans]),
        maximum=np.maximum.reduce([found.maximum for found in scans]),
        bad_rows=np.sort(np.concatenate([found.bad_rows for found in scans])),
        # The first complaint about each; dicts keep the last of equal keys.
        unreadable=dict(sorted({i: why for found in reversed(scans) for i, why in found.unreadable.items()}.items())),
    )


def _words(missing: float | None) -> str:
    return "NaN or Inf" if missing is None else f"NaN, Inf or {missing}"
