"""Sample of the rows of a run and their features, for the figures of the report."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from shardpress.errors import DataError, printable
from shardpress.features import FAILURES, reading
from shardpress.hdf5.shard import Block
from shardpress.report.rows import Preprocessing, check_failure
from shardpress.result import ERROR, FEATURES, VALID
from shardpress.rowfacts import in_ranges
from shardpress.shards.conversion import Conversion
from shardpress_kernels.network import Network

_MAX_ROWS = 2000
_MAX_READS = 128
_MIN_ROWS_PER_READ = 8
_FEW_READS = 32
_LARGE_CHUNK = 2**20  # bytes
_MAX_DECOMPRESSED_BYTES = 2**28  # takes about one second
_MAX_OPERATIONS = 2e10  # a decoder needs about one second for this number of operations in float64


@dataclass(frozen=True)
class PartSource:
    """Rows of a shard, and their features."""

    block: Block
    file: Path  # contains the features of these rows in the same order
    first: int  # position of the first row in the file
    trained: np.ndarray  # bool (n_rows,), the rows that trained the model
    # Row ranges of the shard whose values could not be read, by the names of the extras.
    lost: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleSpec(Preprocessing):
    """Options of sampling, in addition to the preprocessing."""

    memory_bytes: int = 2**31  # host memory budget of the whole run
    seed: int = 0
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)  # as in `Conversion`
    is_clipped: bool = True  # whether the scaled rows are those that were encoded, or those before the clipping

    @property
    def n_rows(self) -> int:
        """Maximum number of rows in the sample; 0 if the model alone takes too much memory."""
        return largest_sample(self.model.network, self.memory_bytes)[0]


def largest_sample(network: Network, memory_bytes: int) -> tuple[int, int]:
    """Return the maximum number of rows in a sample, and the memory that they take in bytes.

    `memory_bytes` is the host memory budget of the whole run.
    """
    largest_layer = max(n * m for n, m in pairwise(network.widths))
    if 8 * largest_layer > memory_bytes // 4:  # layers are computed in float64
        return 0, 0
    row_bytes = 8 * (4 * network.n_inputs + 3 * max(network.widths))
    fits_in_memory = memory_bytes // 16 // row_bytes
    fits_in_time = _MAX_OPERATIONS // (4 * network.n_weights)
    n_rows = int(min(_MAX_ROWS, fits_in_memory, fits_in_time))
    return n_rows, n_rows * row_bytes


@dataclass(frozen=True)
class Sample:
    """Good rows and their features. A stretch is a range of neighbouring rows of the input."""

    scaled: np.ndarray  # float32 (n_rows, n_inputs)
    features: np.ndarray  # float32 (n_rows, n_features), converted from the stored dtype
    extras: dict[str, np.ndarray]  # (n_rows,); strings are Python objects of type str
    sources: np.ndarray  # int64 (n_rows,), the index of the `PartSource` of each row
    rows: np.ndarray  # int64 (n_rows,), the number of each row in its dataset
    stretches: np.ndarray  # int64 (n_rows,), the number of the stretch of each row, ascending
    trained: np.ndarray  # bool (n_rows,), the rows that trained the model
    lost: dict[str, np.ndarray] = field(default_factory=dict)  # bool (n_rows,), values that could not be read


def draw_sample(
    parts: Sequence[PartSource], spec: SampleSpec, stretches: Sequence[tuple[int, int]] | None = None
) -> Sample | None:
    """Return short stretches of rows, spread over the data, or None if fewer than two rows are good.

    The sample depends on the rows, the seed and the memory budget, but not on how the rows are divided into parts.

    Parameters
    ----------
    parts : sequence of PartSource
        All parts, in the order of their rows.
    spec : SampleSpec
    stretches : sequence of (int, int), optional
        Stretches to read instead of randomly chosen ones, for example held-out rows: sorted and disjoint pairs of a
        first row and the row after the last one, numbered over all parts. The caller limits their number (see
        `max_stretches`) and their rows (see `SampleSpec.n_rows`).
    """
    if not parts or spec.n_rows < 2:
        return None
    first_rows = np.cumsum([0, *(len(part.block) for part in parts)]).tolist()
    if stretches is None:
        stretches = list(_random_stretches(first_rows[-1], parts, spec))
    samples = []
    for path, group in groupby(_places(first_rows, stretches), key=lambda place: parts[place.part].file):
        try:
            with reading(path) as file:
                for i, places in groupby(group, key=lambda place: place.part):
                    sample = _sample_of_part(file, parts[i], list(places), spec)
                    if sample is not None:
                        samples.append(sample)
        except FAILURES as error:
            check_failure(error, path)
            raise DataError(f"file={printable(path)}: cannot be read: {error}") from error
    if sum(len(sample.rows) for sample in samples) < 2:
        return None
    return _joined(samples)


def _joined(samples: Sequence[Sample]) -> Sample:
    """Join several samples. The result includes only the extra datasets that all samples have."""
    join = np.concatenate
    names = set.intersection(*(set(sample.extras) for sample in samples))
    return Sample(
        scaled=join([sample.scaled for sample in samples]),
        features=join([sample.features for sample in samples]),
        extras={name: join([sample.extras[name] for sample in samples]) for name in sorted(names)},
        sources=join([sample.sources for sample in samples]),
        rows=join([sample.rows for sample in samples]),
        stretches=join([sample.stretches for sample in samples]),
        trained=join([sample.trained for sample in samples]),
        lost=_joined_losses(samples),
    )


def _joined_losses(samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    """Join the masks of lost values. A sample without a mask of an extra has lost no value of it."""
    names = sorted({name for sample in samples for name in sample.lost})
    nothing = [np.zeros(len(sample.rows), dtype=bool) for sample in samples]
    return {
        name: np.concatenate([sample.lost.get(name, none) for sample, none in zip(samples, nothing, strict=True)])
        for name in names
    }


# -- selection of rows ---------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Rows `start` to `stop` of one part, which belong to the same stretch and are read together."""

    part: int
    start: int
    stop: int
    stretch: int


