"""The rows of finished runs as features and as scaled raw columns, both in one pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.columns import Columns
from pipeline.errors import DataError, counted, shown
from pipeline.features import Features
from pipeline.formats import missing_value
from pipeline.model import Model
from pipeline.scan.cleaning import Cleaning
from pipeline.shards.columns import reordered
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard, with_offset
from pipeline.shards.vet import Wanted, vet

__all__ = ["LEFT_OUT", "Piece", "Rows", "classes_of", "held_out", "labels_of", "pieces", "present"]

_HELD_OUT = 0.2


def labels_of(directory: str, run: Features, name: str) -> np.ndarray:
    """What rode along under a name, one for each row: numbers or text.

    Raises
    ------
    DataError
        When nothing did, or what did is neither.
    """
    if name not in run.riders:
        left_out = run.manifest.get("left_out", {})
        why = f"{name} was left out ({shown(left_out[name])})" if name in left_out else f"left out: {sorted(left_out)}"
        raise DataError(
            f"features={shown(directory)}: no dataset {name!r} rides along, found {sorted(run.riders)}; {shown(why)}. "
            "Name the labels with --labels; shardpress run --carry GROUP/NAME has others ride along."
        )
    found = run.riders[name].compute()
    if name in run.categories:
        found = _meant(found, run.categories[name])
    if found.dtype.kind not in "biufOSU":
        raise DataError(f"features={shown(directory)} dataset={name}: {found.dtype}, expected numbers or text")
    if found.dtype.kind == "f":
        odd = np.flatnonzero(np.isfinite(found) & (found != np.floor(found)) | np.isinf(found))
        if len(odd):
            raise DataError(
                f"features={shown(directory)} dataset={name}: {found[odd[0]]} in row {odd[0]}; "
                f"{counted(len(odd), 'row')} without a whole number, expected a number "
                "or text for each class. Name others with --labels."
            )
    return found


def _meant(codes: np.ndarray, categories: np.ndarray) -> np.ndarray:
    """What codes stand for, since each run has its own codes; anything for -1, which `present` leaves out."""
    if not len(categories):
        return codes
    is_whole = categories.dtype.kind in "biu"
    return (categories if is_whole else categories.astype(object))[codes]  # which holds each text once


def present(run: Features, name: str) -> np.ndarray:
    """Which rows have a label: where some shards lack it, a mask rides along; of codes, -1 is none."""
    if name in run.categories:
        return np.asarray(run.riders[name].compute()) >= 0
    # Where there was a dataset of this name before, the mask's has an underscore more.
    beside = [each for other, each in run.riders.items() if other.rstrip("_") == f"{name}_present"]
    masks = [each.compute() for each in beside if each.dtype == bool]
    if masks:
        return np.asarray(np.logical_and.reduce(masks))
    found = run.riders[name]
    if found.dtype.kind != "i":
        return np.ones(len(found), dtype=bool)
    return np.asarray(found.compute() != missing_value(found.dtype))  # it stands for one that could not be read


def classes_of(labels: Sequence[np.ndarray]) -> tuple[list[object], np.ndarray]:
    """The classes in order, and each row's number among them: LEFT_OUT where the label is NaN or an empty text.

    Text of any storage is the same text, and a number the same number in any dtype.
    """
    numbers: dict[object, int] = {}
    places = []
    for values in labels:
        found, inverse = _distinct(values)
        places.append(np.array([numbers.setdefault(value, len(numbers)) for value in found], dtype=np.int64)[inverse])
    classes = [value for value in numbers if value is not None]
    rank = {value: i for i, value in enumerate(sorted(classes, key=lambda value: (str(type(value)), value)))}
    order = np.array([LEFT_OUT if value is None else rank[value] for value in numbers], dtype=np.int64)
    return sorted(rank, key=rank.__getitem__), order[np.concatenate(places)]


def _distinct(values: np.ndarray) -> tuple[list[object], np.ndarray]:
    """The values, plain ones, with None for a missing one, and which of them stands where."""
    if values.dtype.kind in "biuf":
        found, inverse = np.unique(values, return_inverse=True)
        return [None if value != value else int(value) for value in found.tolist()], inverse
    numbers: dict[object, int] = {}  # no array of text: its width would be that of the longest one
    inverse = np.fromiter((numbers.setdefault(value, len(numbers)) for value in values.tolist()), np.int64, len(values))
    texts = (value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in numbers)
    return [text.strip() or None for text in texts], inverse


def held_out(codes: np.ndarray, seed: int) -> np.ndarray:
    """Which rows test: a fifth of each class, one at least of a class of two or more, never all."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(codes != LEFT_OUT))
    order = order[np.argsort(codes[order], kind="stable")]
    sizes = np.bincount(codes[order])
    n_wanted = np.where(sizes > 1, np.maximum(1, np.round(_HELD_OUT * sizes)), 0)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    is_test = np.zeros(len(codes), dtype=bool)
    is_test[order[place < n_wanted[codes[order]]]] = True
    return is_test


