"""Sample of the rows of a run and their features, for the figures of the report."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from shardpress.base.errors import DataError, printable
from shardpress.hdf5.shard import Block
from shardpress.report.recompute import Preprocessing, check_failure
from shardpress.result.features import FAILURES, in_ranges, reading
from shardpress.result.finished import ERROR, FEATURES, VALID
from shardpress.training.order import spread_rows
from shardpress_kernels.network import Network

_MAX_ROWS = 2000
_MAX_LABELLED = 4000
_MAX_FITTED = 10_000
_MAX_CANDIDATES = 2**18  # rows among which some are chosen; their labels are read in a fraction of a second
_MAX_READS = 128
_MAX_GAP = 8  # rows between two rows that are read at once
_MIN_ROWS_PER_READ = 8
_FEW_READS = 32
_LARGE_CHUNK = 2**20  # bytes
_MAX_DECOMPRESSED_BYTES = 2**28  # takes about one second
_MAX_OPERATIONS = 2e10  # a decoder needs about one second for this number of operations in float64
_MAX_PRODUCTS = 5e9  # rows x columns x components; the components of wide rows then take about ten seconds
_LABELLED = 8  # random stream of the rows with a label; it differs from that of the sample
_FITTED = 10  # random stream of the rows of components


@dataclass(frozen=True)
class PartSource:
    """Rows of a shard, and their features."""

    block: Block
    file: Path  # contains the features of these rows in the same order
    first: int  # position of the first row in the file
    trained: np.ndarray  # bool (n_rows,), the rows that cannot test a supervised model
    fitted: np.ndarray  # bool (n_rows,), the rows that trained the model, without validation rows
    # Row ranges of the shard whose values could not be read, by the names of the extras.
    lost: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleSpec(Preprocessing):
    """Options of sampling, in addition to the preprocessing."""

    memory_bytes: int = 2**31  # host memory budget of the whole run
    seed: int = 0
    is_clipped: bool = True  # whether the scaled rows are those that were encoded, or those before the clipping

    @property
    def sizes(self) -> _SampleSizes:
        return sizes_of(self.model.network, self.memory_bytes)


class _SampleSizes(NamedTuple):
    """Maximum numbers of rows; 0 if the model alone takes too much memory."""

    n_rows: int = 0  # of a sample of all rows
    n_labelled: int = 0  # rows with a label, that train and test linear models
    n_fitted: int = 0  # training rows of principal components
    n_bytes: int = 0  # of memory


def sizes_of(network: Network, memory_bytes: int) -> _SampleSizes:
    """Return the sizes for a network, given the host memory budget of the whole run."""
    largest_layer = max(n * m for n, m in pairwise(network.widths))
    if 8 * largest_layer > memory_bytes // 4:  # layers are computed in float64
        return _SampleSizes()
    n_inputs = network.n_inputs
    row_bytes = 8 * (4 * n_inputs + 3 * max(network.widths))
    fits_in_time = _MAX_OPERATIONS // (4 * network.n_weights)
    n_rows = int(min(_MAX_ROWS, memory_bytes // 16 // row_bytes, fits_in_time))
    # The time of a linear model grows with the cube of the rows or of the columns, whichever are fewer.
    most_labelled = _MAX_LABELLED if n_inputs <= _MAX_ROWS else _MAX_ROWS
    n_labelled = min(most_labelled, memory_bytes // 4 // row_bytes)
    fitted_bytes = 8 * (n_inputs + network.n_outputs)  # float32, twice while they are joined
    fits_in_time = _MAX_PRODUCTS // (n_inputs * network.n_features)
    n_fitted = int(min(_MAX_FITTED, memory_bytes // 4 // fitted_bytes, fits_in_time))
    n_bytes = n_rows * row_bytes + max(n_labelled * row_bytes, n_fitted * fitted_bytes)
    return _SampleSizes(n_rows, n_labelled, n_fitted, n_bytes)


@dataclass(frozen=True)
class Sample:
    """Good rows and their features. A stretch is a range of neighbouring rows of the input."""

    scaled: np.ndarray  # float32 (n_rows, n_inputs)
    features: np.ndarray  # float32 (n_rows, n_features), converted from the stored dtype
    extras: dict[str, np.ndarray]  # (n_rows,); strings are Python objects of type str
    sources: np.ndarray  # int64 (n_rows,), the index of the `PartSource` of each row
    rows: np.ndarray  # int64 (n_rows,), the number of each row in its dataset
    stretches: np.ndarray  # int64 (n_rows,), the number of the stretch of each row, ascending
    trained: np.ndarray  # bool (n_rows,), as in `PartSource`
    fitted: np.ndarray  # bool (n_rows,), as in `PartSource`
    lost: dict[str, np.ndarray] = field(default_factory=dict)  # bool (n_rows,), values that could not be read


def draw_sample(
    parts: Sequence[PartSource], spec: SampleSpec, stretches: Sequence[np.ndarray] | None = None
) -> Sample | None:
    """Return short stretches of rows, spread over the data, or None if fewer than two rows are good.

    The sample depends on the rows, the seed and the memory budget, but not on how the rows are divided into parts.

    Parameters
    ----------
    parts : sequence of PartSource
        All parts, in the order of their rows.
    spec : SampleSpec
    stretches : sequence of ndarray of int64, optional
        Rows to read instead of randomly chosen ones, for example held-out rows: numbered over all parts, and sorted.
        The caller limits the number of stretches (see `max_stretches`) and of their rows (see `SampleSpec.sizes`).
    """
    if not parts or spec.sizes.n_rows < 2:
        return None
    if stretches is None:
        stretches = _stretches_of_sample(parts, spec)
    if not stretches:
        return None
    numbers = np.concatenate(stretches)
    stretch_of = np.repeat(np.arange(len(stretches)), [len(stretch) for stretch in stretches])
    samples = []
    for path, group in groupby(_by_part(parts, numbers), key=lambda some: parts[some.part].file):
        with _reading(path) as file:
            datasets = _PartDatasets(file[FEATURES], file[VALID][:], _extras(file))
            for some in group:
                sample = _sample_of_part(datasets, parts[some.part], some, stretch_of[some.positions], spec)
                if sample is not None:
                    samples.append(sample)
    if sum(len(sample.rows) for sample in samples) < 2:
        return None
    return _joined(samples)


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a part. Raise `DataError` if it cannot be read, or the error of the storage or the system."""
    try:
        with reading(path) as file:
            yield file
    except FAILURES as error:
        check_failure(error, path)
        raise DataError(f"file={printable(path)}: cannot be read: {error}") from error


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
        fitted=join([sample.fitted for sample in samples]),
        lost=_joined_losses([sample.lost for sample in samples], [len(sample.rows) for sample in samples]),
    )


