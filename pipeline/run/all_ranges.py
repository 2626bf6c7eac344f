"""The ranges that the columns would have if the model were trained on all rows, from the scans of all appends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.output.ledger import Ledger
from pipeline.output.records import Record
from pipeline.run.finished import FinishedRun
from pipeline.scan.ranges import Scan

__all__ = ["ranges_of_all_rows"]

_LISTED = 10  # columns
_MOST_BYTES = 2**28  # of a stored scan


def ranges_of_all_rows(ledger: Ledger, finished: FinishedRun, scan: Scan | None) -> dict[str, Any] | None:
    """Return the columns whose range appended rows exceed, the most affected ones first.

    Each append has stored the scan of its rows, so that no earlier row is read. Rows that have been replaced or removed
    since then are included.

    Parameters
    ----------
    scan : Scan or None
        Scan of the rows of this append.

    Returns
    -------
    dict or None
        ``n_columns`` is the number of such columns, and ``columns`` describes the first few of them: ``column``,
        ``name``, ``low`` and ``high`` of the training range, ``all_low`` and ``all_high`` of all rows. None if the
        model subtracts an offset from large integers, which scans of appended rows do not.
    """
    model = finished.model
    if model.offset is not None:
        return None
    low = model.scaler.minimum[: model.n_columns]
    high = model.scaler.maximum[: model.n_columns]
    all_low = low
    all_high = high
    for found in _scans(ledger, finished, scan):
        if len(found.minimum) == len(low) and found.n_fitted:
            all_low = np.minimum(all_low, found.minimum)
            all_high = np.maximum(all_high, found.maximum)
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


def _scans(ledger: Ledger, finished: FinishedRun, scan: Scan | None) -> Iterator[Scan]:
    """Yield the scan of this append, and those of earlier ones. A damaged one is left out."""
    if scan is not None:
        yield scan
    kept = set(finished.manifest["kept"])
    for record in ledger.records("scan"):
        found = _read(ledger, record) if record.fingerprint in kept else None
        if found is not None:
            yield found


def _read(ledger: Ledger, record: Record) -> Scan | None:
    if record.entry.n_bytes > _MOST_BYTES:
        return None
    try:
        return Scan.from_npz(ledger.load(record))
    except ValueError:
        return None
