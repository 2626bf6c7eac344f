"""Master files, which stack the rows of other files. Detectors, NeXus and h5py's virtual layouts write such files.

If a user gives the directory of the stacked files (`--follow`), these files replace the master file. The child reads
the master file once and follows no link. This module checks the answer of the child. Then each stacked file is an
ordinary shard.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shardpress import signals
from shardpress.errors import DataError, NoInput, NotPermitted, ShardpressError, printable, quantity
from shardpress.hdf5.child.ask import ask, checking_answer
from shardpress.hdf5.files import Identity
from shardpress.hdf5.forms import normal
from shardpress.hdf5.limits import MOST_PIECES
from shardpress.hdf5.plain.describe import describe_plain
from shardpress.shards.sources import Source, distinct, lies_in, natural_key
from shardpress.shards.vet import read_structure

__all__ = ["follow_masters", "hint_at_stack"]

log = logging.getLogger(__name__)

_LONGEST_NAME = 4096  # characters, the limit of Linux for a path
_LONGEST_HINT = 200  # characters of a directory that a user has to type
_LISTED = 20  # extras of a master, in a warning
_MOST_ROWS = 2**63
_CONTIGUOUS = "expected each row from one file. Give the stacked files themselves"

Box = tuple[tuple[int, int], ...]
"""Start and stop of a selection along each axis."""


class Piece(NamedTuple):
    """A file that a master names, with the dataset in that file and the shape that the master expects."""

    file: str
    dataset: str
    shape: tuple[int, ...] | None


class Stack(NamedTuple):
    """The contents of a master: the dataset or group that stacks pieces, and the extras next to it."""

    dataset: str
    pieces: list[Piece]
    neighbours: list[str]


def follow_masters(
    sources: Sequence[Source],
    dataset: str | None,
    folders: Sequence[str],
    refuse: Callable[[Path, DataError], object],
) -> list[Source]:
    """Return the sources, with each master file replaced by the files that it stacks.

    Parameters
    ----------
    dataset : str, optional
        Path of the virtual dataset, external link or group of external links in the masters. The default is ``X``, or
        the only such object.
    folders : sequence of str
        Directories that may contain the files.
    refuse : callable
        Called with the path of a file that is refused, and the error.

    Raises
    ------
    NotPermitted
        If a master names a file outside the directories.
    NoInput, ReadFailed, SystemLimit
        If a directory does not exist, or a file cannot be read.
    DataError
        If one file is found twice.
    """
    allowed = [_real_directory(folder) for folder in folders]
    named: list[tuple[Source, str]] = []
    for source in sources:
        signals.check()
        try:
            named += [(each, str(source.path)) for each in _follow(source, dataset, allowed)]
        except DataError as error:
            refuse(source.path, error)
    return distinct(named)  # the files may be given in addition to their master


def _real_directory(folder: str) -> str:
    """Return the real path of a directory."""
    if not os.path.isdir(folder):
        raise NoInput(
            f"follow={printable(folder)}: no such directory, expected one that holds the files of a master file. "
            "Check --follow."
        )
    return os.path.realpath(folder)


def _follow(source: Source, dataset: str | None, allowed: Sequence[str]) -> list[Source]:
    """Return the files that a file stacks, or the file itself if it is not a master file."""
    if source.blake3:  # a part of an output directory
        return [source]
    stack = _stack(source.path, dataset)
    if stack is None:
        return [source]
    sources = _sources_of(source.path, stack, allowed)
    _log_stack(source.path, stack)
    return sources


def hint_at_stack(path: Path, dataset: str | None) -> str:
    """Return advice on how to read a refused master file, or an empty string for other files."""
    try:
        stack = _stack(path, dataset)
        if stack is None:
            return ""
        paths = [_path_of(path, piece) for piece in stack.pieces]
        folder = os.path.commonpath([os.path.normpath(os.path.dirname(each)) for each in paths])
    except (ShardpressError, ValueError):  # not a stack of whole rows, or the files have no directory in common
        return ""
    if len(folder) > _LONGEST_HINT:
        return ""
    files = quantity(len(paths), "file")
    where = printable(folder)
    return f" It stacks the rows of {files} in {where}: to read them as shards, give --follow {where}."


# -- from a stack to sources -------------------------------------------------------------------------------------


def _sources_of(master: Path, stack: Stack, allowed: Sequence[str]) -> list[Source]:
    sources = []
    for piece in stack.pieces:
        named = _path_of(master, piece)
        path = os.path.realpath(named)  # resolved, so that no link in an allowed directory leads out of it
        if not any(lies_in(folder, path) for folder in allowed):
            raise NotPermitted(
                f"{_location(master, stack)}: stacks {printable(named)}, which is in "
                f"{printable(os.path.dirname(path))}, expected files in the --follow directories. If "
                "this is intended, add that directory to --follow."
            )
        sources.append(Source(Path(path), master=master, dataset=piece.dataset, shape=piece.shape))
    return sources


def _location(master: Path, stack: Stack) -> str:
    return f"file={printable(master)} dataset={printable(stack.dataset)}"


def _log_stack(master: Path, stack: Stack) -> None:
    where = _location(master, stack)
    log.info("%s: replaced by the %s that it stacks", where, quantity(len(stack.pieces), "file"))
    if stack.neighbours:
        names = ", ".join(map(printable, stack.neighbours[:_LISTED]))
        if len(stack.neighbours) > _LISTED:
            names += ", ..."
        log.warning(
            "%s: extras of the master file are left out: %s. Those of the stacked files are copied.", where, names
        )


def _path_of(master: Path, piece: Piece) -> str:
    """Return the path of a file that a master names, relative to the master. Never use HDF5's search paths."""
    if piece.file == ".":
        return str(master)
    # If the master is a link, names are relative to its target, where they were written.
    directory = master.parent
    if master.is_symlink():
        directory = master.resolve().parent
    if os.path.isabs(piece.file) and not os.path.lexists(piece.file):
        return os.path.join(directory, os.path.basename(piece.file))  # written on another machine
    return os.path.join(directory, piece.file)


