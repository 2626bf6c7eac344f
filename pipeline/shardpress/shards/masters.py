"""Master files, which name rows of other files. Each range of such rows becomes a shard like any other."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeAlias

from shardpress.base.errors import DataError, NoInput, printable, quantity, short_list
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.names import normal
from shardpress.hdf5.shard import MasterContents, MasterFile, RowsElsewhere
from shardpress.shards.vet import InputFile, Master, Selection, contents_of_master, vet

log = logging.getLogger(__name__)

_NAMED = 3  # files in a line of the log

Opened: TypeAlias = tuple[str, InputFile | DataError]
"""The path of a file, and its rows or the reason why it is refused."""
_FileKey: TypeAlias = tuple[int, int] | str


class _NamedDataset(NamedTuple):
    """A dataset that a master names."""

    path: Path
    dataset: str
    row_shape: tuple[int, ...] | None
    master: Master


_Key: TypeAlias = tuple[_FileKey, str, tuple[int, ...] | None]


class NamedRows:
    """The rows that the masters among some given files name.

    A given file that a master names is read through the master only.
    """

    def __init__(self, given: Sequence[tuple[str, InputFile | Master | DataError]], selection: Selection) -> None:
        self._given = given
        self._selection = selection
        self._paths: dict[_FileKey, Path] = {}  # by which the user knows files
        self._datasets: dict[_Key, InputFile | DataError] = {}  # that masters name
        self.unopened: dict[_Key, _NamedDataset] = {}
        self._masters = [file for _, file in given if isinstance(file, Master)]
        if not self._masters:
            return
        files: dict[_FileKey, InputFile] = {}
        for path, file in given:
            key = _key_of(path)
            self._paths[key] = Path(path)
            if isinstance(file, InputFile):
                files[key] = file
        for master in self._masters:
            for rows in master.rows:
                self._add(master, rows, files)

    def _add(self, master: Master, rows: RowsElsewhere, files: Mapping[_FileKey, InputFile]) -> None:
        """Add a dataset that a master names. It need not be opened again if a given file has its rows there."""
        key = self._key(master, rows)
        file = files.get(key[0])
        if file is not None and _has_dataset(file, rows):
            self._datasets[key] = file
        else:
            path = self._paths.setdefault(key[0], _path_of(master, rows))
            self.unopened[key] = _NamedDataset(path, normal(rows.dataset), rows.row_shape, master)

    def _key(self, master: Master, rows: RowsElsewhere) -> _Key:
        return _key_of(_path_of(master, rows)), normal(rows.dataset), rows.row_shape

    def open(self, named: _NamedDataset) -> InputFile | DataError:
        """Open a file that a master names. A missing file is an error like that of a damaged one."""
        orientation = self._selection.orientation if named.row_shape is None else "rows"
        selection = Selection(named.dataset, orientation, self._selection.include)
        master = f"file={printable(named.master.path)}"
        try:
            file = vet(named.path, selection, named.row_shape)
        except NoInput as error:
            return DataError(f"{error} The master {master} names it.")
        except DataError as error:
            return error
        if isinstance(file, Master):
            return DataError(
                f"file={printable(named.path)}: names rows of other files, and the master {master} names it, expected "
                "one master for each row. Give it with --input instead of the other one."
            )
        return file

    def shards(self, files: Sequence[InputFile | DataError]) -> list[Opened]:
        """Return all given files, with the rows that masters name in place of the masters.

        `files` are those of `unopened`, in their order. Raise `DataError` if masters name a row twice.
        """
        self._datasets.update(zip(self.unopened, files, strict=True))
        named = {key for key, *_ in self._datasets}
        opened: list[Opened] = []
        skipped: list[str] = []
        ranges: dict[tuple[_FileKey, str], list[tuple[int, int, str]]] = defaultdict(list)
        for path, file in self._given:
            if isinstance(file, Master):
                own = list(self._rows_of(file))
                for rows, (_, shard) in zip(file.rows, own, strict=True):
                    if isinstance(shard, InputFile):
                        key, dataset, _ = self._key(file, rows)
                        ranges[key, dataset].append((shard.first_row, shard.first_row + shard.n_rows, path))
                opened += _with_contents(file, own, self._selection)
            elif self._masters and _key_of(path) in named:
                skipped.append(path)
            else:
                opened.append((path, file))
        for (key, dataset), places in ranges.items():
            _check_once(self._paths[key], dataset, places)
        self._log(skipped)
        return opened

    def _rows_of(self, master: Master) -> Iterator[Opened]:
        """Yield each range of rows that a master names, or the reason why it cannot be read."""
        for rows in master.rows:
            key = self._key(master, rows)
            file = self._datasets[key]
            yield str(self._paths[key[0]]), _cut(file, rows, master) if isinstance(file, InputFile) else file

    def _log(self, skipped: Sequence[str]) -> None:
        if not self._masters:
            return
        n = sum(len(master.rows) for master in self._masters)
        names = short_list([f"file={printable(master.path)}" for master in self._masters], _NAMED)
        log.info("input: %s of other files named by the %s", quantity(n, "shard"), f"master {names}")
        if skipped:
            listed = short_list([printable(path) for path in skipped], _NAMED)
            log.info("input: read only through a master that names them: %s", listed)


def _key_of(path: str | Path) -> _FileKey:
    """Return a key that is equal for all names of a file."""
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return status.st_dev, status.st_ino


def _path_of(master: Master, rows: RowsElsewhere) -> Path:
    """Return the path of a file that a master names: relative to the master, or to the file that it is a link to.

    As in HDF5, the file can also be next to the master instead of at an absolute path, or relative to the current
    directory.
    """
    if rows.file == ".":
        return master.path
    name = Path(rows.file)
    folders = [master.path.parent, Path(os.path.realpath(master.path)).parent]
    candidates = [folder / name for folder in folders]
    candidates += [folder / name.name for folder in folders] if name.is_absolute() else [name]
    path = next((path for path in candidates if os.path.exists(path)), candidates[0])
    short = Path(os.path.normpath(path))  # another file if a folder on the path is a link
    return short if _key_of(short) == _key_of(path) else path


def _has_dataset(file: InputFile, rows: RowsElsewhere) -> bool:
    """Return whether the rows of a file are those of the dataset that a master names."""
    described = file.description
    is_whole = file.first_row == 0 and file.n_rows == described.shape[0]
    is_along = rows.row_shape is None or (not described.is_transposed and described.shape != rows.row_shape)
    return is_whole and is_along and normal(described.dataset) == normal(rows.dataset)


def _cut(file: InputFile, rows: RowsElsewhere, master: Master) -> InputFile | DataError:
    """Return the rows of a file that a master names, or an error if the file does not have them."""
    n_rows = file.n_rows - rows.first_row if rows.n_rows is None else rows.n_rows
    width = file.description.shape[1:]
    expected = f"expected rows {rows.first_row}:{rows.first_row + n_rows}"
    if rows.first_row + n_rows <= file.n_rows and rows.row_shape in (None, width):
        return file.with_rows(rows.first_row, n_rows)
    if rows.row_shape is not None:
        expected += f" of shape {rows.row_shape}"
    return DataError(
        f"{file}: shape {file.description.shape}, {expected}, which the master file={printable(master.path)} names. "
        "Write the master again."
    )


def _check_once(path: Path, dataset: str, places: list[tuple[int, int, str]]) -> None:
    """Refuse rows of a dataset that are named twice: start, stop, and the master that names them."""
    places.sort()
    for (_, stop, master), (start, _, other) in pairwise(places):
        if start < stop:
            masters = f"by file={printable(master)} and by file={printable(other)}"
            raise DataError(
                f"file={printable(path)} dataset={printable(dataset)} rows={start}: named twice ({masters}), expected "
                "each row once. Remove one of the inputs, or write the master again."
            )


# -- extras ------------------------------------------------------------------------------------------------------


def _with_contents(master: Master, opened: Sequence[Opened], selection: Selection) -> list[Opened]:
    """Return the rows with the extras and the columns that the master has for them.

    If the number of all rows is unknown, because a file is missing, it is unknown which datasets are extras.
    """
    files = [file for _, file in opened if isinstance(file, InputFile)]
    numbers = [_n_rows(rows, file) for rows, (_, file) in zip(master.rows, opened, strict=True)]
    if not files or None in numbers:
        return list(opened)
    known = [n for n in numbers if n is not None]
    try:
        contents = contents_of_master(master, selection, (sum(known), *files[0].description.shape[1:]))
    except DataError as error:
        return [(str(master.path), error)]
    with_extras: list[Opened] = []
    first = 0
    for (path, file), n in zip(opened, known, strict=True):
        if isinstance(file, InputFile):
            file = _with_extras(file, MasterFile(str(master.path), master.identity, first - file.first_row), contents)
        with_extras.append((path, file))
        first += n
    return with_extras


def _n_rows(rows: RowsElsewhere, file: InputFile | DataError) -> int | None:
    return file.n_rows if isinstance(file, InputFile) else rows.n_rows


def _with_extras(file: InputFile, master: MasterFile, contents: MasterContents) -> InputFile:
    """Return the rows of a file with the extras of the master, which come first, and with the names of its columns."""
    own = file.description
    extras = [replace(extra, is_in_master=True) for extra in contents.extras]
    names = {extra.name for extra in extras}
    extras += [extra for extra in own.extras if extra.name not in names]
    names = {extra.name for extra in extras}
    where = f"in the master file={printable(master.path)}"
    left_out = [replace(dataset, reason=f"{dataset.reason}, {where}") for dataset in contents.left_out]
    left_out = [dataset for dataset in (*left_out, *own.left_out) if dataset.name not in names]
    has_columns = bool(contents.columns.names) or contents.columns.values is not None
    description = replace(
        own,
        extras=tuple(extras),
        left_out=tuple(left_out[:MOST_LEFT_OUT]),
        columns=contents.columns if has_columns else own.columns,
    )
    return replace(file, description=description, master=master)
