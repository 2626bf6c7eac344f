"""Comparison of the rows that an append brings with rows that were held out from the training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shardpress.base.errors import RowsDrifted, printable
from shardpress.report.newrows import judge_new_rows
from shardpress.report.reference import Reference
from shardpress.report.sampling import PartSource, SampleSpec, draw_sample, held_out_stretches, max_stretches
from shardpress.result.facts import Verdict
from shardpress.result.finished import Result, Use
from shardpress.result.records import Range
from shardpress.training.order import spread_rows

log = logging.getLogger(__name__)

_MAX_FILES = 128  # that are opened for held-out rows
_MAX_STRETCHES = 512  # of held-out rows, which are often single rows
# Verdicts that end an append for each value of --on-append-drift; None if the rows could not be judged.
_REFUSED = {"warn": (), "fail": ("retrain", None), "watch": ("watch", "retrain", None)}


def reference_of(
    sources: Sequence[PartSource], ranges: Sequence[Range], use: np.ndarray, spec: SampleSpec
) -> Reference | None:
    """Return the statistics of the held-out rows of a run that has trained a model; None if fewer than two are good.

    The sources are the rows of the ranges, and `use` (n_rows,) is the `Use` of each of them.
    """
    starts = np.cumsum([0, *(rows.n_rows for rows in ranges)])
    chosen = np.unique(np.linspace(0, len(sources) - 1, min(len(sources), _MAX_FILES)).astype(int)).tolist()
    some = [sources[i] for i in chosen]
    use_of_some = np.concatenate([use[starts[i] : starts[i + 1]] for i in chosen])
    rows = _held_out(use_of_some, spec.seed)
    sample = draw_sample(some, spec, held_out_stretches(rows, spec.sizes.n_rows, max_stretches(some, _MAX_STRETCHES)))
    if sample is None:
        return None
    return Reference.of(sample, spec.model, _paths(some), len(use), _share_outside(use, ranges))


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


def _share_outside(use: np.ndarray, ranges: Sequence[Range]) -> float | None:
    """Return the share of rows outside the training range; None if all rows determined it."""
    if not (use == Use.LEFT_OUT).any():
        return None
    n_good = sum(rows.n_rows - rows.n_bad for rows in ranges)
    return sum(rows.n_outside for rows in ranges) / max(1, n_good)


def verdict_on(
    sources: Sequence[PartSource], ranges: Sequence[Range], spec: SampleSpec, base: Result
) -> Verdict | None:
    """Return the verdict on the rows that an append brings, which are those of `ranges`.

    If the rows cannot be judged, this is only logged as a warning, because the features are already complete.
    """
    stored = base.statistics()
    if not stored:
        log.warning("append: the new rows are not judged, because no rows were held out from the training of the model")
        return None
    try:
        sample = draw_sample(sources, spec)
        n_outside = sum(rows.n_outside for rows in ranges)
        n_good = sum(rows.n_rows - rows.n_bad for rows in ranges)
        reference = Reference.of_stored(stored)
        return judge_new_rows(reference, sample, base.model, base.model.columns, n_outside, n_good, _paths(sources))
    except Exception as error:  # the features are complete without a verdict
        reason = printable(f"{type(error).__name__}: {error}")
        log.warning("append: the new rows could not be compared with the held-out rows: %s", reason)
        return None


def _paths(sources: Sequence[PartSource]) -> list[str]:
    return [source.block.shard.path for source in sources]


def check_verdict(verdict: Verdict | None, directory: Path, on_append_drift: str) -> None:
    """Log a verdict; None if the rows could not be judged. Raise `RowsDrifted` if `on_append_drift` requires it."""
    level = None if verdict is None else verdict.level
    is_refused = level in _REFUSED[on_append_drift]
    where = f"output={printable(directory)}"
    unpublished = f"Their features are not published (--on-append-drift {on_append_drift})."
    if verdict is None:
        if is_refused:
            raise RowsDrifted(
                f"{where}: the new rows could not be judged (see the warning above), expected a verdict. {unpublished} "
                "Publish them with --on-append-drift warn."
            )
        return
    words = " ".join(verdict.reasons)
    if is_refused:
        raise RowsDrifted(
            f"{where}: verdict on the new rows: {level}. {words} {unpublished} Check the new files. To publish the "
            "features, append with --on-append-drift warn; to train a new model on all files, use --retrain."
        )
    if level == "keep":
        log.info("append: verdict on the new rows: keep the model. %s", words)
        return
    log.warning("append: verdict on the new rows: %s. %s", level, words)
