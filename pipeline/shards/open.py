"""From patterns to shards: find the files, vet each, and see that they fit together."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline import signals
from pipeline.errors import DataError, ShardpressError, shown
from pipeline.hdf5.child.ask import retire
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.values import file_digest
from pipeline.shards.columns import IN_ORDER, ColumnCheck, ColumnRule
from pipeline.shards.inputlog import log_shards
from pipeline.shards.master import follow, pointer
from pipeline.shards.riding import alike
from pipeline.shards.shard import Shard
from pipeline.shards.sources import Source, find
from pipeline.shards.vet import Wanted, vet

__all__ = ["open_shards"]

_MOST_THREADS, _FILES_A_THREAD = 8, 100  # a thread takes as long to begin as some files to be vetted
_AT_ONCE = 1000  # files under way, so that after the first bad one of many not all are looked at
_A_TASK = 8  # files together, since to hand one over takes half as long as to vet it
_ANEW = "Take another copy of the directory, or run again what made it."


def open_shards(
    patterns: Sequence[str],
    dataset: str | None = None,
    on_bad_shard: Callable[[Path, DataError], object] | None = None,
    followed: Sequence[str] = (),
    orientation: str | None = None,
    carry: Sequence[str] = (),
    columns: ColumnRule = IN_ORDER,
) -> tuple[Shard, ...]:
    """Vet every file that `patterns` names, without reading rows.

    Parameters
    ----------
    patterns : sequence of str
        As for `pipeline.shards.sources.find`.
    dataset, orientation, carry
        As for `pipeline.shards.vet.Wanted`.
    on_bad_shard : callable, optional
        Called with a file that is refused for what it holds, and the error, which is raised otherwise. The file is left
        out.
    followed : sequence of str
        Folders in which the files lie that masters among them stack; with none, a master is refused.
    columns : ColumnRule
        How names of columns are compared, and with which ones.

    Returns
    -------
    tuple of Shard
        All of one width; at least one row in all.

    Raises
    ------
    DataError
        When a file is refused, in words that name it; or when none is left.
    NoInput, NotPermitted, ReadFailed, SystemLimit
        When a file cannot be looked at.
    """

    def refuse(path: Path, error: DataError) -> None:
        if on_bad_shard is None:
            raise error
        on_bad_shard(path, error)

    sources = find(patterns)
    if followed:
        sources = follow(sources, dataset, followed, refuse)
    wanted = Wanted(dataset, orientation, tuple(dict.fromkeys(carry)))
    with closing(_opened(sources, wanted)) as opened:  # closed early by an error, it looks at no more files
        check = ColumnCheck(columns)
        shards = _fitting(sources, opened, refuse, check)
    if not shards:
        raise DataError(f"input={shown(patterns[0])}: none of {len(sources)} files is a shard that can be used")
    if not any(shard.n_rows for shard in shards):
        raise DataError(f"{shards[0]}: found no rows in any of {len(shards)} shards")
    every = alike(shards, wanted.carry)
    log_shards(every)
    check.log()
    return every


# -- each file ---------------------------------------------------------------------------------------------------


def _opened(sources: Sequence[Source], wanted: Wanted) -> Generator[Shard | DataError, None, None]:
    """The shards in order, or what is wrong with each: in several threads once there are enough to be worth one."""
    n_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS, 1 + len(sources) // _FILES_A_THREAD)
    with ThreadPoolExecutor(n_threads, "vet") as pool:
        for start in range(0, len(sources), _AT_ONCE):
            some = sources[start : start + _AT_ONCE]
            tasks = (some[i : i + _A_TASK] for i in range(0, len(some), _A_TASK))
            for shards in pool.map(partial(_open_few, wanted=wanted), tasks):
                yield from shards
    retire(n_kept=1)  # children, of which each thread may have had one


def _open_few(sources: Sequence[Source], wanted: Wanted) -> list[Shard | DataError]:
    opened: list[Shard | DataError] = []
    for source in sources:
        try:
            shard = _vetted(source, wanted)
            _check_as_stacked(shard, source)
            _check_as_listed(shard, source)
            opened.append(shard)
        except DataError as error:  # whether it ends the run is decided in the order of the files
            opened.append(error)
    return opened


def _vetted(source: Source, wanted: Wanted) -> Shard:
    try:
        return vet(source.path, wanted if source.master is None else replace(wanted, dataset=source.dataset))
    except ShardpressError as error:
        if source.master is not None:
            raise type(error)(f"{error} (It is one of those that file={shown(source.master)} stacks.)") from error
        # The child is asked again only where it has survived the first question.
        told = pointer(source.path, wanted.dataset) if isinstance(error.__cause__, Refused) else ""
        if not told:
            raise
        raise type(error)(f"{str(error).rstrip('.')}.{told}") from error


def _check_as_stacked(shard: Shard, source: Source) -> None:
    """Whether a master stacks all of it: what it says was taken for the shape of its own rows, unseen."""
    if source.shape is not None and (shard.form != "dense" or shard.shape != source.shape):
        raise DataError(
            f"{shard}: rows of shape {shard.shape} ({shard.form}), expected {source.shape} (dense) as "
            f"file={shown(source.master)} stacks them: whole ones, and all. Give the file itself."
        )


def _check_as_listed(shard: Shard, source: Source) -> None:
    """Whether it is the file that its manifest lists: what is quick to see comes first."""
    where, n_bytes = f"file={shown(source.path)}", shard.identity.size
    for n, expected, what in ((n_bytes, source.n_bytes, "bytes"), (shard.n_rows, source.n_rows, "rows")):
        if expected not in (None, n):
            raise DataError(f"{where}: {n} {what}, expected {expected} as the manifest says. {_ANEW}")
    if source.blake3 is not None and file_digest(shard.path, shard.identity) != source.blake3:
        raise DataError(f"{where}: its BLAKE3 is not the manifest's: the content has changed. {_ANEW}")


# -- all together ------------------------------------------------------------------------------------------------


def _fitting(
    sources: Sequence[Source],
    opened: Iterator[Shard | DataError],
    refuse: Callable[[Path, DataError], object],
    check: ColumnCheck,
) -> list[Shard]:
    """The shards that fit those before them; the others are refused, in the order of the files."""
    shards: list[Shard] = []
    for source, shard in zip(sources, opened, strict=True):
        signals.check()  # there may be many
        try:
            if isinstance(shard, DataError):
                raise shard
            order = check.order(shard)  # before the width: of other names it can tell which ones
            _check_width(shard, shards[0] if shards else shard)
        except DataError as error:
            refuse(source.path, error)
            continue
        shards.append(check.accepted(shard, order))
    if check.columns.is_known:  # also for shards before the first one that names them
        shards = [replace(shard, columns=check.columns) for shard in shards]
    return shards


def _check_width(shard: Shard, first: Shard) -> None:
    if shard.n_inputs != first.n_inputs:
        raise DataError(
            f"{shard}: shape {shard.shape} has {shard.n_inputs} columns, expected {first.n_inputs} as in {first} of "
            f"shape {first.shape}. Give shards of one width."
        )
