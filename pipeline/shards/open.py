"""Open HDF5 shards: find the files, vet each, and see that they fit together."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline import signals
from pipeline.errors import DataError, ShardpressError, counted, shown
from pipeline.hdf5.child.ask import retire
from pipeline.hdf5.child.find import Refused
from pipeline.hdf5.files import writers
from pipeline.hdf5.values import file_digest
from pipeline.shards.master import follow, pointer
from pipeline.shards.riding import alike
from pipeline.shards.ridinglog import cut, log_riding, some
from pipeline.shards.shard import Shard, row_dtype
from pipeline.shards.sources import Source, find
from pipeline.shards.vet import vet

__all__ = ["open_shards"]

log = logging.getLogger(__name__)

_TOLD = {
    "columns": "stored by columns: the last axis counts them",
    "sparse": "sparse: what is not there is 0",
    "table": "records of a table, of which a first field `index` is none of the columns",
}
_DATASETS = 3  # that the log names
_MOST_THREADS, _FILES_A_THREAD, _AT_ONCE, _A_TASK = 8, 100, 1000, 8
_ANEW = "Take another copy of the directory, or run again what made it."


def open_shards(
    patterns: Sequence[str],
    dataset: str | None = None,
    on_bad_shard: Callable[[Path, DataError], object] | None = None,
    followed: Sequence[str] = (),
    orientation: str | None = None,
    carry: Sequence[str] = (),
) -> tuple[Shard, ...]:
    """Vet every file that `patterns` names, without reading rows.

    Parameters
    ----------
    patterns : sequence of str
        As for `pipeline.shards.sources.find`.
    dataset : str, optional
        The dataset that holds the rows. With none: ``X``, else the only candidate.
    on_bad_shard : callable, optional
        Called with a file that is refused for what it holds, and the error, which is raised otherwise. The file is left
        out.
    followed : sequence of str
        Folders in which the files lie that masters among them stack; with none, a master is refused.
    orientation : str, optional
        Along which axis of a dataset its rows lie: ``rows``, the first one, or ``columns``, the last one.
    carry : sequence of str
        Paths of what rides along wherever it lies in the files, from the root.

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

    sources, carry = find(patterns), tuple(dict.fromkeys(carry))
    if followed:
        sources = follow(sources, dataset, followed, refuse)
    shards: list[Shard] = []
    named: Shard | None = None
    with closing(_outcomes(sources, _Wanted(dataset, orientation, carry))) as outcomes:
        for source, outcome in zip(sources, outcomes, strict=True):
            signals.check()  # there may be many
            try:
                if isinstance(outcome, DataError):
                    raise outcome
                shards.append(_fitting(outcome, shards[0] if shards else outcome, named or outcome))
                named = named or (shards[-1] if shards[-1].columns else None)
            except DataError as error:
                refuse(source.path, error)
    if not shards:
        raise DataError(f"input={shown(patterns[0])}: none of {len(sources)} files is a shard that can be used")
    if not any(shard.n_rows for shard in shards):
        first = shards[0]
        raise DataError(
            f"file={shown(first.path)} dataset={shown(first.dataset)}: found no rows in any of {len(shards)} shards"
        )
    found = alike(shards, carry)
    _log_shards(found)
    _warn_of_writers(found)
    return found


class _Wanted(NamedTuple):
    """What to look for in every file."""

    dataset: str | None
    orientation: str | None
    carry: tuple[str, ...]


def _outcomes(sources: Sequence[Source], wanted: _Wanted) -> Generator[Shard | DataError, None, None]:
    """The shards in order, or what is wrong with each: in several threads once there are enough to be worth one."""
    n_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS, 1 + len(sources) // _FILES_A_THREAD)
    with ThreadPoolExecutor(n_threads, "vet") as pool:
        for start in range(0, len(sources), _AT_ONCE):
            some = sources[start : start + _AT_ONCE]
            # A few together, since to hand one over takes half as long as to vet it.
            tasks = (some[i : i + _A_TASK] for i in range(0, len(some), _A_TASK))
            for outcomes in pool.map(partial(_outcomes_of, wanted=wanted), tasks):
                yield from outcomes
    retire(n_kept=1)


def _outcomes_of(sources: Sequence[Source], wanted: _Wanted) -> list[Shard | DataError]:
    return [_outcome(source, wanted) for source in sources]


def _outcome(source: Source, wanted: _Wanted) -> Shard | DataError:
    try:
        return _checked(source, wanted)
    except DataError as error:
        return error


