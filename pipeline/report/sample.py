"""A bounded sample of a run's rows and their features, from which the report is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import prod
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from kernels.network import Network
from pipeline.features import FEATURES, VALID, reading
from pipeline.report.rows import Encoded
from pipeline.shards.rows import read
from pipeline.shards.shard import Block

__all__ = ["Looking", "Made", "Sample", "drawn", "most_rows"]

_MAX_ROWS = 2000
_MAX_READS = 128
_MIN_ROWS_PER_READ = 8
_MAX_DECOMPRESSED_BYTES = 2**28  # about one second
_MAX_OPERATIONS = 2e10  # of a decoder in float64: about one second
_MAX_SPAN_BYTES = 2**22  # of a dataset: up to this, one large read takes less time than many small ones


@dataclass(frozen=True)
class Made:
    """Rows of a shard, and the file that holds their features in the same order."""

    source: Block
    file: Path


@dataclass(frozen=True)
class Looking(Encoded):
    """How rows are sampled, in addition to how they were encoded.

    Attributes
    ----------
    memory_bytes : int
        Host memory of the whole run.
    """

    memory_bytes: int = 2**31
    seed: int = 0

    @property
    def n_rows(self) -> int:
        """Largest number of rows in the sample; 0 if the model alone takes too much memory."""
        return most_rows(self.model.network, self.memory_bytes)[0]


def most_rows(network: Network, memory_bytes: int) -> tuple[int, int]:
    """Return the largest number of rows in a sample, and the bytes that they take.

    Parameters
    ----------
    memory_bytes : int
        Host memory of the whole run.
    """
    largest_layer = max(n * m for n, m in pairwise(network.widths))
    if 8 * largest_layer > memory_bytes // 4:  # in float64
        return 0, 0
    row_bytes = 8 * (4 * network.n_inputs + 3 * max(network.widths))
    fits_in_memory = memory_bytes // 16 // row_bytes
    fits_in_time = _MAX_OPERATIONS // (4 * network.n_weights)
    n_rows = int(min(_MAX_ROWS, fits_in_memory, fits_in_time))
    return n_rows, n_rows * row_bytes


@dataclass(frozen=True)
class Sample:
    """Good rows and their features.

    Attributes
    ----------
    scaled : ndarray of shape (n_rows, n_inputs), float32
    features : ndarray of shape (n_rows, n_features), float32
        As they are stored in the files.
    riders : dict of str to ndarray of shape (n_rows,)
        Datasets that were copied along, such as labels; texts are objects of type str.
    sources : ndarray of shape (n_rows,), int64
        Index of the `Made` that each row belongs to.
    rows : ndarray of shape (n_rows,), int64
        Number of each row in its dataset.
    stretches : ndarray of shape (n_rows,), int64
        Rows with the same number were neighbours.
    """

    scaled: np.ndarray
    features: np.ndarray
    riders: dict[str, np.ndarray]
    sources: np.ndarray
    rows: np.ndarray
    stretches: np.ndarray


def drawn(made: Sequence[Made], looking: Looking) -> Sample | None:
    """Return short stretches of rows from all over the data; None if fewer than two of them are good.

    The sample is the same for the same seed, rows and memory, no matter how the rows are cut into parts.

    Raises
    ------
    DataError, ReadFailed, NotPermitted, SystemLimit
        When rows cannot be read.
    OSError
        When features cannot be read.
    """
    if not made or looking.n_rows < 2:
        return None
    pieces = []
    for source, places in groupby(_places(made, looking), key=lambda place: place.source):
        piece = _sample_of_source(made[source], list(places), looking)
        if piece is not None:
            pieces.append(piece)
    if sum(len(piece.rows) for piece in pieces) < 2:
        return None
    return _joined(pieces)


def _joined(pieces: Sequence[Sample]) -> Sample:
    """Return one sample of several, with the riders that all of them have."""
    names = set.intersection(*(set(piece.riders) for piece in pieces))
    return Sample(
        scaled=np.concatenate([piece.scaled for piece in pieces]),
        features=np.concatenate([piece.features for piece in pieces]),
        riders={name: np.concatenate([piece.riders[name] for piece in pieces]) for name in sorted(names)},
        sources=np.concatenate([piece.sources for piece in pieces]),
        rows=np.concatenate([piece.rows for piece in pieces]),
        stretches=np.concatenate([piece.stretches for piece in pieces]),
    )


# -- which rows ----------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Rows `start` to `stop` of one `Made`, which are read together, and the number of their stretch."""

    source: int
    start: int
    stop: int
    stretch: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def n_rows(self) -> int:
        return self.stop - self.start


