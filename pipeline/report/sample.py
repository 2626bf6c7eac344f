"""A bounded sample of a run's rows as they were and as they came out: what a report shows of rows is made from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from kernels.network import Network
from pipeline.features import FEATURES, VALID, reading
from pipeline.report.rows import Encoded
from pipeline.shards.rows import read
from pipeline.shards.shard import Block

__all__ = ["Looking", "Made", "Sample", "drawn", "most_rows"]

_MOST_ROWS, _MOST_READS, _LEAST_READ = 2000, 128, 8
_MOST_BYTES = 2**28  # that are decompressed for it: about a second
_MOST_OPERATIONS = 2e10  # of a decoder in float64: about a second


@dataclass(frozen=True)
class Made:
    """Rows of a shard, and the file that holds their features, in their order."""

    source: Block
    file: Path


@dataclass(frozen=True)
class Looking(Encoded):
    """How rows are looked at, beside how they were encoded.

    Attributes
    ----------
    memory_bytes : int
        Host memory of the whole run.
    """

    memory_bytes: int = 2**31
    seed: int = 0

    @property
    def n_rows(self) -> int:
        """Rows that are looked at, at most; 0 where the model alone takes too much memory."""
        return most_rows(self.model.network, self.memory_bytes)[0]


def most_rows(network: Network, memory_bytes: int) -> tuple[int, int]:
    """How many rows are looked at, at most, of a run with so much memory; and bytes that they take."""
    widest = max(n * m for n, m in pairwise(network.widths))
    if 8 * widest > memory_bytes // 4:  # a layer in float64
        return 0, 0
    row_bytes = 8 * (4 * network.n_inputs + 3 * max(network.widths))
    n_rows = int(min(_MOST_ROWS, memory_bytes // 16 // row_bytes, _MOST_OPERATIONS // (4 * network.n_weights)))
    return n_rows, n_rows * row_bytes


@dataclass(frozen=True)
class Sample:
    """Good rows, and what became of them.

    Attributes
    ----------
    scaled : ndarray of shape (n_rows, n_inputs), float32
    features : ndarray of shape (n_rows, n_features), float32
        As they stand in the files.
    riders : dict of str to ndarray of shape (n_rows,)
        Texts as objects of type str.
    sources, rows : ndarray of shape (n_rows,), int64
        Which of the `Made` each row is of; its number in the dataset.
    stretches : ndarray of shape (n_rows,), int64
        Rows of one number were neighbours.
    """

    scaled: np.ndarray
    features: np.ndarray
    riders: dict[str, np.ndarray]
    sources: np.ndarray
    rows: np.ndarray
    stretches: np.ndarray


def drawn(made: Sequence[Made], looking: Looking) -> Sample | None:
    """Short stretches of rows from all over the data; None without two good ones among them.

    The same for the same seed, rows and memory, however they are cut into parts.

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        When rows cannot be read.
    OSError
        When features cannot.
    """
    places = list(_places(made, looking)) if made and looking.n_rows > 1 else []
    pieces = [
        piece
        for i, here in groupby(places, key=lambda place: place.source)
        for piece in _looked_at(made[i], list(here), looking)
    ]
    if sum(len(piece["rows"]) for piece in pieces) < 2:
        return None
    names = set.intersection(*(set(piece["riders"]) for piece in pieces))
    arrays = ("scaled", "features", "sources", "rows", "stretches")
    riders = {name: np.concatenate([piece["riders"][name] for piece in pieces]) for name in sorted(names)}
    return Sample(riders=riders, **{name: np.concatenate([piece[name] for piece in pieces]) for name in arrays})


class _Place(NamedTuple):
    """Rows to be read together: of which of the `Made`, from which of its rows to which, and of which stretch."""

    source: int
    start: int
    stop: int
    stretch: int


def _places(made: Sequence[Made], looking: Looking) -> Iterator[_Place]:
    firsts = np.cumsum([0, *(len(each.source) for each in made)])
    for number, (start, stop) in enumerate(_stretches(int(firsts[-1]), made, looking)):
        i = int(np.searchsorted(firsts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(firsts[i + 1]))
            if start < end:
                yield _Place(i, start - int(firsts[i]), end - int(firsts[i]), number)
            start, i = end, i + 1


def _stretches(n_rows: int, made: Sequence[Made], looking: Looking) -> Iterator[tuple[int, int]]:
    """Each lies somewhere in a share of its own of all rows."""
    wanted = min(looking.n_rows, n_rows)
    chunk_bytes = max(each.source.shard.chunk_rows * each.source.shard.row_bytes for each in made)
    n_reads = max(1, min(wanted // _LEAST_READ, _MOST_READS, _MOST_BYTES // chunk_bytes))
    rng = np.random.default_rng((looking.seed, 7))
    edges, ends = (np.linspace(0, n, n_reads + 1).astype(int).tolist() for n in (n_rows, wanted))
    for (low, high), length in zip(pairwise(edges), np.diff(ends).tolist(), strict=True):
        n = min(high - low, length)
        first = low + int(rng.integers(0, high - low - n + 1))
        yield first, first + n


def _looked_at(made: Made, places: Sequence[_Place], looking: Looking) -> Iterator[dict[str, Any]]:
    """The good ones of each place's rows, by what `Sample` calls it; of a shard that cannot be read there are none."""
    with reading(made.file) as file:  # once: opening takes longer than reading
        beside = [name for name in file if name not in (FEATURES, VALID) and isinstance(file[name], h5py.Dataset)]
        for place in places:
            here = slice(place.start, place.stop)
            valid = file[VALID][here]
            if valid.any():
                riders = {name: _values(file[name], here)[valid] for name in beside if file[name].ndim == 1}
                yield {
                    **_as_they_were(made.source, place, valid, looking),
                    "features": file[FEATURES][here][valid].astype(np.float32, copy=False),
                    "riders": riders,
                }


def _as_they_were(source: Block, place: _Place, valid: np.ndarray, looking: Looking) -> dict[str, np.ndarray]:
    """A place's good rows, scaled as they were encoded, and where they stand."""
    block = Block(source.shard, source.start + place.start, source.start + place.stop)
    rows = looking.cleaned(block, read(block))
    numbers = np.arange(block.start, block.stop)[valid]
    alike = {"sources": place.source, "stretches": place.stretch}
    scaled = looking.model.scaler.transform(rows[valid])
    return {"scaled": scaled, "rows": numbers, **{name: np.full(len(numbers), n) for name, n in alike.items()}}


def _values(item: h5py.Dataset, here: slice) -> np.ndarray:
    is_text = h5py.check_string_dtype(item.dtype)
    return np.asarray((item.asstr("utf-8", "replace") if is_text else item)[here])
