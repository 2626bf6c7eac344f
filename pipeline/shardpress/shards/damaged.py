"""The error that names all damaged files, and the flags that continue without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from shardpress.errors import DataError, printable, quantity, short_list

log = logging.getLogger(__name__)

MOST_NAMED = 20
"""Files that the error names."""


def damage_error(reasons: Mapping[str, str], n_files: int | None, percentage: int | None) -> DataError:
    """Return the error about files that cannot be used. If there are several, log the reasons for the first ones.

    Parameters
    ----------
    reasons : mapping of str to str
        Sentences by the path of each file.
    n_files : int, optional
        Number of all files. If it is None, some files were not opened.
    percentage : int, optional
        Value of ``--max-bad`` that allows these files.
    """
    flags = "--on-bad-data skip" if percentage is None else f"--on-bad-data skip --max-bad {percentage}%"
    first = list(reasons.values())[:MOST_NAMED]
    if len(reasons) == 1:
        return DataError(f"{first[0]} To continue nevertheless, use {flags}.")
    for reason in first:
        log.warning("%s", reason)
    names = printable(short_list(reasons, MOST_NAMED))
    n = f"{len(reasons)} or more files" if n_files is None else f"{len(reasons)} of {quantity(n_files, 'file')}"
    return DataError(
        f"{n} cannot be used (see the warnings above): {names}. Fix the files, or continue nevertheless with {flags}."
    )