def _places(first_rows: Sequence[int], stretches: Sequence[tuple[int, int]]) -> Iterator[_Place]:
    """Yield the rows of all stretches, divided at the boundaries between parts.

    `first_rows` contains the first row of each part, and the number of rows at the end.
    """
    for number, (start, stop) in enumerate(stretches):
        first_part = bisect_right(first_rows, start) - 1
        end_part = bisect_left(first_rows, stop)
        for i in range(first_part, end_part):
            offset = first_rows[i]
            begin = max(start, offset)
            end = min(stop, first_rows[i + 1])
            if begin < end:
                yield _Place(i, begin - offset, end - offset, number)


def _random_stretches(n_rows: int, parts: Sequence[PartSource], spec: SampleSpec) -> Iterator[tuple[int, int]]:
    """Divide the rows into equal ranges, and yield one stretch at a random position in each range.

    A stretch is a pair of numbers: its first row, and the row after its last one.
    """
    n_wanted = min(spec.n_rows, n_rows)
    n_stretches = _n_stretches(n_wanted, parts)
    rng = np.random.default_rng((spec.seed, 7))
    lengths = np.diff(_edges(n_wanted, n_stretches)).tolist()
    for (low, high), length in zip(pairwise(_edges(n_rows, n_stretches)), lengths, strict=True):
        n = min(high - low, length)
        first = low + int(rng.integers(0, high - low - n + 1))
        yield first, first + n


def held_out_stretches(rows: np.ndarray, n_wanted: int, max_stretches: int = _MAX_READS) -> list[tuple[int, int]]:
    """Choose stretches of held-out rows for `draw_sample`, evenly spread over all held-out rows.

    `rows` (n_rows,), int64, are their sorted numbers, counted over all parts. They can include bad rows. Return the
    first row of each stretch, and the row after its last one; all stretches together have at most `n_wanted` rows.
    """
    n_most = min(max_stretches, n_wanted)
    if n_most < 1 or not len(rows):
        return []
    length = n_wanted // n_most
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    pieces = [run[start : start + length] for run in runs for start in range(0, len(run), length)]
    chosen = np.linspace(0, len(pieces) - 1, min(n_most, len(pieces))).astype(int)
    return [(int(pieces[i][0]), int(pieces[i][-1]) + 1) for i in chosen]


