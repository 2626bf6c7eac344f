"""The rows of finished runs as features and as scaled raw columns, both in one pass over the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.columns import Columns
from pipeline.errors import DataError, shown
from pipeline.features import Features
from pipeline.model import Model
from pipeline.scan.scaler import Cleaning
from pipeline.shards.columns import reordered
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard, with_offset
from pipeline.shards.vet import Wanted, vet

__all__ = ["LEFT_OUT", "Piece", "Rows", "pieces"]

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
