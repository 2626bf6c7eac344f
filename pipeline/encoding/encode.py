"""Part by part: read, encode, publish, commit.

Each part is one Dask task, so memory is bounded by the number of threads: one reads or waits for the disk while another
one's rows are encoded. The features of a row depend on nothing but the row: every part and block starts at a whole tile
of its shard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import check, threads
from pipeline.encoding.bad_data import Judged, Outside, Policy, farthest
from pipeline.encoding.partfile import PartMemory
from pipeline.errors import DataError
from pipeline.output.records import Entry, Record
from pipeline.progress import Progress
from pipeline.run.budget import Budget
from pipeline.shards.rows import read, read_riders, salvage_riders
from pipeline.shards.shard import Block, Shard

__all__ = ["Encoded", "Encoder", "Part", "Write", "encode_parts", "plan_parts"]

log = logging.getLogger(__name__)

Encoder = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Writes the features of rows (n, n_inputs) into an array (n, n_features). It may return positions of rows; all others
then hold finite numbers in the model's range."""

Write = Callable[[str, str, bytes | memoryview], Entry]
"""Puts a file of this stem, suffix and content into the output directory."""


@dataclass(frozen=True)
class Part:
    """A row range of one input shard whose features are committed together.

    Attributes
    ----------
    number : int
        The shard's place in the input.
    source : Block
        The rows it is made from.
    """

    number: int
    source: Block

    @property
    def key(self) -> str:
        """Its name; in the order of the names, parts are in the order of the input's rows."""
        return f"part-{self.number:06d}-{self.source.start:012d}"


@dataclass(frozen=True)
class Encoded:
    """A part whose features stand in a file, not yet committed.

    Attributes
    ----------
    part : Part
    entry : Entry
    facts : dict
        For its record: ``n_rows``, ``n_bad``, ``n_outside``, its source's ``shard``, ``path``, ``dataset``, ``start``,
        ``stop``, and with quarantine ``bad``: row, columns and reason of each bad row.
    """

    part: Part
    entry: Entry
    facts: dict[str, Any]


def plan_parts(shards: Sequence[Shard], part_rows: int, committed: Sequence[Record]) -> tuple[list[Part], list[Record]]:
    """Parts for the rows that no committed part holds, in the order of the input's rows.

    Committed parts may be of another size: what they hold stays, whatever the memory or the threads are now.

    Returns
    -------
    list of Part
        Still to be made.
    list of Record
        Committed parts that overlap an earlier one, and count for nothing.
    """
    parts: list[Part] = []
    overlapping: list[Record] = []
    of_shard: dict[int, list[Record]] = {}
    for record in committed:
        of_shard.setdefault(record.facts["shard"], []).append(record)
    for number, shard in enumerate(shards):
        first = 0
        for record in sorted(of_shard.get(number, []), key=lambda record: int(record.facts["start"])):
            start, stop = record.facts["start"], record.facts["stop"]
            if start < first or stop > shard.n_rows:
                overlapping.append(record)
                continue
            parts += _cut(number, shard, first, start, part_rows)
            first = stop
        parts += _cut(number, shard, first, shard.n_rows, part_rows)
    return parts, overlapping


def _cut(number: int, shard: Shard, start: int, stop: int, part_rows: int) -> Iterator[Part]:
    for first in range(start, stop, part_rows):
        yield Part(number, Block(shard, first, min(first + part_rows, stop)))


def encode_parts(
    parts: Sequence[Part],
    write: Write,
    encode: Encoder,
    n_features: int,
    plan: Budget,
    policy: Policy,
    about: Mapping[str, Any],
    commit: Callable[[Encoded], object],
    n_callers: int = 1,
) -> None:
    """Write the features of every part.

    Parameters
    ----------
    parts : sequence of Part
    write : callable
        Puts a file into the output directory; called from several threads.
    encode : callable
        An `Encoder`.
    n_features : int
    plan : Budget
        Its ``block_rows`` are read at once by each of ``n_writers`` threads.
    policy : Policy
    about : mapping
        Attributes of every file.
    commit : callable
        Given each part when its file is there, in the calling thread.
    n_callers : int
        How many threads may be in the encoder at a time.

    Raises
    ------
    DataError
        For rows that cannot be read, or that the policy forbids.
    WriteFailed, SystemLimit
    """
    if not parts:
        return
    shard = parts[0].source.shard
    row_bytes = shard.n_inputs * np.dtype(shard.dtype).itemsize
    with Progress("encoding", sum(len(part.source) for part in parts), "rows", row_bytes) as progress:
        part_rows = max(len(part.source) for part in parts)
        few = _few_at_a_time(encode, n_callers)
        work = _Work(write, few, n_features, part_rows, plan, policy, about, progress)
        with threads(plan.n_writers) as pool:
            compute([(work, part) for part in parts], pool, plan.n_writers, commit)