def _joined_losses(losses: Sequence[Mapping[str, np.ndarray]], sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Join masks of lost values, given the numbers of rows. Without a mask of an extra, no value of it is lost."""
    names = sorted({name for lost in losses for name in lost})
    return {
        name: np.concatenate([lost.get(name, np.zeros(n, dtype=bool)) for lost, n in zip(losses, sizes, strict=True)])
        for name in names
    }


# -- selection of rows ---------------------------------------------------------------------------------------------


class _PartRows(NamedTuple):
    """Some of the chosen rows, which are in one part."""

    part: int
    positions: slice  # among all chosen rows
    rows: np.ndarray  # int64, the rows within the part


def _by_part(parts: Sequence[PartSource], numbers: np.ndarray) -> Iterator[_PartRows]:
    """Divide sorted numbers of rows (n_rows,) by the parts of these rows."""
    first_rows = _first_rows(parts)
    edges = np.searchsorted(numbers, first_rows)
    for i in np.flatnonzero(np.diff(edges)).tolist():
        positions = slice(int(edges[i]), int(edges[i + 1]))
        yield _PartRows(i, positions, numbers[positions] - first_rows[i])


def _first_rows(parts: Sequence[PartSource]) -> np.ndarray:
    """Return the number of the first row of each part, and the number of all rows: int64 (n_parts + 1,)."""
    return np.cumsum([0, *(len(part.block) for part in parts)], dtype=np.int64)


def _stretches_of_sample(parts: Sequence[PartSource], spec: SampleSpec) -> list[np.ndarray]:
    n_rows = int(_first_rows(parts)[-1])
    n_wanted = min(spec.sizes.n_rows, n_rows)
    return _random_stretches(n_rows, n_wanted, _n_stretches(n_wanted, parts), spec.seed)


def _random_stretches(n_rows: int, n_wanted: int, n_stretches: int, seed: int) -> list[np.ndarray]:
    """Divide the rows into equal ranges, and return the rows of a stretch at a random position in each range."""
    rng = np.random.default_rng((seed, 7))
    lengths = np.diff(_edges(n_wanted, n_stretches)).tolist()
    stretches = []
    for (low, high), length in zip(pairwise(_edges(n_rows, n_stretches)), lengths, strict=True):
        n = min(high - low, length)
        first = low + int(rng.integers(0, high - low - n + 1))
        stretches.append(np.arange(first, first + n))
    return stretches


def held_out_stretches(rows: np.ndarray, n_wanted: int, max_stretches: int = _MAX_READS) -> list[np.ndarray]:
    """Choose stretches of held-out rows for `draw_sample`, evenly spread over all held-out rows.

    `rows` (n_rows,), int64, are their sorted numbers, counted over all parts. They can include bad rows. All stretches
    together have at most `n_wanted` rows.
    """
    n_most = min(max_stretches, n_wanted)
    if n_most < 1 or not len(rows):
        return []
    length = n_wanted // n_most
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    pieces = [run[start : start + length] for run in runs for start in range(0, len(run), length)]
    chosen = np.linspace(0, len(pieces) - 1, min(n_most, len(pieces))).astype(int)
    return [pieces[i] for i in chosen]


def training_stretches(parts: Sequence[PartSource], spec: SampleSpec) -> list[np.ndarray]:
    """Choose stretches of the rows that trained the model, for principal components."""
    numbers = _candidates(parts, spec.seed)
    fitted = np.concatenate([parts[some.part].fitted[some.rows] for some in _by_part(parts, numbers)])
    return _spread(numbers[fitted], spec.sizes.n_fitted, parts, (spec.seed, _FITTED))


def labelled_stretches(
    parts: Sequence[PartSource],
    spec: SampleSpec,
    names: Collection[str],
    has_value: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], np.ndarray],
) -> list[np.ndarray]:
    """Choose stretches of rows with a label. Rows without a label can be between those of a stretch.

    `has_value` returns a mask (n_rows,) of the rows with a label, given the extras with these `names`, and masks of
    values that could not be read.
    """
    numbers = _candidates(parts, spec.seed)
    masks = []
    for path, group in groupby(_by_part(parts, numbers), key=lambda some: parts[some.part].file):
        with _reading(path) as file:
            chosen = [(parts[some.part], some.rows) for some in group]
            positions = np.concatenate([part.first + rows for part, rows in chosen])
            runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
            extras = {name: _taken(item, 0, runs) for name, item in _extras(file).items() if name in names}
            losses = [_lost(part, rows) for part, rows in chosen]
            masks.append(has_value(extras, _joined_losses(losses, [len(rows) for _, rows in chosen])))
    return _spread(numbers[np.concatenate(masks)], spec.sizes.n_labelled, parts, (spec.seed, _LABELLED))


def _candidates(parts: Sequence[PartSource], seed: int) -> np.ndarray:
    """Return the sorted numbers of all rows, or of long stretches if there are too many rows."""
    n_rows = int(_first_rows(parts)[-1])
    return np.concatenate(_random_stretches(n_rows, min(n_rows, _MAX_CANDIDATES), _MAX_READS, seed))


def _spread(rows: np.ndarray, n_wanted: int, parts: Sequence[PartSource], seed: tuple[int, int]) -> list[np.ndarray]:
    """Choose `n_wanted` of the sorted numbers of rows, or all if they are fewer, as stretches that are evenly spread.

    Rows that follow each other among `rows` belong to the same stretch.
    """
    n = min(n_wanted, len(rows))
    n_stretches = _n_stretches(n, parts)
    chosen = rows[spread_rows(len(rows), np.empty(0, dtype=np.int64), n, *seed, n_stretches)]
    return [stretch for stretch in np.split(chosen, _edges(n, n_stretches)[1:-1]) if len(stretch)]


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


class _PartDatasets(NamedTuple):
    """Datasets of a part. Finding them takes longer than reading a few rows."""

    features: h5py.Dataset
    valid: np.ndarray  # bool, of all rows in the file
    extras: dict[str, h5py.Dataset]


def _sample_of_part(
    datasets: _PartDatasets, part: PartSource, some: _PartRows, stretches: np.ndarray, spec: SampleSpec
) -> Sample | None:
    """Return the good ones of some rows of a part, which belong to `stretches` (n_rows,). None if no row is good."""
    valid = datasets.valid[part.first : part.first + len(part.block)]
    is_good = valid[some.rows]
    numbers = some.rows[is_good]
    stretches = stretches[is_good]
    if not len(numbers):
        return None
    # Rows of one stretch are read at once. Bad rows between them are not read, because they can be damaged.
    n_bad = np.cumsum(~valid)[numbers]
    is_apart = (np.diff(stretches) > 0) | (np.diff(numbers) > _MAX_GAP) | (np.diff(n_bad) > 0)
    reads = np.split(numbers, np.flatnonzero(is_apart) + 1)
    features = _taken(datasets.features, part.first, reads)
    return Sample(
        scaled=_scaled_rows(part.block, reads, spec),
        features=features.astype(np.float32, copy=False),
        extras={name: _taken(item, part.first, reads) for name, item in datasets.extras.items()},
        sources=np.full(len(features), some.part),
        rows=part.block.shard.first_row + part.block.start + numbers,
        stretches=stretches,
        trained=part.trained[numbers],
        fitted=part.fitted[numbers],
        lost=_lost(part, numbers),
    )


def _lost(part: PartSource, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """Return masks (n_rows,) of rows of a part whose values could not be read, by the names of the extras."""
    return {name: in_ranges(part.block.start + numbers, ranges) for name, ranges in part.lost.items()}


def _taken(item: h5py.Dataset, first: int, reads: Sequence[np.ndarray]) -> np.ndarray:
    """Return the values of some rows, of which those of each read are read at once. The rows count from `first`."""
    pieces = []
    for numbers in reads:
        low = int(numbers[0])
        values = values_of(item, slice(first + low, first + int(numbers[-1]) + 1))
        pieces.append(values[numbers - low])
    return np.concatenate(pieces)


def _extras(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return the extra datasets of a part that have one value per row."""
    others = {name: file[name] for name in file if name not in (FEATURES, VALID, ERROR)}
    return {name: item for name, item in others.items() if isinstance(item, h5py.Dataset) and item.ndim == 1}


def values_of(item: h5py.Dataset, numbers: np.ndarray | slice) -> np.ndarray:
    """Return values of a dataset. Strings are Python objects of type str."""
    if h5py.check_string_dtype(item.dtype):
        return np.asarray(item.asstr("utf-8", "replace")[numbers])
    return np.asarray(item[numbers])


def _scaled_rows(block: Block, reads: Sequence[np.ndarray], spec: SampleSpec) -> np.ndarray:
    """Return some input rows of a block, scaled in the same way as for encoding. The rows of each read are adjacent."""
    pieces = []
    for numbers in reads:
        low = int(numbers[0])
        rows = spec.conversion.read(Block(block.shard, block.start + low, block.start + int(numbers[-1]) + 1))
        filled = spec.cleaning.filled(rows[numbers - low], block.shard.stored_dtype)
        with np.errstate(over="ignore"):  # values far outside the range
            cleaned = spec.cleaning.clipped(filled) if spec.is_clipped else filled
            pieces.append(spec.model.scaler.scaled(cleaned))
    return np.concatenate(pieces)
