"""Functions that give new shards the extras of earlier parts, so that their rows can be added to a finished run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.hdf5.limits import MOST_LEFT_OUT
from shardpress.hdf5.shard import Extra, LeftOut, Shard
from shardpress.shards.extras import common_dtype, existing_paths, in_words, rename_extras, shorten, unify_renamed

log = logging.getLogger(__name__)

_NOT_IN_EARLIER = "not in the earlier rows (--append --include adds it to all rows)"
_NAMED = 20  # extras that a message names


def fit_extras(
    shards: Sequence[Shard], part: Shard, refuse: Callable[[str, DataError], object], include: Sequence[str] = ()
) -> tuple[Shard, ...]:
    """Return new shards with the extras of a part of a finished run, which has those of its index and their masks.

    Further extras are left out with a warning. Codes refer to the categories of the part, followed by new ones.
    `refuse` is called with the path of each shard that lacks an extra, or whose values do not fit into the dtype of the
    part. Such shards are left out.

    Raise `DataError` if the codes of all categories do not fit into the dtype of the part.
    """
    shards, _ = rename_extras(shards, existing_paths(shards, include))
    masks = {extra.name: extra.mask for extra in part.extras if extra.mask is not None}
    expected = [extra for extra in part.extras if extra.name not in masks.values()]
    required = {extra.name for extra in expected if extra.mask is None}
    fitting = []
    for shard in shards:
        try:
            _check_has_all(shard, required, part)
            _check_values(shard, expected, part)
            fitting.append(shard)
        except DataError as error:
            refuse(shard.path, error)
    if not fitting:
        return ()
    shards = _without_others(fitting, {extra.name for extra in part.extras})
    named = {extra.name for shard in shards for extra in shard.extras if extra.is_named}
    model = tuple(replace(extra, is_named=extra.name in named) for extra in expected)
    categories = {extra.name: extra.categories for extra in model if extra.categories is not None}
    unified = unify_renamed([replace(part, extras=model), *shards], frozenset(), categories)[1:]
    fitted = [_with_masks(shard, masks) for shard in unified]
    for extra in part.extras:
        _check_dtype(extra, fitted[0], part)
    return tuple(fitted)


def _check_has_all(shard: Shard, required: Iterable[str], part: Shard) -> None:
    missing = sorted(set(required) - {extra.name for extra in shard.extras})
    if missing and shard.n_rows:
        them = "it" if len(missing) == 1 else "them"
        raise DataError(
            f"{shard}: lacks {quantity(len(missing), 'extra')} of the earlier rows (file={printable(part.path)}), "
            f"expected {printable(short_list(missing, _NAMED))}. Add {them} to the file, for example with missing "
            "values; or write these rows to another --output with --model."
        )


def _without_others(shards: Sequence[Shard], names: set[str]) -> list[Shard]:
    fitting = []
    for shard in shards:
        extras = tuple(extra for extra in shard.extras if extra.name in names)
        surplus = (LeftOut(extra.name, _NOT_IN_EARLIER, True) for extra in shard.extras if extra.name not in names)
        left_out = (*surplus, *shard.left_out)[:MOST_LEFT_OUT]
        fitting.append(replace(shard, extras=extras, left_out=left_out))
    return fitting


def _with_masks(shard: Shard, masks: Mapping[str, str]) -> Shard:
    """Return a shard with a mask for each extra that some rows lack or lacked. `masks` are their names."""
    names = {extra.name for extra in shard.extras}
    extras = [replace(extra, mask=masks.get(extra.name)) for extra in shard.extras]
    extras += [Extra(mask, np.dtype(bool), fill=True) for mask in sorted(masks.values()) if mask not in names]
    return replace(shard, extras=tuple(extras))


def _check_values(shard: Shard, expected: Sequence[Extra], part: Shard) -> None:
    """Check that values fit into the dtype of the part, and that both or none have categories."""
    own = {extra.name: extra for extra in shard.extras if shard.n_rows}
    for extra in expected:
        found = own.get(extra.name)
        if found is None:
            continue
        are_alike = (extra.categories is None) == (found.categories is None)
        if extra.categories is None and found.categories is None:
            are_alike = common_dtype([extra.dtype, found.dtype]) == extra.dtype
        if not are_alike:
            raise _dtype_error(shard, found, extra, part)


def _check_dtype(expected: Extra, shard: Shard, part: Shard) -> None:
    """Check that an extra of a fitted shard has the dtype of the part, and not, for example, longer codes."""
    found = next((extra for extra in shard.extras if extra.name == expected.name), None)
    if found is None or found.dtype != expected.dtype:
        raise _dtype_error(shard, found, expected, part)


def _dtype_error(shard: Shard, found: Extra | None, expected: Extra, part: Shard) -> DataError:
    values = "of another dtype" if found is None else in_words(found)
    return DataError(
        f"{shard}: extra {shorten(expected.name)} is {values}, but {in_words(expected)} in the earlier rows "
        f"(file={printable(part.path)}). Convert it in the file, or write these rows to another --output with --model."
    )
