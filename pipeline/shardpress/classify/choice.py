"""Choice of the extra that contains the labels of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardpress.errors import DataError, printable, short_list
from shardpress.features import Features
from shardpress.labels import candidates, extra_of, first_included, labels_in
from shardpress.rowfacts import rows_with_value

__all__ = ["label_name"]

_MAX_LISTED = 5  # datasets that a message lists
_MAX_ROWS = 100_000  # rows that are examined, spread over all rows


def label_name(directory: str, run: Features, named: str | None) -> str:
    """Return the name of the extra with the labels.

    Parameters
    ----------
    directory : str
        Output directory of the run.
    run : Features
        The opened run.
    named : str or None
        Name of an extra, or the path of its dataset. By default, the labels of the run are used. If it names none, the
        first usable extra of ``--target``, of ``--include`` or with a usual name is used, and otherwise the only
        usable extra.

    Raises
    ------
    DataError
        If no extra is named, and if none or several extras can contain labels.
    """
    config = run.manifest["config"]
    names = list(run.extras)
    named = named or config.get("labels")
    if named is not None:
        return extra_of(named, names) or named
    include = [*config.get("include", ())]
    if config.get("target") is not None:
        include.insert(0, config["target"])
    masks = run.manifest.get("masks", {}).values()
    preferred = first_included(names, include, masks)
    for name in preferred:
        if _has_labels(run, name):
            return name
    others = [name for name in candidates(names, include, masks) if name not in preferred]
    usable = [name for name in others if _has_labels(run, name)]
    if len(usable) == 1:
        return usable[0]
    raise DataError(
        f"features={printable(directory)}: {_found(usable)}, expected one extra with labels among {sorted(names)}."
        f"{_left_out(run)} Name the labels with --labels. To copy other datasets, use shardpress run --include "
        "GROUP/NAME."
    )


def _found(usable: Sequence[str]) -> str:
    if not usable:
        return "no extra contains labels"
    return f"{len(usable)} extras can contain labels ({printable(', '.join(sorted(usable)))})"


def _left_out(run: Features) -> str:
    """Return a sentence about the datasets that are not in the index, or an empty string."""
    reasons = [f"{name} ({reason})" for name, reason in run.manifest.get("left_out", {}).items()]
    if not reasons:
        return ""
    return f" Left out: {printable(short_list(reasons, _MAX_LISTED))}."


def _has_labels(run: Features, name: str) -> bool:
    """Return whether an extra contains labels, from some of its values."""
    values = run.extras[name]
    step = max(1, len(values) // _MAX_ROWS)
    values = np.asarray(values[::step].compute())
    if values.ndim != 1:
        return False
    has_value = rows_with_value(run, name)[::step]
    return labels_in(name, values, run.categories.get(name), has_value=has_value) is not None
