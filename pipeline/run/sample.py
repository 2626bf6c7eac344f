"""How long the work takes here, by doing a little of it: the run's own functions, on rows from all over the input."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.device import autoencoder_of, seconds_compiling, training_step_of
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import Part
from pipeline.encoding.storage import Storage, TooCoarse, storages
from pipeline.encoding.worker import serving
from pipeline.errors import DataError
from pipeline.model import Model
from pipeline.output.disk import Disk
from pipeline.run.encoding_stage import encode_settings
from pipeline.run.job import Prepared
from pipeline.run.scan_stage import scan_settings
from pipeline.scan.blocks import Piece, merged, unread
from pipeline.scan.ranges import Scan, looking, readable, scan_of
from pipeline.scan.scaler import Cleaning
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import Block, first_rows, row_dtype
from pipeline.training.components import baseline_of, principal_components
from pipeline.training.epochs import Training, steps_of
from pipeline.training.order import Order, slab_starts
from pipeline.training.rows import ResidentRows, Rows, StreamedRows
from pipeline.training.start import has_room, start_of

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = [
    "AnonymousDisk",
    "Pace",
    "Stretch",
    "TrainingPace",
    "sampled_encoding",
    "sampled_scan",
    "sampled_training",
    "stretches",
]

_SECONDS = 1.5  # of each kind of work, after which no more of it is begun
_BLOCKS = 8  # in a stretch
_MOST_STRETCHES = 4096
_UNTIMED = 3  # first steps, which find caches cold


class Stretch(NamedTuple):
    """Some consecutive rows of a shard."""

    number: int  # the shard's place in the input
    first_row: int  # the shard's, counted over all of them
    block: Block


@dataclass(frozen=True)
class Pace:
    """So many rows have taken so many seconds, and of encoding so many bytes."""

    n_rows: int
    seconds: float
    n_bytes: int = 0

    def seconds_for(self, n_rows: int) -> float:
        """What others would take."""
        return self.seconds * n_rows / max(1, self.n_rows)


@dataclass(frozen=True)
class TrainingPace:
    """What a training takes.

    Attributes
    ----------
    n_rows, n_validated : int
        Rows that an epoch trains on, and that are watched after each.
    compiling, beginning : float
        Seconds, once: of loading what is in the compile cache by now, and of looking for components.
    reading, baseline, steps, validation : Pace
        Of all rows, of those that are watched, of those that are trained on in an epoch, and watched after each.
    """

    n_rows: int
    n_validated: int
    compiling: float
    beginning: float
    reading: Pace
    baseline: Pace | None
    steps: Pace
    validation: Pace


class AnonymousDisk(Disk):
    """Write and sync files that have no names, so that writing can be measured and leaves nothing.

    Parameters
    ----------
    folder : Path or None
        An existing directory, on whose disk the files are written. Without one, or where the file system does not
        support such files, they are written to memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def create(self, path: Path) -> int:
        """Open a file that never has a name."""
        if self._folder is not None:
            try:
                return os.open(self._folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            except OSError:  # not every file system supports it
                pass
        return os.memfd_create("shardpress", os.MFD_CLOEXEC)

    def replace(self, source: Path, target: Path) -> None:
        """Do nothing, since neither file has a name."""

    def remove(self, path: Path) -> None:
        """Do nothing: an existing file of this name is not one of these."""

    def make_directory(self, path: Path) -> None:
        """Do nothing, since no file is in a directory."""

    def sync_directory(self, path: Path) -> None:
        """Do nothing, since no name was added to it."""


# -- the rows ----------------------------------------------------------------------------------------------------


def stretches(prepared: Prepared) -> list[Stretch]:
    """Rows from all over the input, in an order that the seed decides; not of too many places."""
    shards = prepared.shards
    n_rows = _BLOCKS * prepared.budget.block_rows
    found = [
        Stretch(number, int(first), block)
        for number, (shard, first) in enumerate(zip(shards, first_rows(shards)[:-1], strict=True))
        for block in Block(shard, 0, shard.n_rows).cut(n_rows)
    ]
    order = np.random.default_rng(prepared.config.training.seed).permutation(len(found))[:_MOST_STRETCHES]
    return [found[i] for i in order]


def _paced(tasks: Sequence[Any], n_at_once: int, n_rows_of: Callable[[Any], int]) -> tuple[Pace, list[Any]]:
    """How long tasks take, and their results: of as many as begin in time."""
    found: list[Any] = []
    start = end = time.monotonic()

    def done(result: Any) -> None:
        nonlocal end
        found.append(result)
        end = time.monotonic()
        if end - start > _SECONDS:
            raise _Enough

    with suppress(_Enough), threads(n_at_once) as pool:
        compute(tasks, pool, n_at_once, done)
    return Pace(sum(map(n_rows_of, found)), end - start), found


class _Enough(Exception):
    """Ends the tasks that nobody waits for."""


# -- scan ----------------------------------------------------------------------------------------------------------


def sampled_scan(prepared: Prepared, some: Sequence[Stretch]) -> tuple[Pace, Scan, list[Stretch]]:
    """What scanning takes, what a scan of some rows tells, and which of these can be read."""
    shards = prepared.shards
    budget = prepared.budget
    settings = replace(scan_settings(prepared), max_unreadable=len(shards))  # here each is told of
    look = looking(shards, settings)

    def look_at(stretch: Stretch) -> Any:
        pieces: list[Piece] = [(*stretch[:2], block) for block in stretch.block.cut(budget.block_rows)]
        return stretch, look(pieces)

    pace, found = _paced([(look_at, each) for each in some], budget.n_threads, lambda each: len(each[0].block))
    unreadable = merged([told for _, told in found]).unreadable
    readable = [each for each in found if each[0].number not in unreadable]
    # Of a shard that cannot be read all rows count as bad ones, as they do in a run.
    told = merged([unread(shards, unreadable), *(told for _, told in readable)])
    return pace, scan_of(told, settings, row_dtype(shards)), [each for each, _ in readable]


# -- training ------------------------------------------------------------------------------------------------------


class _Streamed:
    """Rows in memory, handed out as those are that are not all there."""

    resident = None

    def __init__(self, rows: ResidentRows) -> None:
        self.take = rows.take
        self._rows = rows

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        return map(self.take, self._rows.minibatches(order, epoch, batch_size, first, n_each))


def sampled_training(prepared: Prepared, scan: Scan, resident: bool) -> tuple[TrainingPace, Model, Autoencoder]:
    """What training takes, and a model that has been trained for a moment.

    Parameters
    ----------
    scan : Scan
        Of some rows, two good ones at least.
    resident : bool
        Whether training keeps all rows in memory.
    """
    config = prepared.config
    budget = prepared.budget
    dtype = row_dtype(prepared.shards)
    network = network_of(config.network, prepared.shards[0].n_inputs)
    reading, sample = _read(prepared, scan)
    held = ResidentRows(sample)
    rows: Any = held if resident else _Streamed(held)
    n_validated = min(round(config.validation.validation_fraction * prepared.n_rows), budget.max_validation_rows)
    autoencoder = autoencoder_of(scan.scaler, network, dtype)
    beginning, found = _clocked(lambda: _begin(prepared, scan, sample, autoencoder))
    compiling, step = _compiled(autoencoder, prepared, rows)
    watched = sample[: max(1, min(len(sample) // 2, n_validated))]
    starts = slab_starts(prepared.shards, budget.window_rows // 4)
    # Any rows will do for the validation.
    order = Order(starts, np.arange(n_validated), budget.window_rows, config.training.seed)
    training = Training(autoencoder, step, rows, order, watched if n_validated else watched[:0], config.training)
    pace = TrainingPace(
        n_rows=order.n_rows,
        n_validated=n_validated,
        compiling=compiling,
        beginning=beginning,
        reading=reading,
        baseline=_baseline(found, watched, scan) if config.validation.baseline and n_validated else None,
        steps=_steps(training, len(sample)),
        validation=Pace(len(watched), _clocked(lambda: autoencoder.cost(watched))[0]),
    )
    return pace, Model(scan.scaler, network, autoencoder.parameters(), {}), autoencoder


def _clocked(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that work takes, without those of the compiler, which the run is spared; and what comes of it."""
    start = time.monotonic()
    compiled = seconds_compiling()
    found = work()
    return time.monotonic() - start - (seconds_compiling() - compiled), found


def _read(prepared: Prepared, scan: Scan) -> tuple[Pace, np.ndarray]:
    """What training's reading takes, and good rows (n, n_inputs): as many as components are looked for in.

    Raises
    ------
    DataError
        When there are no two.
    """
    config = prepared.config
    budget = prepared.budget
    shards, _ = readable(prepared.shards, scan)
    starts = slab_starts(shards, budget.window_rows // 4)
    slabs = np.random.default_rng(config.training.seed).permutation(len(starts) - 1)
    n_before = np.cumsum(np.diff(starts)[slabs]) - np.diff(starts)[slabs]
    slabs = np.sort(slabs[n_before < max(budget.max_sample_rows, config.training.batch_size)])
    numbers = np.concatenate([np.arange(starts[slab], starts[slab + 1]) for slab in slabs])
    streamed = StreamedRows(shards, budget.n_threads, Cleaning(scan.scaler, config.bad_data.missing_value))
    streamed.take(numbers)  # from the disk: a training that reads them again and again finds most of them in memory
    seconds, rows = _clocked(lambda: streamed.take(numbers))
    is_good = np.isfinite(rows).all(axis=1)
    if is_good.sum() < 2:
        raise DataError(
            f"{shards[0]} and what follows it: of {len(rows)} rows that were tried, none can be trained on."
        )
    return Pace(len(numbers), seconds), rows if is_good.all() else rows[is_good]


def _begin(prepared: Prepared, scan: Scan, sample: np.ndarray, autoencoder: Autoencoder) -> Any:
    """Set the parameters that training starts with, and tell the components that it is held against."""
    settings = prepared.config.training
    network = autoencoder.network
    scaled = scan.scaler.transform(sample[: prepared.budget.max_sample_rows])
    rng = np.random.default_rng(settings.seed)
    is_start = settings.start == "components" and has_room(network)
    found = None
    if is_start or prepared.config.validation.baseline:
        found = principal_components(scaled, network.n_features, rng)
    autoencoder.set_parameters(start_of(network, rng, scaled.mean(axis=0), found if is_start else None))
    return found


def _compiled(autoencoder: Autoencoder, prepared: Prepared, rows: Rows) -> tuple[float, Any]:
    """Seconds of what is compiled before the first epoch, and the training's step."""
    config = prepared.config
    dtype = row_dtype(prepared.shards)
    nothing = np.empty((0, autoencoder.network.n_inputs), dtype)

    def compile() -> Any:
        step = training_step_of(autoencoder, config.training, dtype, rows.resident)
        autoencoder.errors(nothing)
        _compile_encoder(autoencoder, dtype)
        return step

    return _clocked(compile)


def _steps(training: Training, n_rows: int) -> Pace:
    """What steps take, in a few passes over the sample at most."""
    sample = Order(np.array([0, n_rows]), np.empty(0, np.int64), n_rows, training.settings.seed)
    passes = (steps_of(training, sample, epoch, 0) for epoch in range(_UNTIMED + 1))
    taken = chain.from_iterable(passes)
    for _ in islice(taken, _UNTIMED):
        pass
    n_done = 0
    start = time.monotonic()
    for step in taken:  # one at least, since each pass has one
        n_done = n_done + step.n_rows
        seconds = time.monotonic() - start
        if seconds > _SECONDS:
            break
    return Pace(n_done, seconds)


def _baseline(found: Any, watched: np.ndarray, scan: Scan) -> Pace:
    return Pace(len(watched), _clocked(lambda: baseline_of(found, watched, scan.scaler))[0])


# -- encoding ------------------------------------------------------------------------------------------------------


def sampled_encoding(
    prepared: Prepared, model: Model, autoencoder: Autoencoder, some: Sequence[Stretch], disk: Disk
) -> Pace:
    """What encoding takes, with the writing of its files, in the smallest form that is exact enough for these rows.

    Parameters
    ----------
    some : sequence of Stretch
        Which rows.
    disk : Disk
        That takes the files and keeps none.
    """
    *smaller, last = storages(prepared.config.storage)
    for storage in smaller:
        with suppress(TooCoarse):
            return _encoded(prepared, model, autoencoder, some, disk, storage)
    return _encoded(prepared, model, autoencoder, some, disk, last)


def _encoded(
    prepared: Prepared,
    model: Model,
    autoencoder: Autoencoder,
    some: Sequence[Stretch],
    disk: Disk,
    storage: Storage,
) -> Pace:
    n_rows = min(prepared.budget.part_rows, max(len(each.block) for each in some))
    lenient = "skip" if prepared.config.bad_data.on_bad_data == "raise" else prepared.config.bad_data.on_bad_data
    prepared = replace(prepared, config=prepared.config.changed(on_bad_data=lenient))  # of bad rows the scan tells
    settings = replace(encode_settings(prepared, model, n_rows, Path()), storage=storage)
    parts = [Part(each.number, block) for each in some for block in each.block.cut(n_rows)]
    for dtype in sorted({part.source.shard.dtype for part in parts}):
        _compile_encoder(autoencoder, np.dtype(dtype))
    with serving(settings, model, autoencoder.encode_checked, disk):
        tasks = [(encode_part, EncodeTask(part, settings)) for part in parts]
        pace, found = _paced(tasks, prepared.budget.n_writers, lambda part: part.n_rows)
    return replace(pace, n_bytes=sum(part.entry.n_bytes for part in found))


def _compile_encoder(autoencoder: Autoencoder, dtype: np.dtype) -> None:
    nothing = np.empty((0, autoencoder.network.n_inputs), dtype)
    network = autoencoder.network
    autoencoder.encode_checked(nothing, np.empty((0, network.n_features), dtype=np.float32))