def _edges(n: int, n_ranges: int) -> list[int]:
    """Return the edges that divide `n` rows into equal ranges."""
    return np.linspace(0, n, n_ranges + 1).astype(int).tolist()


def _n_stretches(n_rows: int, parts: Sequence[PartSource]) -> int:
    """Return the number of random stretches for a sample of `n_rows` rows."""
    return max(1, min(n_rows // _MIN_ROWS_PER_READ, max_stretches(parts)))


def max_stretches(parts: Sequence[PartSource], max_reads: int = _MAX_READS) -> int:
    """Return the largest number of stretches that can be read from parts in about a second, at least 1.

    If chunks are large, no more than an eighth of the rows are decompressed, unless there would be too few stretches.
    """
    shards = [part.block.shard for part in parts]
    chunk_bytes = max(shard.chunk_rows * shard.row_bytes for shard in shards)
    n_most = min(max_reads, _MAX_DECOMPRESSED_BYTES // chunk_bytes)
    if chunk_bytes >= _LARGE_CHUNK and any(shard.band_bytes for shard in shards):
        n_bytes = sum(len(part.block) * part.block.shard.row_bytes for part in parts)
        n_most = min(n_most, max(_FEW_READS, n_bytes // 8 // chunk_bytes))
    return max(1, n_most)


# -- reading -------------------------------------------------------------------------------------------------------


def _sample_of_part(file: h5py.File, part: PartSource, places: Sequence[_Place], spec: SampleSpec) -> Sample | None:
    """Return the good rows at some places of one source, or None if no row is good."""
    numbers = np.concatenate([np.arange(place.start, place.stop) for place in places])
    stretches = np.repeat([place.stretch for place in places], [place.stop - place.start for place in places])
    is_good = file[VALID][part.first + numbers]
    numbers = numbers[is_good]
    stretches = stretches[is_good]
    if not len(numbers):
        return None
    features = file[FEATURES][part.first + numbers]
    extras = {name: values_of(item, part.first + numbers) for name, item in _extras(file).items()}
    rows = part.block.start + numbers
    return Sample(
        scaled=_scaled_rows(part.block, numbers, stretches, spec),
        features=features.astype(np.float32, copy=False),
        extras=extras,
        sources=np.full(len(features), places[0].part),
        rows=part.block.shard.first_row + rows,
        stretches=stretches,
        trained=part.trained[numbers],
        lost={name: in_ranges(rows, ranges) for name, ranges in part.lost.items()},
    )


def _extras(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the extra datasets of a part that have one value per row."""
    others = {name: file[name] for name in file if name not in (FEATURES, VALID, ERROR)}
    return {name: item for name, item in others.items() if isinstance(item, h5py.Dataset) and item.ndim == 1}


def values_of(item: h5py.Dataset, numbers: np.ndarray) -> np.ndarray:
    """Return values of a dataset. Strings are Python objects of type str."""
    if h5py.check_string_dtype(item.dtype):
        return np.asarray(item.asstr("utf-8", "replace")[numbers])
    return np.asarray(item[numbers])


def _scaled_rows(block: Block, numbers: np.ndarray, stretches: np.ndarray, spec: SampleSpec) -> np.ndarray:
    """Return some input rows of a block, scaled in the same way as for encoding. Each stretch is read at once.

    Stretches without good rows are not read, because they can be damaged.
    """
    conversion = Conversion(spec.orders, spec.model.offset, spec.model.preparation)
    pieces = []
    for some in np.split(numbers, np.flatnonzero(np.diff(stretches)) + 1):
        first = block.start + int(some[0])
        rows = conversion.read(Block(block.shard, first, block.start + int(some[-1]) + 1))
        pieces.append(rows[some - some[0]])
    filled = spec.filled(block, np.concatenate(pieces))
    with np.errstate(over="ignore"):  # values far outside the range
        return spec.model.scaler.scaled(spec.clipped(filled) if spec.is_clipped else filled)
