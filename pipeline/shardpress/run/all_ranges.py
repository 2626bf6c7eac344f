"""The ranges that the columns would have if the model were trained on all rows, from the scans of all appends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpress.output.ledger import Ledger
from shardpress.output.records import Record
from shardpress.rowfacts import DROPPED
from shardpress.run.finished import FinishedRun
from shardpress.scan.ranges import Scan

_LISTED = 10  # columns
_MOST_BYTES = 2**28  # of a stored scan


@dataclass(frozen=True)
class _Scanned:
    """Shards that one run has read, and their scan.

    Attributes
    ----------
    numbers : sequence of int
        Numbers of the shards.
    scan : Scan or None
        None if there is no usable scan of them.
    """

    numbers: Sequence[int]
    scan: Scan | None


def ranges_of_all_rows(ledger: Ledger, finished: FinishedRun, scan: Scan | None) -> dict[str, Any] | None:
    """Return the columns whose range appended rows exceed, the most affected ones first.

    The ranges of each shard are stored when it is scanned, so no earlier row is read. Shards whose rows were removed or
    replaced are left out if their scan contains the ranges of single shards; otherwise the whole scan is used.

    Parameters
    ----------
    scan : Scan or None
        Scan of the rows of this append.

    Returns
    -------
    dict or None
        ``n_columns`` is the number of such columns, and ``columns`` describes the first few of them: ``column``,
        ``name``, ``low`` and ``high`` of the training range, ``all_low`` and ``all_high`` of all rows. None for models
        whose range is not that of the stored values: they clip values between quantiles, replace values by ranks, or
        subtract an offset from large integers.
    """
    model = finished.model
    if model.offset is not None or model.scaler.clips or model.scaler.tables is not None:
        return None
    low = model.scaler.minimum[: model.n_columns]
    high = model.scaler.maximum[: model.n_columns]
    all_low, all_high = _combined(low, high, _scanned(ledger, finished, scan), _removed(finished))
    width = np.where(high > low, high - low, np.inf)
    excess = np.maximum(low - all_low, all_high - high)
    exceeded = np.flatnonzero(excess > 0)
    most_first = exceeded[np.argsort(-(excess[exceeded] / width[exceeded]), kind="stable")]
    columns = []
    for column in most_first[:_LISTED].tolist():
        facts = {"column": column, "name": model.columns.name_of(column)}
        ranges = {"low": low, "high": high, "all_low": all_low, "all_high": all_high}
        columns.append({**facts, **{name: float(values[column]) for name, values in ranges.items()}})
    return {"n_columns": len(exceeded), "columns": columns}


def _combined(
    low: np.ndarray, high: np.ndarray, scanned: Sequence[_Scanned], removed: set[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of all rows, at least the training range (`low` to `high`).

    Parameters
    ----------
    scanned : sequence of _Scanned
        All scans, the latest one first.
    removed : set of int
        Numbers of the shards whose rows were removed.
    """
    outdated = set(removed)  # shards of later scans are added: their rows were replaced
    for each in scanned:
        is_current = [number not in outdated for number in each.numbers]
        outdated.update(each.numbers)
        found = each.scan
        if found is None or len(found.minimum) != len(low) or not found.n_fitted:
            continue
        if found.shard_ranges is None or found.shard_ranges.shape[1] != len(is_current):
            low = np.minimum(low, found.minimum)
            high = np.maximum(high, found.maximum)
        else:
            low = np.minimum(low, found.shard_ranges[0][is_current].min(axis=0, initial=np.inf))
            high = np.maximum(high, found.shard_ranges[1][is_current].max(axis=0, initial=-np.inf))
    return low, high


def _removed(finished: FinishedRun) -> set[int]:
    """Return the numbers of the shards whose rows were removed, by this append or an earlier one."""
    earlier = [number for number, shard in enumerate(finished.identities) if DROPPED in shard]
    return {*earlier, *finished.dropped}


def _scanned(ledger: Ledger, finished: FinishedRun, scan: Scan | None) -> list[_Scanned]:
    """Return the scan of this append, those of earlier ones, and that of the training, in this order."""
    stored = dict(_stored_scans(ledger, finished))
    scanned = [_Scanned(finished.encoded_numbers, scan)]
    for line in reversed(finished.scans):
        scanned.append(_Scanned(line["shards"], stored.pop(line["scan"], None)))
    n_trained = finished.manifest["request"]["inputs"].get("n_trained", len(finished.identities))
    return [*scanned, *(_Scanned(range(n_trained), found) for found in stored.values())]


def _stored_scans(ledger: Ledger, finished: FinishedRun) -> Iterator[tuple[str, Scan]]:
    """Yield the fingerprint and the scan of each earlier run. A damaged one is left out."""
    kept = set(finished.manifest["kept"])
    for record in ledger.records("scan"):
        found = _read(ledger, record) if record.fingerprint in kept else None
        if found is not None:
            yield record.fingerprint, found


def _read(ledger: Ledger, record: Record) -> Scan | None:
    if record.entry.n_bytes > _MOST_BYTES:
        return None
    try:
        return Scan.from_npz(ledger.load(record))
    except ValueError:
        return None
