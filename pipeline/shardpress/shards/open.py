"""Open shards: find the files, vet each of them, check that they fit together, and describe them in the log."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from shardpress.base import signals
from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.base.progress import Progress
from shardpress.hdf5.child.ask import Refusal, retire
from shardpress.hdf5.files import writers
from shardpress.hdf5.forms.known import FORMS
from shardpress.hdf5.names import PREFERRED, Category
from shardpress.hdf5.shard import Shard
from shardpress.hdf5.values import file_digest
from shardpress.settings.kinds import sufficient_percentage
from shardpress.shards.appending import fit_extras
from shardpress.shards.column_order import ColumnCheck
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.damaged import damage_error
from shardpress.shards.extras import log_extras, shorten, unify_extras
from shardpress.shards.kept import KeptDescriptions
from shardpress.shards.masters import NamedRows, Opened
from shardpress.shards.sources import COPY_AGAIN, Source, find
from shardpress.shards.vet import InputFile, Master, Selection, vet

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

_MOST_THREADS = 8
_FILES_PER_THREAD = 100  # minimum for another thread, because starting one takes as long as vetting some files
_FILES_PER_TASK = 8  # passing a task to a thread takes half as long as vetting a file
_DATASETS = 3  # datasets in a line of the log
_EMPTY_SHARDS = 3  # files without rows in a line of the log


def open_shards(
    patterns: Sequence[str],
    dataset: str | None = None,
    on_bad_shard: Callable[[Path, DataError], object] | None = None,
    orientation: str | None = None,
    include: Sequence[str] = (),
    check: ColumnCheck | None = None,
) -> tuple[Shard, ...]:
    """Vet every file that matches `patterns`, without reading rows, and describe the shards in the log.

    The patterns are those of `shardpress.shards.sources.find`, the other settings those of
    `shardpress.shards.vet.Selection`. `on_bad_shard` is called with each file that is refused because of its content,
    and with the error. By default, they are an error, which names the first ones. `check` learns the orders of columns.

    Returns
    -------
    tuple of Shard
        Shards with the same number of columns, and with at least one row in total.

    Raises
    ------
    DataError
        If files are refused, or if no file is left.
    NoInput, NotPermitted, ReadFailed, SystemLimit
        If a file cannot be read.
    """
    selection = Selection(dataset, orientation, tuple(include))
    nothing = KeptDescriptions(selection)
    shards = open_sources(find(patterns), selection, on_bad_shard, check or ColumnCheck(), nothing)
    check_any(shards)
    return shards


def open_sources(
    sources: Sequence[Source],
    selection: Selection,
    on_bad_shard: Callable[[Path, DataError], object] | None,
    check: ColumnCheck,
    kept: KeptDescriptions,
    like: InputFile | None = None,
    categories: Mapping[str, Sequence[Category]] | None = None,
) -> tuple[Shard, ...]:
    """Vet files and describe the shards in the log, as `open_shards` does. Raise `DataError` if no file is left.

    Files whose descriptions are `kept` are not opened, and the descriptions of others are added. If `like` has the
    rows of a finished run, the shards must have its extras: see `fit_extras`. Otherwise, extras keep the codes of known
    `categories`, by their names.
    """
    selection = replace(selection, include=tuple(dict.fromkeys(selection.include)))
    refused = _BadFiles(on_bad_shard)
    files = _accept_fitting(_open_all(sources, selection, kept), refused, check)
    if like is None:
        refused.check(len(files))
        shards = unify_extras(files, check.columns, selection.include, categories or {})
    else:
        shards = fit_extras(files, check.columns, like, refused.add, selection.include)
        refused.check(len(shards))
    _log_shards(shards)
    check.log()
    return shards


def check_any(shards: Sequence[Shard]) -> None:
    """Raise `DataError` if the shards have no rows."""
    if not any(shard.n_rows for shard in shards):
        raise DataError(
            f"{shards[0]}: found no rows in any of {len(shards)} shards, expected at least one. Check --input."
        )


# -- each file ---------------------------------------------------------------------------------------------------


def _open_all(sources: Sequence[Source], selection: Selection, kept: KeptDescriptions) -> list[Opened]:
    """Open all files, and those that master files name. Masters are known only when all files are open."""
    known = [kept.find(source) for source in sources]
    unknown = [source for source, file in zip(sources, known, strict=True) if file is None]
    parts: dict[str, InputFile] = {}
    opened = iter(_in_threads(partial(_opened, selection=selection, kept=kept, parts=parts), unknown))
    given = [(source.path, file or next(opened)) for source, file in zip(sources, known, strict=True)]
    named = NamedRows(given, selection)
    shards = named.shards(_in_threads(named.open, list(named.unopened.values())))
    retire(n_kept=1)  # each thread may have started a child process
    return shards


def _in_threads(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Return the results of a function that opens a file, in the order of its arguments."""
    results: list[R] = []
    if not items:
        return results
    n_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS, 1 + len(items) // _FILES_PER_THREAD)
    tasks = (items[i : i + _FILES_PER_TASK] for i in range(0, len(items), _FILES_PER_TASK))
    with (
        Progress("input", len(items), "files", is_minor=True) as progress,
        ThreadPoolExecutor(n_threads, "vet") as pool,
    ):
        for some in pool.map(lambda task: list(map(function, task)), tasks):
            progress.advance(len(some))
            results += some
    return results


