"""The verdict on appended rows: they are compared with held-out rows of the run that trained the model."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shardpress.errors import DataError, NoInput, RowsDrifted, printable
from shardpress.records import Part
from shardpress.report.inputs import Inputs
from shardpress.report.newrows import Verdict, judge_new_rows
from shardpress.report.reference import Reference, held_out_stretches
from shardpress.report.sample import PartSource, SampleSpec, draw_sample
from shardpress.run.finished import FinishedRun
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import Block, Shard
from shardpress.training.order import spread_rows

log = logging.getLogger(__name__)

_MAX_STRETCHES = 512  # ranges of held-out rows that are read
_MAX_PARTS = 64  # parts that contain them, because opening a file takes as long as reading many ranges
_NO_ROWS = np.empty(0, dtype=np.int64)

T = TypeVar("T")
_Stretch = tuple[int, int]
"""First row, and the row after the last one, counted over all parts."""


def verdict_on(
    sources: Sequence[PartSource], parts: Sequence[Part], spec: SampleSpec, prepared: Prepared
) -> tuple[Verdict | None, Reference | None]:
    """Return the verdict on the rows that an append has encoded, and the statistics with which they were compared.

    If the rows cannot be judged, this is only logged as a warning, because the features are already complete.
    """
    finished = prepared.finished
    assert finished is not None
    try:
        reference = _stored_reference(finished) or _new_reference(prepared, finished, spec)
        if reference is None:
            log.warning("append: the new rows are not compared with earlier rows, because too few of those can be read")
            return None, None
        sample = draw_sample(sources, spec)
        n_outside = sum(part.n_outside for part in parts)
        n_good = sum(part.n_rows - part.n_bad for part in parts)
        model = finished.model
        return judge_new_rows(reference, sample, model, model.columns, n_outside, n_good), reference
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


def _stored_reference(finished: FinishedRun) -> Reference | None:
    """Return the statistics that an earlier append has stored, or None."""
    stored = finished.result.statistics()
    return None if stored is None else Reference.of_stored(*stored)


def _new_reference(prepared: Prepared, finished: FinishedRun, spec: SampleSpec) -> Reference | None:
    """Compute the statistics of earlier rows; None if too few of them can be read."""
    facts = finished.result.facts
    # The training numbers its rows without those of unreadable files, which are all bad.
    trained = [part for part in finished.result.parts if not part.append_id and part.n_bad < part.n_rows]
    n_rows = sum(part.n_rows for part in trained)
    # After appends, some rows of the training may have been replaced, so the validation rows are not known.
    rows = None if facts.appends else _held_out(facts.config, n_rows, prepared.budget.max_validation_rows)
    is_held_out = rows is not None
    if rows is None:
        rows = spread_rows(n_rows, _NO_ROWS, min(n_rows, spec.n_rows), spec.seed, max_runs=_MAX_STRETCHES)
    stretches = held_out_stretches(rows, spec.n_rows, _MAX_STRETCHES)
    sources, stretches = _readable(trained, stretches, prepared, finished)
    sample = draw_sample(sources, spec, stretches)
    if sample is None or len(sample.rows) < 2:
        return None
    reference = Reference.of(sample, finished.model, is_held_out, n_rows)
    if facts.config.get("fit_on") is None and facts.config.get("model") is None:
        return reference
    # Not all of these rows determined the range, so those outside were counted.
    n_good = sum(part.n_rows - part.n_bad for part in trained)
    n_outside = sum(part.n_outside for part in trained)
    return replace(reference, outside_share=n_outside / n_good, outside_rows=float(n_good))


def _held_out(config: Mapping[str, Any], n_rows: int, n_most: int) -> np.ndarray | None:
    """Return the sorted numbers of the validation rows, or None if there are none or the model was given."""
    n_validated = min(round(config["validation_fraction"] * n_rows), n_most)
    if config.get("model") is not None or n_validated < 2:
        return None
    return spread_rows(n_rows, _NO_ROWS, n_validated, config["seed"])


def _readable(
    parts: Sequence[Part], stretches: Sequence[_Stretch], prepared: Prepared, finished: FinishedRun
) -> tuple[list[PartSource], list[_Stretch]]:
    """Return the parts that contain stretches, as far as their files can be read, and the stretches in these parts."""
    # Files may have changed, but not their rows.
    same_rows = {number: prepared.shards[prepared.position(number)] for number in finished.same_rows}
    inputs = Inputs(finished.result)
    sources: list[PartSource] = []
    found: list[_Stretch] = []
    n_before = 0  # rows of the sources
    for part, pieces in _spaced(list(_by_part(parts, stretches)), _MAX_PARTS):
        shard = same_rows.get(part.shard)
        if shard is None:
            shard = _unchanged_shard(inputs, part)
        if shard is None:
            continue
        sources.append(PartSource(Block(shard, part.start, part.stop), finished.result.directory / part.file))
        found += [(n_before + start, n_before + stop) for start, stop in pieces]
        n_before += part.n_rows
    return sources, found


def _by_part(parts: Sequence[Part], stretches: Sequence[_Stretch]) -> Iterator[tuple[Part, list[_Stretch]]]:
    """Yield each part that contains stretches, with the rows of these stretches in the part.

    A stretch that continues in the next part ends at the end of its first part.
    """
    firsts = [0, *accumulate(part.n_rows for part in parts)]
    pieces: dict[int, list[_Stretch]] = {}
    for start, stop in stretches:
        number = bisect_right(firsts, start) - 1
        first = firsts[number]
        pieces.setdefault(number, []).append((start - first, min(stop, firsts[number + 1]) - first))
    for number, found in sorted(pieces.items()):
        yield parts[number], found


def _spaced(items: Sequence[T], n_most: int) -> list[T]:
    """Return at most `n_most` evenly spaced items."""
    numbers = np.linspace(0, len(items) - 1, min(len(items), n_most)).astype(int)
    return [items[number] for number in numbers]


def _unchanged_shard(inputs: Inputs, part: Part) -> Shard | None:
    """Return the shard of a part, or None if the input file is missing or has changed."""
    try:
        return inputs.shard(part)
    except (DataError, NoInput) as error:
        log.debug("append: file=%s: not used as a reference: %s", printable(part.path), error)
        return None
