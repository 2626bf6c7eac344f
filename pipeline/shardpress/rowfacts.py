"""Facts about the rows of a finished run: which rows trained its model, and which ones have a value of an extra.

No file stores how each row was used. For the files of the training, it follows from the condition of ``--fit-on``, as
long as the results contain the rows of the training in their order and with their extras. Otherwise it is unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from shardpress.conditions import fulfils
from shardpress.features import Features
from shardpress.labels import extra_of
from shardpress.records import Part, Request
from shardpress.settings.condition import Condition

SELECTED = "fitted"
"""Key in the settings of a scan: the digest of the rows that ``--fit-on`` selects."""


@dataclass(frozen=True)
class _TrainedRows:
    """The rows of a run that trained its model."""

    rows: np.ndarray | None  # bool (n_rows,), or None if they are unknown
    reason: str = ""  # sentence that says why they are unknown


def trained_rows(run: Features) -> _TrainedRows:
    """Return the rows of a finished run in an output directory that trained its model."""
    assert run.result is not None
    facts = run.result.facts
    parts = run.result.parts
    if facts.config.get("model") is not None:
        return _TrainedRows(None, "The model is that of another run, which may have trained it on these rows.")
    if has_lost_trained_rows(facts.request, parts):
        return _TrainedRows(
            None,
            "Since the training, some of its files were removed, or their rows were encoded again, so that it is not "
            "known which rows trained the model.",
        )
    n_trained = n_trained_shards(facts.request)
    trained = np.repeat([part.shard < n_trained for part in parts], [part.n_rows for part in parts])
    fit_on = facts.config.get("fit_on")
    if fit_on is None:
        return _TrainedRows(trained)
    selected = _selected_rows(run, fit_on)
    if selected is None or selection_digest(selected[trained]) != facts.request.scan.get(SELECTED):
        return _TrainedRows(
            None, "The extra of --fit-on in the results does not have the values that it had during the training."
        )
    return _TrainedRows(selected & trained)


def n_trained_shards(request: Request) -> int:
    """Return the number of shards of the training. The later ones were appended."""
    return len(request.shards) if request.n_trained is None else request.n_trained


def has_lost_trained_rows(request: Request, parts: Iterable[Part]) -> bool:
    """Return whether rows of the training were removed from the results or encoded again.

    Appended rows may then be rows of the training in another file, and rows that were encoded again may be other rows.
    """
    n_trained = n_trained_shards(request)
    if any(shard.dropped_by is not None for shard in request.shards[:n_trained]):
        return True
    return any(part.shard < n_trained and part.append_id for part in parts)


def selection_digest(selected: np.ndarray) -> str:
    """Return the SHA-256 of the rows that ``--fit-on`` selects, given as a mask (n_rows,)."""
    return sha256(len(selected).to_bytes(8, "little") + np.packbits(selected).tobytes()).hexdigest()


def _selected_rows(run: Features, fit_on: str) -> np.ndarray | None:
    """Return a mask (n_rows,) of the rows that fulfil the condition of ``--fit-on``. None if it cannot be evaluated."""
    condition = Condition.parse(fit_on)
    name = extra_of(condition.name, list(run.extras))
    if name is None:
        return None
    try:
        selected = fulfils(condition, np.asarray(run.extras[name].compute()), run.categories.get(name))
    except ValueError:
        return None
    return selected & rows_with_value(run, name)


# -- values of extras ----------------------------------------------------------------------------------------------


def rows_with_value(run: Features, name: str) -> np.ndarray:
    """Return a mask of the rows that have a value of an extra, bool (n_rows,).

    The other rows are those of shards without the extra, and those whose value could not be read. Their fill values can
    be values of other rows, too.
    """
    has_value = np.ones(len(run.extras[name]), dtype=bool)
    if run.result is None:
        return has_value
    mask = run.result.facts.masks.get(name)
    if mask is not None:
        has_value &= run.extras[mask].compute()
    first = 0
    for part in run.result.parts:
        ranges = part.lost.get(name)
        if ranges:
            numbers = np.arange(part.start, part.start + part.n_rows)
            has_value[first : first + part.n_rows] &= ~in_ranges(numbers, ranges)
        first += part.n_rows
    return has_value


def in_ranges(numbers: np.ndarray, ranges: Sequence[Sequence[int]]) -> np.ndarray:
    """Return whether each number is in one of the ranges, which are pairs of a first number and an end: bool (n,)."""
    found = np.zeros(len(numbers), dtype=bool)
    for first, end in ranges:
        found |= (numbers >= first) & (numbers < end)
    return found