def _opened(
    source: Source, selection: Selection, kept: KeptDescriptions, parts: dict[str, InputFile]
) -> InputFile | Master | DataError:
    """Open a file. A part of a result is vetted once for all of its rows, and then kept in `parts`."""
    try:
        if source.blake3 is None:
            file = vet(Path(source.path), selection)
            kept.add(file)
            return file
        if source.path not in parts:  # a part can have many ranges of rows, and its digest takes time
            part = _vetted(source, selection)
            if isinstance(part, Master):
                return DataError(f"file={printable(source.path)}: names rows of other files. {COPY_AGAIN}")
            parts[source.path] = part
        part = parts[source.path]
        return part if source.rows is None else part.with_rows(*source.rows)
    except DataError as error:  # the caller decides, in the order of the files, whether the error ends the run
        return error


def _vetted(source: Source, selection: Selection) -> InputFile | Master:
    """Vet a part, and check that it is the one that the index names; the digest, which takes longest, comes last."""
    file = vet(Path(source.path), selection)
    if isinstance(file, Master):
        return file
    where = f"file={printable(source.path)}"
    n_bytes = file.identity.size
    for n, expected, unit in ((n_bytes, source.n_bytes, "bytes"), (file.n_rows, source.n_rows, "rows")):
        if expected not in (None, n):
            raise DataError(f"{where}: {n} {unit}, expected {expected} from the index. {COPY_AGAIN}")
    if file_digest(file.path, file.identity) != source.blake3:
        raise DataError(f"{where}: its content has changed: the BLAKE3 digest differs from the index. {COPY_AGAIN}")
    return file


# -- all together ------------------------------------------------------------------------------------------------


class _BadFiles:
    """Files that cannot be used, and what happens then."""

    def __init__(self, on_bad_shard: Callable[[Path, DataError], object] | None) -> None:
        self._on_bad_shard = on_bad_shard
        self._errors: dict[str, DataError] = {}  # by path

    def add(self, path: str, error: DataError) -> None:
        if path in self._errors:  # a part can have many ranges of rows
            return
        self._errors[path] = error
        if self._on_bad_shard is not None:
            self._on_bad_shard(Path(path), error)

    def check(self, n_accepted: int) -> None:
        """Raise `DataError` if there are such files, unless `on_bad_shard` was called with them and others are left."""
        if self._errors and not (self._on_bad_shard and n_accepted):
            n_files = len(self._errors) + n_accepted
            ends = {error.reason if isinstance(error, Refusal) else None for error in self._errors.values()}
            common = ends.pop() if len(ends) == 1 else None
            reasons = {path: str(error) for path, error in self._errors.items()}
            raise damage_error(reasons, n_files, sufficient_percentage(len(self._errors), n_files), common)


def _accept_fitting(opened: Sequence[Opened], refused: _BadFiles, check: ColumnCheck) -> list[InputFile]:
    """Return the files whose columns fit those of the files before them, and refuse the others, in their order."""
    files: list[InputFile] = []
    for path, file in opened:
        signals.check()  # there may be many files
        try:
            if isinstance(file, DataError):
                raise file
            files.append(check.accept(file))
        except DataError as error:
            refused.add(path, error)
    return files


# -- the log -----------------------------------------------------------------------------------------------------


def _log_shards(shards: Sequence[Shard]) -> None:
    """Log facts about rows and extras, and possible problems, with few lines for any number of shards."""
    first = shards[0]
    n_rows = sum(shard.n_rows for shard in shards)
    n_bytes = n_rows * first.n_inputs * AS_STORED.dtype(shards).itemsize
    log.info(
        "input: %s, %s x %d columns %s, %.1f MB",
        quantity(len(shards), "shard"),
        quantity(n_rows, "row"),
        first.n_inputs,
        AS_STORED.dtype(shards),
        n_bytes / 1e6,
    )
    _log_rows(shards)
    log_extras(shards)
    empty = [printable(shard.path) for shard in shards if not shard.n_rows]
    if empty:
        log.warning("input: %s without rows: %s", quantity(len(empty), "shard"), short_list(empty, _EMPTY_SHARDS))
    _warn_of_writers(shards)


def _log_rows(shards: Sequence[Shard]) -> None:
    first = shards[0]
    names = dict.fromkeys(shard.dataset for shard in shards)
    if list(names) != [PREFERRED]:
        log.info("input: rows are read from dataset %s", short_list(map(shorten, names), _DATASETS))
    if len(first.shape) > 2:
        log.info("input: rows of shape %s are flattened to %d columns", first.shape[1:], first.n_inputs)
    if len({shard.dtype for shard in shards}) > 1:
        dtypes = sorted({shard.stored_dtype for shard in shards})
        log.info("input: dtypes %s are read as %s", dtypes, AS_STORED.dtype(shards))
    _log_forms(shards)
    for value in sorted({shard.fill_value for shard in shards if shard.fill_value is not None}):
        log.info(
            "input: attribute _FillValue marks missing values: %s. If it occurs, give --missing-value %s", value, value
        )


def _log_forms(shards: Sequence[Shard]) -> None:
    for (form, is_transposed), n in Counter((shard.form, shard.is_transposed) for shard in shards).items():
        words = FORMS[form].words_if_transposed if is_transposed else FORMS[form].words
        if not words:
            continue
        subset = "" if n == len(shards) else f"of {quantity(n, 'shard')} "
        log.info("input: rows %sare %s", subset, words)


def _warn_of_writers(shards: Sequence[Shard]) -> None:
    pids = writers()  # called once, since the kernel lists the writers of all files
    locked = []
    for shard in shards:
        pid = pids.get((shard.identity.device, shard.identity.inode))
        if pid is not None:
            locked.append((shard, pid))
    if locked:
        shard, pid = locked[0]
        more = f" (and {quantity(len(locked) - 1, 'more input file')})" if len(locked) > 1 else ""
        log.warning(
            "file=%s: process %d has it open for writing%s. If the file changes, the run reads old rows or stops. "
            "Close it in that process first.",
            printable(shard.path),
            pid,
            more,
        )