class _Work:
    """Encodes one part; called by Dask's threads."""

    def __init__(
        self,
        write: Write,
        encode: Encoder,
        n_features: int,
        part_rows: int,
        plan: Budget,
        policy: Policy,
        about: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self._write, self._encode, self._n_features = write, encode, n_features
        self._part_rows, self._block_rows = part_rows, min(part_rows, plan.block_rows)
        self._policy, self._about = policy, about
        self._progress = progress
        self._kept = threading.local()
        # So that not all threads come to wait for the disk at the same time: the others encode whole parts meanwhile.
        self._turns = threading.Semaphore(plan.n_threads)

    def __call__(self, part: Part) -> Encoded:
        source = part.source
        memory = self._part_memory(source.shard)
        features = memory.features(len(source))
        valid = np.ones(len(source), dtype=bool)
        bad: list[dict[str, Any]] = []
        outside: list[Outside] = []
        with self._turns:
            n_outside = self._encode_blocks(part, features, valid, bad, outside)
        if part.number in self._policy.unreadable:
            bad = self._policy.of_unreadable(part.number, source)
        riders = self._riders(source, bad)
        facts = self._facts(part, valid, n_outside)
        about = {**self._about, **{f"source_{key}": value for key, value in facts.items()}}
        entry = self._write(f"parts/{part.key}", ".h5", memory.file(valid, riders, about))
        more: dict[str, Any] = {"bad": bad} if self._policy.on_bad_data == "quarantine" else {}
        return Encoded(part, entry, {**facts, **more, **({"outside": outside} if outside else {})})

    def _encode_blocks(
        self, part: Part, features: np.ndarray, valid: np.ndarray, bad: list[dict[str, Any]], outside: list[Outside]
    ) -> int:
        n_outside, source = 0, part.source
        for block in _blocks_of(source, self._block_rows):
            check()
            place = slice(block.start - source.start, block.stop - source.start)
            if part.number in self._policy.unreadable:
                features[place], valid[place] = np.nan, False
            else:
                judged = self._encode_block(block, features[place], valid[place])
                if judged is not None:
                    n_outside += judged.n_outside
                    bad += judged.reasons
                    outside[:] = farthest([*outside, *judged.outside])
            self._progress.advance(len(block))
        return n_outside

    def _encode_block(self, block: Block, features: np.ndarray, valid: np.ndarray) -> Judged | None:
        """Features of a block's rows, and which of them count; what is to be said of odd ones, if there are any."""
        rows = read(block, self._block_memory(block))
        odd = self._encode(rows, features)
        among = odd if self._policy.missing is None else None
        if among is not None and not len(among):
            return None
        judged = self._policy.before(block, rows, among)
        if judged.rows is not rows:
            self._encode(judged.rows, features)
        judged = self._policy.after(block, judged, features, among)
        features[judged.bad], valid[judged.bad] = np.nan, False
        return judged

    # -- memory of a thread, used for one block and one part after the other --

    def _block_memory(self, block: Block) -> np.ndarray:
        kept = getattr(self._kept, "block", None)
        if kept is None or kept.dtype != block.shard.dtype:
            self._kept.block = kept = np.empty((self._block_rows, block.shard.n_inputs), dtype=block.shard.dtype)
        return np.asarray(kept[: len(block)])

    def _part_memory(self, shard: Shard) -> PartMemory:
        if not hasattr(self._kept, "part"):
            rider_bytes = sum(rider.dtype.itemsize for rider in shard.riders)
            categories = {rider.name: rider.categories for rider in shard.riders if rider.categories is not None}
            self._kept.part = PartMemory(self._part_rows, self._n_features, rider_bytes, categories)
        kept: PartMemory = self._kept.part
        return kept

    def _riders(self, source: Block, bad: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """What rides along; where bad data pass, what stands for a missing value for what cannot be read."""
        try:
            return read_riders(source)
        except DataError:
            if self._policy.on_bad_data == "raise":
                raise
        riders, lost = salvage_riders(source, check)
        bad += lost
        return riders

    def _facts(self, part: Part, valid: np.ndarray, n_outside: int) -> dict[str, Any]:
        source = part.source
        return {
            "n_rows": len(source),
            "n_bad": int(len(valid) - valid.sum()),
            "n_outside": n_outside,
            "shard": part.number,
            "path": source.shard.path,
            "dataset": source.shard.dataset,
            "start": source.start,
            "stop": source.stop,
        }


def _blocks_of(source: Block, block_rows: int) -> Iterator[Block]:
    """Cut a block into smaller ones."""
    for start in range(source.start, source.stop, block_rows):
        yield Block(source.shard, start, min(start + block_rows, source.stop))


def _few_at_a_time(encode: Encoder, n_callers: int) -> Encoder:
    """A compiled Theano function is not thread-safe, and more threads than cores only get in each other's way."""
    free = threading.Semaphore(n_callers)

    def waiting(rows: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        with free:
            return encode(rows, out)

    return waiting
