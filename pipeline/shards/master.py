"""Master files: files that stack the rows of others, as detectors, NeXus and h5py's virtual layouts write them.

Such a file stands for the list of files that it stacks, if somebody named the folder that these lie in. It is looked at
once, by the child, which follows nothing; what is said is checked here. Then each file is a shard like any other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import signals
from pipeline.errors import DataError, NoInput, NotPermitted, ShardpressError, counted, shown
from pipeline.hdf5.child.ask import ask, believed
from pipeline.hdf5.files import Identity
from pipeline.hdf5.forms import normal
from pipeline.hdf5.limits import MOST_PIECES
from pipeline.hdf5.plain.describe import describe_plain
from pipeline.shards.sources import Source, distinct, lies_in, natural_key
from pipeline.shards.vet import look_at

__all__ = ["follow", "pointer"]

log = logging.getLogger(__name__)

_LONGEST_NAME = 4096  # characters: Linux has no longer paths
_LONGEST_HINT = 200  # characters of a folder that is to be typed
_LISTED = 20
_MOST_ROWS = 2**63
_IN_TURN = "expected the rows of one file behind those of the other"

Box = tuple[tuple[int, int], ...]  # first and last but one along each axis


class Piece(NamedTuple):
    """A file that a master names, and the shape that it says the dataset in it has."""

    file: str
    dataset: str
    shape: tuple[int, ...] | None


class Stack(NamedTuple):
    """What a master says: which of its datasets or groups stacks what, and what lies beside that in the master."""

    dataset: str
    pieces: list[Piece]
    beside: list[str]


def follow(
    sources: Sequence[Source],
    dataset: str | None,
    folders: Sequence[str],
    refuse: Callable[[Path, DataError], object],
) -> list[Source]:
    """The sources, with the files that it stacks in the place of each master.

    Parameters
    ----------
    dataset : str, optional
        The virtual dataset, external link or group of external links in the masters. With none: ``X``, else the only
        one.
    folders : sequence of str
        Where the files may lie.
    refuse : callable
        Told the path of a file that is refused, and why.

    Raises
    ------
    NotPermitted
        When a master names a file outside the folders.
    NoInput, ReadFailed, SystemLimit
        When a folder is not there, or a file cannot be looked at.
    DataError
        When one file is found twice.
    """
    for folder in folders:
        if not os.path.isdir(folder):
            raise NoInput(f"follow={shown(folder)}: no such directory, expected one that holds what masters stack")
    inside = [os.path.realpath(folder) for folder in folders]
    named: list[tuple[Source, str]] = []
    for source in sources:
        signals.check()
        try:
            named += [(each, str(source.path)) for each in _stacked_by(source, dataset, inside)]
        except DataError as error:
            refuse(source.path, error)
    return distinct(named)  # the files may have been given beside their master, too


def _stacked_by(source: Source, dataset: str | None, inside: Sequence[str]) -> list[Source]:
    """Return the files that a file stacks; itself if it is no master."""
    if source.blake3:  # a part of an output directory
        return [source]
    stack = _stack(source.path, dataset)
    if stack is None:
        return [source]
    return _followed(source.path, stack, inside)


def pointer(path: Path, dataset: str | None) -> str:
    """Return a sentence on a refused file that stacks the rows of others, and how to read those; otherwise nothing."""
    try:
        stack = _stack(path, dataset)
        if stack is None:
            return ""
        places = [_place(path, piece) for piece in stack.pieces]
        folder = os.path.commonpath([os.path.normpath(os.path.dirname(place)) for place in places])
    except (ShardpressError, ValueError):  # it is no stack of whole rows, or the files have no directory in common
        return ""
    if len(folder) > _LONGEST_HINT:
        return ""
    files = counted(len(places), "file")
    return f" It stacks the rows of {files} in {shown(folder)}: --follow {shown(folder)} has them read as shards."


# -- from a stack to sources -------------------------------------------------------------------------------------


def _followed(master: Path, stack: Stack, inside: Sequence[str]) -> list[Source]:
    where = f"file={shown(master)} dataset={shown(stack.dataset)}"
    sources = []
    for piece in stack.pieces:
        named = _place(master, piece)
        path = os.path.realpath(named)  # so that no link in a folder that was named leads out of it
        if not any(lies_in(folder, path) for folder in inside):
            raise NotPermitted(
                f"{where}: stacks {shown(named)}, which lies in {shown(os.path.dirname(path))}, expected files inside "
                "of what --follow names. If it is meant, name that folder too."
            )
        sources.append(Source(Path(path), master=master, dataset=piece.dataset, shape=piece.shape))
    log.info("%s: stacks %s, read in its place", where, counted(len(sources), "file"))
    if stack.beside:
        names = ", ".join(map(shown, stack.beside[:_LISTED]))
        if len(stack.beside) > _LISTED:
            names += ", ..."
        log.warning("%s: does not ride along from the master: %s. What lies in the files it stacks does.", where, names)
    return sources


def _place(master: Path, piece: Piece) -> str:
    """Return the path of a file that a master names: next to it, never from the environment as in HDF5."""
    if piece.file == ".":
        return str(master)
    # Next to the file itself if the path is a link: its names were written there.
    home = master.parent
    if master.is_symlink():
        home = master.resolve().parent
    if os.path.isabs(piece.file) and not os.path.lexists(piece.file):
        return os.path.join(home, os.path.basename(piece.file))  # written on another machine
    return os.path.join(home, piece.file)


# -- what the child says ---------------------------------------------------------------------------------------------


def _stack(path: Path, dataset: str | None) -> Stack | None:
    """What a file stacks, and None where its rows are its own."""
    where = f"file={shown(path)}"

    def look(descriptor: int, identity: Identity, base: int) -> Any:
        # Plain files stack nothing.
        if describe_plain(descriptor, identity.size, dataset, base=base):
            return None
        return ask("stacked", descriptor, [dataset], where)[0]

    facts = look_at(path, look)
    if facts is None:
        return None
    with believed(where, " about what it stacks"):
        return _checked(facts, where)


def _checked(facts: Any, where: str) -> Stack:
    dataset = _name(facts["dataset"])
    beside = [_name(name) for name in facts["beside"][: _LISTED + 1]]
    where = f"{where} dataset={shown(dataset)}"
    claims = facts["links"] if "links" in facts else facts["blocks"]
    if not 0 < len(claims) <= MOST_PIECES:
        raise DataError(f"{where}: stacks {counted(len(claims), 'file')}, expected 1 to {MOST_PIECES}")
    if "links" in facts:
        return Stack(dataset, _linked(claims), beside)
    return Stack(dataset, _rows_in_order(claims, _numbers(facts["shape"]), where), beside)


def _linked(claims: Any) -> list[Piece]:
    """Return the pieces of a group of external links in natural order; HDF5 sorts 10 before 9."""
    links = [tuple(map(_name, link)) for link in claims]
    links.sort(key=lambda link: natural_key(link[0]))
    return [Piece(file, normal(path) or "/", None) for _, file, path in links]


def _rows_in_order(blocks: Any, shape: tuple[int, ...], where: str) -> list[Piece]:
    """The pieces of a virtual dataset, which fill it with whole rows of whole files from the first row to the last."""
    end = 0
    pieces = []
    # Sorted by their rows: HDF5 keeps the blocks in the order in which they were written.
    placed = sorted((_placed(block, shape, where) for block in blocks), key=lambda each: each[0])
    for (start, stop), piece in placed:
        if start > end:
            raise DataError(f"{where}: rows {end}:{start} come from no file, {_IN_TURN}")
        if start < end:
            raise DataError(f"{where}: rows {start}:{end} come from two files, {_IN_TURN}")
        end = stop
        pieces.append(piece)
    if end != shape[0]:
        raise DataError(f"{where}: rows {end}:{shape[0]} come from no file, expected a file for every row")
    return pieces


def _placed(block: Any, shape: tuple[int, ...], where: str) -> tuple[tuple[int, int], Piece]:
    """Which rows of a virtual dataset of that shape a block of it fills, and with what."""
    file_claim, path_claim, to, of = block
    file = _literal(_name(file_claim), where)
    path = normal(_name(path_claim)) or "/"
    where = f"{where}: of file={shown(file)} dataset={shown(path)}"
    filled = _box(to, shape)
    if filled is None or filled[1:] != _all_of(shape[1:]):
        raise DataError(f"{where} something else than rows is stacked, expected whole rows in one piece")
    whole = (filled[0][1] - filled[0][0], *shape[1:])
    if _box(of, whole) != _all_of(whole):
        raise DataError(f"{where} only a part is stacked, expected all its rows. Give the file itself.")
    return filled[0], Piece(file, path, whole)


def _literal(name: str, where: str) -> str:
    """A file's name, in which HDF5 spells % as %%."""
    if "%" in name.replace("%%", ""):
        raise DataError(f"{where}: stacks files by the pattern {shown(name)}, expected the names of files")
    return name.replace("%%", "%")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or "\0" in value:
        raise ValueError("a name")
    os.fsencode(value)  # an error where no file could be called so
    return value


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < _MOST_ROWS for value in values):
        raise ValueError("numbers")
    return tuple(values)


def _box(claim: Any, whole: tuple[int, ...]) -> Box | None:
    """A box as it is claimed: with no axes everything, of that shape; None where it is no box."""
    if claim is None:
        return None
    box = tuple(_numbers(pair) for pair in claim)
    if not all(len(pair) == 2 and pair[0] < pair[1] for pair in box):
        raise ValueError("a box")
    return tuple((first, stop) for first, stop in box) or _all_of(whole)


def _all_of(shape: tuple[int, ...]) -> Box:
    return tuple((0, n) for n in shape)