LEFT_OUT = -1
_MOST_ROWS = 65536
_CLOSE = 0.01  # processors and devices round features differently, but not by so much


@dataclass(frozen=True)
class Piece:
    """The same rows as they were and as they came out, the number of the first of them, and what stood for no value."""

    raw: Block
    encoded: Block
    first: int
    missing: float | None = None


@dataclass(frozen=True)
class Rows:
    """Rows of one or two runs, numbered through.

    Attributes
    ----------
    pieces : tuple of Piece
    model : Model
    codes : ndarray of shape (n_rows,), int64
        The class of each row, LEFT_OUT for one that takes no part.
    is_test : ndarray of shape (n_rows,), bool
    """

    pieces: tuple[Piece, ...]
    model: Model
    codes: np.ndarray
    is_test: np.ndarray

    @property
    def train(self) -> np.ndarray:
        """Numbers of the training rows."""
        return np.flatnonzero((self.codes != LEFT_OUT) & ~self.is_test)

    @property
    def test(self) -> np.ndarray:
        """Numbers of the test rows."""
        return np.flatnonzero((self.codes != LEFT_OUT) & self.is_test)

    def read(
        self, wanted: np.ndarray, order: Sequence[int] | None = None, advance: Callable[[int], object] = lambda n: None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Row numbers, features and scaled raw rows (both float32), piece by piece.

        Parameters
        ----------
        wanted : ndarray of shape (n_rows,), bool
            Which rows; a piece without any is not read.
        order : sequence of int, optional
            Of the pieces.
        advance : callable
            Told the number of rows that have been dealt with.

        Raises
        ------
        DataError
            When the raw rows are not those that the features were made from.
        """
        for i in range(len(self.pieces)) if order is None else order:
            piece = self.pieces[i]
            here = np.flatnonzero(wanted[piece.first : piece.first + len(piece.raw)])
            if len(here):
                block = replace(piece.raw, shard=with_offset(piece.raw.shard, self.model.offset))
                raw = Cleaning(self.model.scaler, piece.missing).cleaned(block, read(block))[here]
                encoded = read(piece.encoded)[here]
                _check(self.model, piece, raw[:1], encoded[:1])
                yield piece.first + here, encoded, self.model.scaler.transform(raw)
            advance(len(here))


def pieces(found: Features, directory: str, columns: Columns, most_bytes: int, first: int = 0) -> tuple[Piece, ...]:
    """A run's rows in pieces of at most so many bytes of scaled raw rows, the first one numbered `first`.

    The columns are read in the order of the model's `columns` if the run has matched them by name.
    """
    cut: list[Piece] = []
    config = found.manifest["config"]
    missing = config.get("missing_value")
    expected = columns if config.get("match_columns") == "name" else None
    for part in found.manifest["parts"]:
        raw = _shard(part["path"], part["dataset"], config.get("orientation"), expected)
        encoded = _shard(str(Path(directory) / part["file"]), "features", None)
        size = max(1, min(_MOST_ROWS, most_bytes // (4 * raw.n_inputs)))
        for start in range(0, part["n_rows"], size):
            stop, offset = min(start + size, part["n_rows"]), part["start"]
            blocks = Block(raw, offset + start, offset + stop), Block(encoded, start, stop)
            cut.append(Piece(*blocks, first + start, missing))
        first += part["n_rows"]
    return tuple(cut)


@cache
def _shard(path: str, dataset: str, orientation: str | None, columns: Columns | None = None) -> Shard:
    shard = vet(Path(path), Wanted(dataset, orientation))
    return shard if columns is None else reordered(shard, columns)


def _check(model: Model, piece: Piece, raw: np.ndarray, encoded: np.ndarray) -> None:
    """Whether a raw row is, within its range or clipped to it, the one that its features were made from."""
    low, high = (edge.astype(np.float64) for edge in (model.scaler.minimum, model.scaler.maximum))
    clipped = np.clip(raw.astype(np.float64), low, high)
    if not any(np.allclose(model.encode(rows), encoded, atol=_CLOSE) for rows in (raw, clipped)):
        raise DataError(
            f"{piece.raw}: not the rows that file={shown(piece.encoded.shard.path)} was made from, expected them "
            "unchanged. Type shardpress run again."
        )
