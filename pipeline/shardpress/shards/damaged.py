"""The error that names all damaged files, and the flags that continue without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.base.runlog import BAD_FILE

log = logging.getLogger(__name__)

MOST_NAMED = 20
"""Files that the error names."""


class UnusableFiles(DataError):
    """Files that cannot be used."""

    # Sentences by the path of each file; empty if the message is complete.
    reasons: Mapping[str, str] = MappingProxyType({})


def damage_error(
    reasons: Mapping[str, str], n_files: int, percentage: int | None, common: str | None = None
) -> UnusableFiles:
    """Return the error about files that cannot be used. If their reasons differ, log the first ones.

    Parameters
    ----------
    reasons : mapping of str to str
        Sentences by the path of each file.
    n_files : int
        Number of all files.
    percentage : int, optional
        Value of ``--max-bad`` that allows these files.
    common : str, optional
        End of the sentences, after the file, if it is the same for all of them.
    """
    first_path, first = next(iter(reasons.items()))
    is_about_all = n_files == len(reasons) and percentage is not None  # then no row would be left
    flags = "--on-bad-data skip" if percentage is None else f"--on-bad-data skip --max-bad {percentage}%"
    if len(reasons) == 1:
        return UnusableFiles(first if is_about_all else f"{first} To continue nevertheless, use {flags}.")
    n = f"{len(reasons)} of {quantity(n_files, 'file')}"
    if common is not None and is_about_all:
        return UnusableFiles(
            f"{n} cannot be used for the same reason; the first one is file={printable(first_path)}{common}"
        )
    for reason in list(reasons.values())[:MOST_NAMED]:
        log.warning("%s", reason, extra={BAD_FILE: True})
    names = printable(short_list(reasons, MOST_NAMED))
    advice = "Fix the files." if is_about_all else f"Fix the files, or continue nevertheless with {flags}."
    error = UnusableFiles(f"{n} cannot be used (see the warnings above): {names}. {advice}")
    error.reasons = reasons
    return error