# -- the child's answer ------------------------------------------------------------------------------------------


def _stack(path: Path, dataset: str | None) -> Stack | None:
    """Return the stack in a file, or None if the rows are stored in the file itself."""
    where = f"file={printable(path)}"

    def read(descriptor: int, identity: Identity, base: int) -> Any:
        # Plain files are never master files.
        if describe_plain(descriptor, identity.size, dataset, base=base):
            return None
        return ask("stacked", descriptor, [dataset], where)[0]

    facts = read_structure(path, read)
    if facts is None:
        return None
    with checking_answer(where, " about its stacked files"):
        return _checked_stack(facts, where)


def _checked_stack(facts: Any, where: str) -> Stack:
    dataset = _name(facts["dataset"])
    neighbours = [_name(name) for name in facts["neighbours"][: _LISTED + 1]]
    where = f"{where} dataset={printable(dataset)}"
    claims = facts["links"] if "links" in facts else facts["blocks"]
    if not 0 < len(claims) <= MOST_PIECES:
        raise DataError(
            f"{where}: stacks {quantity(len(claims), 'file')}, expected 1 to {MOST_PIECES}. Stack larger files."
        )
    if "links" in facts:
        return Stack(dataset, _pieces_of_links(claims), neighbours)
    return Stack(dataset, _pieces_of_blocks(claims, _numbers(facts["shape"]), where), neighbours)


def _pieces_of_links(claims: Any) -> list[Piece]:
    """Return the pieces of a group of external links in natural order; HDF5 sorts 10 before 9."""
    links = [tuple(map(_name, link)) for link in claims]
    links.sort(key=lambda link: natural_key(link[0]))
    return [Piece(file, normal(path) or "/", None) for _, file, path in links]


def _pieces_of_blocks(blocks: Any, shape: tuple[int, ...], where: str) -> list[Piece]:
    """Return the pieces of a virtual dataset. Check that they are whole files, and that they fill all rows."""
    # Sort the blocks by rows, because HDF5 keeps the order in which they were written.
    placed = sorted((_piece_of_block(block, shape, where) for block in blocks), key=lambda each: each[0])
    _check_complete([rows for rows, _ in placed], shape[0], where)
    return [piece for _, piece in placed]


def _check_complete(ranges: Sequence[tuple[int, int]], n_rows: int, where: str) -> None:
    """Check that sorted ranges of rows follow each other from the first row to the last."""
    end = 0
    for start, stop in ranges:
        if start > end:
            raise DataError(f"{where}: rows {end}:{start} come from no file, {_CONTIGUOUS}.")
        if start < end:
            raise DataError(f"{where}: rows {start}:{end} come from two files, {_CONTIGUOUS}.")
        end = stop
    if end != n_rows:
        raise DataError(f"{where}: rows {end}:{n_rows} come from no file, {_CONTIGUOUS}.")


def _piece_of_block(block: Any, shape: tuple[int, ...], where: str) -> tuple[tuple[int, int], Piece]:
    """Return the range of rows that a block fills in a virtual dataset of this shape, and the piece of the block."""
    file_claim, path_claim, target, source = block
    file = _literal(_name(file_claim), where)
    path = normal(_name(path_claim)) or "/"
    part = f"file={printable(file)} dataset={printable(path)}"
    first, stop = _rows_of_target(target, shape, f"{where}: {part}")
    whole = (stop - first, *shape[1:])
    if _box(source, whole) != _whole_box(whole):
        raise DataError(
            f"{where}: stacks only a part of {part}, expected all its rows. Give that file itself with --input."
        )
    return (first, stop), Piece(file, path, whole)


def _rows_of_target(target: Any, shape: tuple[int, ...], where: str) -> tuple[int, int]:
    """Return the range of rows that a claimed box fills in a virtual dataset of this shape."""
    box = _box(target, shape)
    if box is None or box[1:] != _whole_box(shape[1:]):
        raise DataError(
            f"{where} does not fill whole rows, expected whole rows in one piece. Give the stacked files themselves."
        )
    return box[0]


def _literal(name: str, where: str) -> str:
    """Return a file name without HDF5's escapes, which are %% for %. Refuse name patterns."""
    if "%" in name.replace("%%", ""):
        raise DataError(
            f"{where}: stacks files by a name pattern, {printable(name)}, expected "
            "names of files. Give the stacked files themselves."
        )
    return name.replace("%%", "%")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or "\0" in value:
        raise ValueError("invalid name")
    os.fsencode(value)  # raises an error if no file can have this name
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < _MOST_ROWS for value in values):
        raise ValueError("invalid numbers")
    return tuple(values)


def _box(claim: Any, whole: tuple[int, ...]) -> Box | None:
    """Return a claimed box, or None if the claim is None. A box without axes is a whole dataset of shape `whole`."""
    if claim is None:
        return None
    box = tuple(_numbers(pair) for pair in claim)
    if not all(len(pair) == 2 and pair[0] < pair[1] for pair in box):
        raise ValueError("invalid box")
    return tuple((first, stop) for first, stop in box) or _whole_box(whole)


def _whole_box(shape: tuple[int, ...]) -> Box:
    return tuple((0, n) for n in shape)
