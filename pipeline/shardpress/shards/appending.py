"""Functions that give new shards the extras of earlier parts, so that their rows can be added to a finished run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.shard import Extra, LeftOut, Shard
from shardpress.shards.extras import (
    FileExtras,
    common_dtype,
    common_extras,
    existing_paths,
    in_words,
    rename_extras,
    shorten,
)
from shardpress.shards.vet import InputFile

log = logging.getLogger(__name__)

_NOT_IN_EARLIER = "not in the earlier rows (--append --include adds it to all rows)"
_NAMED = 20  # extras that a message names


def fit_extras(
    files: Sequence[InputFile],
    columns: Columns,
    part: InputFile,
    refuse: Callable[[str, DataError], object],
    include: Sequence[str] = (),
) -> tuple[Shard, ...]:
    """Return the shards of new files with the extras of a part of a finished run, which has those of its index.

    Further extras are left out with a warning. Codes refer to the categories of the part, followed by new ones.
    `refuse` is called with the path of each file that lacks an extra, or whose values do not fit into the dtype of the
    part. Such files are left out.

    Raise `DataError` if the codes of all categories do not fit into the dtype of the part.
    """
    candidates, _ = rename_extras(files, existing_paths(files, include))
    masks = {extra.name: extra.mask for extra in part.description.extras if extra.mask is not None}
    expected = [extra for extra in part.description.extras if extra.name not in masks.values()]
    required = {extra.name for extra in expected if extra.mask is None}
    known_names = {extra.name for extra in part.description.extras}
    fitting = []
    for candidate in candidates:
        try:
            _check_has_all(candidate, required, part)
            _check_values(candidate, expected, part)
            fitting.append(_without_others(candidate, known_names))
        except DataError as error:
            refuse(candidate.file.path, error)
    categories = {extra.name: extra.categories for extra in expected if extra.categories is not None}
    extras, _ = common_extras([FileExtras(part, tuple(expected), ()), *fitting], frozenset(), categories)
    shards = []
    for candidate, own in zip(fitting, extras[1:], strict=True):
        shards.append(candidate.file.shard(columns, _with_masks(own, masks), candidate.left_out))
    for extra in part.description.extras if shards else ():
        _check_dtype(extra, shards[0], part)
    return tuple(shards)


def _check_has_all(candidate: FileExtras, required: Iterable[str], part: InputFile) -> None:
    missing = sorted(set(required) - {extra.name for extra in candidate.extras})
    if missing and candidate.file.n_rows:
        them = "it" if len(missing) == 1 else "them"
        raise DataError(
            f"{candidate.file}: lacks {quantity(len(missing), 'extra')} of the earlier rows "
            f"(file={printable(part.path)}), expected {printable(short_list(missing, _NAMED))}. Add {them} to the "
            "file, for example with missing values; or write these rows to another --output with --model."
        )


def _without_others(candidate: FileExtras, names: set[str]) -> FileExtras:
    """Return the candidate without extras that the part lacks. They are listed as left out."""
    extras = tuple(extra for extra in candidate.extras if extra.name in names)
    surplus = [LeftOut(extra.name, _NOT_IN_EARLIER, True) for extra in candidate.extras if extra.name not in names]
    return FileExtras(candidate.file, extras, (*surplus, *candidate.left_out)[:MOST_LEFT_OUT])


def _with_masks(extras: Sequence[Extra], masks: Mapping[str, str]) -> tuple[Extra, ...]:
    """Return extras with a mask for each one that some rows lack or lacked. `masks` are their names."""
    names = {extra.name for extra in extras}
    masked = [replace(extra, mask=masks.get(extra.name)) for extra in extras]
    masked += [Extra(mask, np.dtype(bool), fill=True) for mask in sorted(masks.values()) if mask not in names]
    return tuple(masked)


def _check_values(candidate: FileExtras, expected: Sequence[Extra], part: InputFile) -> None:
    """Check that values fit into the dtype of the part, and that both or none have categories."""
    own = {extra.name: extra for extra in candidate.extras if candidate.file.n_rows}
    for earlier in expected:
        extra = own.get(earlier.name)
        if extra is None:
            continue
        are_alike = (earlier.categories is None) == (extra.categories is None)
        if earlier.categories is None and extra.categories is None:
            are_alike = common_dtype([earlier.dtype, extra.dtype]) == earlier.dtype
        if not are_alike:
            raise _dtype_error(candidate.file, extra, earlier, part)


def _check_dtype(expected: Extra, shard: Shard, part: InputFile) -> None:
    """Check that an extra of a fitted shard has the dtype of the part, and not, for example, longer codes."""
    extra = next((extra for extra in shard.extras if extra.name == expected.name), None)
    if extra is None or extra.dtype != expected.dtype:
        raise _dtype_error(shard, extra, expected, part)


def _dtype_error(where: InputFile | Shard, extra: Extra | None, expected: Extra, part: InputFile) -> DataError:
    values = "of another dtype" if extra is None else in_words(extra)
    return DataError(
        f"{where}: extra {shorten(expected.name)} is {values}, but {in_words(expected)} in the earlier rows "
        f"(file={printable(part.path)}). Convert it in the file, or write these rows to another --output with --model."
    )