def _checked(source: Source, wanted: _Wanted) -> Shard:
    """A vetted shard, which is what its manifest or its master says."""
    shard = _vetted(source, wanted)
    where = f"file={shown(source.path)}"
    if source.shape is not None and (shard.form != "dense" or shard.shape != source.shape):
        raise DataError(
            f"{where} dataset={shown(shard.dataset)}: rows of shape {shard.shape} ({shard.form}), expected "
            f"{source.shape} (dense) as file={shown(source.master)} stacks them: whole ones, and all. Give the file "
            "itself."
        )
    for found, expected, what in ((shard.size, source.n_bytes, "bytes"), (shard.n_rows, source.n_rows, "rows")):
        if expected not in (None, found):
            raise DataError(f"{where}: {found} {what}, expected {expected} as the manifest says. {_ANEW}")
    if source.blake3 is None:
        return shard
    if file_digest(shard.path, shard.identity) != source.blake3:
        raise DataError(f"{where}: its BLAKE3 is not the manifest's: the content has changed. {_ANEW}")
    return replace(shard, digest=source.blake3)


def _vetted(source: Source, wanted: _Wanted) -> Shard:
    try:
        return vet(
            source.path, wanted.dataset if source.master is None else source.dataset, wanted.orientation, wanted.carry
        )
    except ShardpressError as error:
        if source.master is not None:
            raise type(error)(f"{error} (It is one of those that file={shown(source.master)} stacks.)") from error
        # The child is asked again only where it has survived the first question.
        told = pointer(source.path, wanted.dataset) if isinstance(error.__cause__, Refused) else ""
        if not told:
            raise
        raise type(error)(f"{str(error).rstrip('.')}.{told}") from error


def _fitting(shard: Shard, first: Shard, named: Shard) -> Shard:
    """A shard as wide as the first one, whose columns have the names of those that were named first."""
    where = f"file={shown(shard.path)} dataset={shown(shard.dataset)}"
    if shard.n_inputs != first.n_inputs:
        raise DataError(
            f"{where}: shape {shard.shape} has {shard.n_inputs} columns, expected {first.n_inputs} as in "
            f"file={shown(first.path)} dataset={shown(first.dataset)} of shape {first.shape}. Give shards of one width."
        )
    if shard.columns == named.columns:
        return replace(shard, columns=named.columns)  # the same object: there may be many shards
    if shard.columns and named.columns:
        pairs = enumerate(zip_longest(shard.columns, named.columns))
        i, names = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        found, expected = (shown(repr(name)) for name in names)
        raise DataError(
            f"{where}: names column {i} {found}, expected {expected} as in "
            f"file={shown(named.path)} dataset={shown(named.dataset)}. Give shards of the same columns in one order."
        )
    return shard


def _log_shards(shards: Sequence[Shard]) -> None:
    first = shards[0]
    n_bytes = sum(shard.n_rows * shard.n_inputs * np.dtype(shard.dtype).itemsize for shard in shards)
    log.info(
        "input: %s, %s x %d columns %s, %.1f MB",
        *(
            counted(len(shards), "shard"),
            counted(sum(shard.n_rows for shard in shards), "row"),
            first.n_inputs,
            row_dtype(shards),
            n_bytes / 1e6,
        ),
    )
    names = dict.fromkeys(shard.dataset for shard in shards)
    if list(names) != ["X"]:
        log.info("input: rows are those of dataset %s", some(map(cut, names), _DATASETS))
    if len(first.shape) > 2:
        log.info("input: rows of shape %s are flattened to %d columns", first.shape[1:], first.n_inputs)
    if len({shard.dtype for shard in shards}) > 1:
        log.info("input: dtypes %s are read as %s", sorted({s.stored_dtype for s in shards}), row_dtype(shards))
    for form, n in Counter(shard.form for shard in shards if shard.form in _TOLD).items():
        log.info("input: rows %sare %s", "" if n == len(shards) else f"of {counted(n, 'shard')} ", _TOLD[form])
    for value in sorted({shard.fill_value for shard in shards if shard.fill_value is not None}):
        log.info("input: attribute _FillValue: %s stands for no value. If it occurs: --missing-value %s", value, value)
    log_riding(shards)
    for shard in shards:
        if not shard.n_rows:
            log.warning("file=%s dataset=%s: no rows", shown(shard.path), shown(shard.dataset))


def _warn_of_writers(shards: Sequence[Shard]) -> None:
    at_work = writers()
    held = [(shard, at_work[key]) for shard in shards if (key := (shard.device, shard.inode)) in at_work]
    if held:
        (shard, pid), *others = held
        more = f" (and {len(others)} more files are held so)" if others else ""
        log.warning(
            "file=%s: process %d holds it open for writing%s: what is written from now on is not read, or ends the "
            "run. Close it there first.",
            *(shown(shard.path), pid, more),
        )
