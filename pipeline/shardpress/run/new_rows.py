"""The verdict on appended rows: they are compared with held-out rows of the run that trained the model."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np

from shardpress.errors import RowsDrifted, printable
from shardpress.records import Part, Range
from shardpress.report.newrows import Verdict, judge_new_rows
from shardpress.report.reference import Reference, held_out_stretches
from shardpress.report.sample import PartSource, SampleSpec, draw_sample
from shardpress.result import Result, Use
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import UNREADABLE, Block
from shardpress.training.order import spread_rows

log = logging.getLogger(__name__)

_MAX_STRETCHES = 512  # ranges of held-out rows that are read
_MAX_RANGES = 64  # ranges of files that contain them, because opening a file takes as long as reading many stretches
_NO_ROWS = np.empty(0, dtype=np.int64)

T = TypeVar("T")
_Stretch = tuple[int, int]
"""First row, and the row after the last one, counted over all ranges."""
_Pair = tuple[Part, Range]


def verdict_on(
    sources: Sequence[PartSource], ranges: Sequence[Range], spec: SampleSpec, prepared: Prepared, base: Result
) -> tuple[Verdict | None, Reference | None]:
    """Return the verdict on the rows that an append brings, and the statistics with which they were compared.

    If the rows cannot be judged, this is only logged as a warning, because the features are already complete.
    """
    try:
        reference = _stored_reference(base) or _new_reference(prepared, base, spec)
        if reference is None:
            log.warning("append: the new rows are not compared with earlier rows, because too few of those can be read")
            return None, None
        sample = draw_sample(sources, spec)
        n_outside = sum(each.n_outside for each in ranges)
        n_good = sum(each.n_rows - each.n_bad for each in ranges)
        model = base.model
        files = [source.block.shard.path for source in sources]
        return judge_new_rows(reference, sample, model, model.columns, n_outside, n_good, files), reference
    except Exception as error:  # the features are complete without a verdict
        reason = printable(f"{type(error).__name__}: {error}")
        log.warning("append: the new rows could not be compared with the training rows: %s", reason)
        return None, None


def check_verdict(found: Verdict | None, directory: Path, on_append_drift: str) -> None:
    """Log a verdict; None if the rows could not be judged. Raise `RowsDrifted` if `on_append_drift` requires it."""
    if found is None:
        if on_append_drift == "fail":
            raise RowsDrifted(
                f"output={printable(directory)}: the new rows could not be judged (see the warning above), expected a "
                "verdict. Their features are not published (--on-append-drift fail). Restore the earlier files in "
                "--input, or publish the features with --on-append-drift warn."
            )
        return
    words = " ".join(found.reasons)
    if found.verdict == "keep":
        log.info("append: verdict on the new rows: keep the model. %s", words)
        return
    if found.verdict == "retrain" and on_append_drift == "fail":
        raise RowsDrifted(
            f"output={printable(directory)}: verdict on the new rows: retrain. {words} Their features are not "
            "published (--on-append-drift fail). Check the new files. To publish the features, append with "
            "--on-append-drift warn; to train a new model on all files, use --retrain."
        )
    log.warning("append: verdict on the new rows: %s. %s", found.verdict, words)


def _stored_reference(base: Result) -> Reference | None:
    """Return the statistics that an earlier append has stored, or None."""
    stored = base.statistics()
    return None if stored is None else Reference.of_stored(*stored)


def _new_reference(prepared: Prepared, base: Result, spec: SampleSpec) -> Reference | None:
    """Compute the statistics of earlier rows; None if too few of them can be read."""
    use = base.use()
    first = [(part, each) for part, each in base.ranges if not each.append_id]
    n_first = sum(each.n_rows for _, each in first)
    is_first = np.repeat([not each.append_id for _, each in base.ranges], [each.n_rows for _, each in base.ranges])
    rows = _held_out(use[is_first], spec.seed)
    is_held_out = len(rows) >= 2
    if not is_held_out:
        rows = spread_rows(n_first, _NO_ROWS, min(n_first, spec.n_rows), spec.seed, max_runs=_MAX_STRETCHES)
    stretches = held_out_stretches(rows, spec.n_rows, _MAX_STRETCHES)
    sources, stretches = _readable(first, stretches, prepared, base)
    sample = draw_sample(sources, spec, stretches)
    if sample is None or len(sample.rows) < 2:
        return None
    reference = Reference.of(sample, base.model, is_held_out, n_first)
    config = base.facts.config
    if config.get("fit_on") is None and config.get("model") is None:
        return reference
    # Not all of these rows determined the range, so those outside were counted.
    n_good = sum(each.n_rows - each.n_bad for _, each in first)
    n_outside = sum(each.n_outside for _, each in first)
    return replace(reference, outside_share=n_outside / n_good, outside_rows=float(n_good))


def _held_out(use: np.ndarray, seed: int) -> np.ndarray:
    """Return the sorted numbers of held-out rows that represent all rows, given the use of each row.

    The validation rows represent the rows that ``--fit-on`` selects. The same share of the other rows is added.
    """
    validation = np.flatnonzero(use == Use.VALIDATION)
    is_left_out = use == Use.LEFT_OUT
    if len(validation) < 2 or not is_left_out.any():
        return validation
    share = len(validation) / np.count_nonzero(~is_left_out)
    others = spread_rows(len(use), np.flatnonzero(~is_left_out), round(share * len(use)), seed)
    return np.union1d(validation, others)


def _readable(
    pairs: Sequence[_Pair], stretches: Sequence[_Stretch], prepared: Prepared, base: Result
) -> tuple[list[PartSource], list[_Stretch]]:
    """Return the ranges that contain stretches, as far as their rows can be read, and the stretches in these ranges."""
    positions = {place.base: i for i, place in enumerate(prepared.change.places) if place.is_same}
    sources: list[PartSource] = []
    found: list[_Stretch] = []
    n_before = 0  # rows of the sources
    for (part, each), pieces in _spaced(list(_by_range(pairs, stretches)), _MAX_RANGES):
        position = positions.get(each.shard)
        if position is None or prepared.shards[position].form == UNREADABLE:
            continue
        block = Block(prepared.shards[position], each.start, each.stop)
        sources.append(PartSource(block, base.directory / part.file, each.first))
        found += [(n_before + start, n_before + stop) for start, stop in pieces]
        n_before += each.n_rows
    return sources, found


def _by_range(pairs: Sequence[_Pair], stretches: Sequence[_Stretch]) -> Iterator[tuple[_Pair, list[_Stretch]]]:
    """Yield each range that contains stretches, with the rows of these stretches in the range."""
    firsts = [0, *accumulate(each.n_rows for _, each in pairs)]
    pieces: dict[int, list[_Stretch]] = {}
    for start, stop in stretches:
        number = bisect_right(firsts, start) - 1
        while start < stop:  # a stretch can continue in the next range
            first = firsts[number]
            end = min(stop, firsts[number + 1])
            pieces.setdefault(number, []).append((start - first, end - first))
            start = end
            number += 1
    for number, found in sorted(pieces.items()):
        yield pairs[number], found


def _spaced(items: Sequence[T], n_most: int) -> list[T]:
    """Return at most `n_most` evenly spaced items."""
    numbers = np.linspace(0, len(items) - 1, min(len(items), n_most)).astype(int)
    return [items[number] for number in numbers]