def _places(made: Sequence[Made], looking: Looking) -> Iterator[_Place]:
    """Cut stretches of all rows where one `Made` ends and the next one begins."""
    firsts = np.cumsum([0, *(len(each.source) for each in made)]).tolist()
    for number, (start, stop) in enumerate(_stretches(firsts[-1], made, looking)):
        first = int(np.searchsorted(firsts, start, side="right")) - 1
        for source in range(first, len(made)):
            if firsts[source] >= stop:
                break
            begin = max(start, firsts[source])
            end = min(stop, firsts[source + 1])
            if begin < end:
                yield _Place(source, begin - firsts[source], end - firsts[source], number)


def _stretches(n_rows: int, made: Sequence[Made], looking: Looking) -> Iterator[tuple[int, int]]:
    """Cut all rows into equal ranges, and yield the first and last row of a stretch at a random place in each."""
    n_wanted = min(looking.n_rows, n_rows)
    chunk_bytes = max(each.source.shard.chunk_rows * each.source.shard.row_bytes for each in made)
    n_reads = min(n_wanted // _MIN_ROWS_PER_READ, _MAX_READS, _MAX_DECOMPRESSED_BYTES // chunk_bytes)
    n_reads = max(1, n_reads)
    rng = np.random.default_rng((looking.seed, 7))
    edges = np.linspace(0, n_rows, n_reads + 1).astype(int).tolist()
    lengths = np.diff(np.linspace(0, n_wanted, n_reads + 1).astype(int)).tolist()
    for (low, high), length in zip(pairwise(edges), lengths, strict=True):
        n = min(high - low, length)
        first = low + int(rng.integers(0, high - low - n + 1))
        yield first, first + n


# -- reading them --------------------------------------------------------------------------------------------------


def _sample_of_source(made: Made, places: Sequence[_Place], looking: Looking) -> Sample | None:
    """Return the good rows of some places of one source; None if there are none, as in a shard that is unreadable."""
    with reading(made.file) as file:
        flags = _values(file[VALID], places)
        places = [place for place, valid in zip(places, flags, strict=True) if valid.any()]
        if not places:
            return None
        is_good = np.concatenate([valid for valid in flags if valid.any()])
        features = np.concatenate(_values(file[FEATURES], places))[is_good]
        riders = {name: np.concatenate(_values(item, places))[is_good] for name, item in _riders(file).items()}
    numbers = np.concatenate([np.arange(place.start, place.stop) for place in places])
    stretches = np.repeat([place.stretch for place in places], [place.n_rows for place in places])
    return Sample(
        scaled=_scaled_rows(made.source, places, is_good, looking),
        features=features.astype(np.float32, copy=False),
        riders=riders,
        sources=np.full(len(features), places[0].source),
        rows=made.source.start + numbers[is_good],
        stretches=stretches[is_good],
    )


def _riders(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the datasets of a part that have one value per row, in addition to its features."""
    others = {name: file[name] for name in file if name not in (FEATURES, VALID)}
    return {name: item for name, item in others.items() if isinstance(item, h5py.Dataset) and item.ndim == 1}


def _scaled_rows(block: Block, places: Sequence[_Place], is_good: np.ndarray, looking: Looking) -> np.ndarray:
    """Return the good input rows of some places of a block, scaled as they were encoded."""
    blocks = [Block(block.shard, block.start + place.start, block.start + place.stop) for place in places]
    rows = np.concatenate([read(each) for each in blocks])
    cleaned = looking.cleaned(block, rows)
    return looking.model.scaler.transform(cleaned[is_good])


def _values(item: h5py.Dataset, places: Sequence[_Place]) -> list[np.ndarray]:
    """Return a dataset's values at each place: texts as objects of type str."""
    if h5py.check_string_dtype(item.dtype):
        texts = item.asstr("utf-8", "replace")
        return [np.asarray(texts[place.rows]) for place in places]
    first = places[0].start
    last = places[-1].stop
    row_bytes = item.dtype.itemsize * prod(item.shape[1:])
    if (last - first) * row_bytes > _MAX_SPAN_BYTES:
        return [np.asarray(item[place.rows]) for place in places]
    span = np.asarray(item[first:last])
    return [span[place.start - first : place.stop - first] for place in places]
