"""Part by part: read, encode, publish.

Each part is one Dask task, so memory is bounded by the number of threads: one reads while another one's rows are on the
device. The features of a row depend on nothing but the row: every part and block starts at a whole tile of its shard.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import signals
from pipeline.cluster import compute
from pipeline.errors import DataError
from pipeline.features import Part, part_bytes
from pipeline.gate import Shard
from pipeline.ledger import publish
from pipeline.plan import Plan
from pipeline.progress import Progress
from pipeline.scan import bad_rows
from pipeline.shards import Block, blocks, read, read_riders

__all__ = ["Encoder", "encode_parts", "plan_parts"]

log = logging.getLogger(__name__)

Encoder = Callable[[np.ndarray, np.ndarray], object]
"""Writes the features of rows (n, n_inputs) into an array (n, n_features)."""


def plan_parts(shards: Sequence[Shard], part_rows: int) -> list[Part]:
    """Which rows make up each part, in the order of the input's rows."""
    return [Part(f"parts/part-{i:05d}.h5", block) for i, block in enumerate(blocks(shards, part_rows))]


def encode_parts(
    parts: Sequence[Part],
    directory: Path,
    encode: Encoder,
    n_features: int,
    plan: Plan,
    skip_bad: bool,
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Write the features of every part into `directory`.

    Parameters
    ----------
    parts : sequence of Part
    directory : Path
        The output directory.
    encode : callable
        An `Encoder`. It is called from one thread at a time.
    n_features : int
    plan : Plan
        Its ``block_rows`` are read at once by each of ``n_threads``.
    skip_bad : bool
        Give rows with NaN or Inf NaN features instead of stopping.
    about : mapping
        Attributes of every file.

    Returns
    -------
    list of dict
        The manifest's line for each part: ``file``, ``n_rows``, ``n_bad``, and its source's ``path``, ``dataset``,
        ``start``, ``stop``.

    Raises
    ------
    DataError
        For rows that cannot be read, or hold NaN or Inf.
    WriteFailed
    """
    n_rows = sum(len(part.source) for part in parts)
    shard = parts[0].source.shard
    stop = threading.Event()
    with Progress("encoding", n_rows, "rows", shard.n_inputs * np.dtype(shard.dtype).itemsize) as progress:
        work = _Work(directory, _one_at_a_time(encode), n_features, plan.block_rows, skip_bad, about, progress, stop)
        try:
            return compute([partial(work, part) for part in parts], plan.n_threads)
        finally:
            stop.set()  # whatever ends this early, parts that are under way stop at their next block


class _Work:
    """Encodes one part; called by Dask's threads."""

    def __init__(
        self,
        directory: Path,
        encode: Encoder,
        n_features: int,
        block_rows: int,
        skip_bad: bool,
        about: Mapping[str, Any],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._directory, self._encode, self._n_features = directory, encode, n_features
        self._block_rows, self._skip_bad, self._about = block_rows, skip_bad, about
        self._progress, self._stop = progress, stop

    def __call__(self, part: Part) -> dict[str, Any]:
        source = part.source
        features = np.empty((len(source), self._n_features), dtype=np.float32)
        valid = np.ones(len(source), dtype=bool)
        for start in range(source.start, source.stop, self._block_rows):
            signals.check()
            if self._stop.is_set():
                raise InterruptedError
            block = Block(source.shard, start, min(start + self._block_rows, source.stop))
            place = slice(start - source.start, block.stop - source.start)
            self._encode_block(block, features[place], valid[place])
            self._progress.advance(len(block))
        line = self._line(part, valid)
        about = {**self._about, **{f"source_{key}": value for key, value in line.items() if key != "file"}}
        publish(self._directory / part.file, part_bytes(features, valid, read_riders(source), about))
        return line

    def _encode_block(self, block: Block, features: np.ndarray, valid: np.ndarray) -> None:
        rows = read(block)
        bad = bad_rows(rows)
        if len(bad) and not self._skip_bad:
            first = rows[bad[0]]
            column = int(np.flatnonzero(~np.isfinite(first))[0])
            raise DataError(
                f"{block}: {first[column]} in row {block.start + bad[0]}, column {column}; {len(bad)} of these rows "
                "hold NaN or Inf, expected finite numbers. Mend the file, or use --on-bad-data skip."
            )
        self._encode(rows, features)
        # Finite rows so far beyond the model's range that they overflow float32 are no better than bad ones.
        lost = np.setdiff1d(bad_rows(features), bad)
        if len(lost) and not self._skip_bad:
            raise DataError(
                f"{block}: row {block.start + lost[0]} and {len(lost) - 1} more lie so far outside the range of the "
                "model's training rows that they overflow. Train a model on them, or use --on-bad-data skip."
            )
        bad = np.union1d(bad, lost)
        features[bad], valid[bad] = np.nan, False

    def _line(self, part: Part, valid: np.ndarray) -> dict[str, Any]:
        source = part.source
        return {
            "file": part.file,
            "n_rows": len(source),
            "n_bad": int(len(valid) - valid.sum()),
            "path": source.shard.path,
            "dataset": source.shard.dataset,
            "start": source.start,
            "stop": source.stop,
        }


def _one_at_a_time(encode: Encoder) -> Encoder:
    """A compiled Theano function is not thread-safe."""
    lock = threading.Lock()

    def locked(rows: np.ndarray, out: np.ndarray) -> object:
        with lock:
            return encode(rows, out)

    return locked
