"""Functions that give all shards the same extras, such as labels and ids, and log the extras.

In a shard that lacks an extra, the rows get a fill value that is unlikely to be a real value. A mask marks the rows
that have a value: ``y_present`` for ``y``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from shardpress.base.errors import DataError, printable, quantity, short_list
from shardpress.hdf5.columns import Columns
from shardpress.hdf5.limits import MAX_EXTRAS, MOST_LEFT_OUT
from shardpress.hdf5.names import A_GROUP, Category, are_few, is_requested, normal
from shardpress.hdf5.shard import Extra, LeftOut, Shard, code_dtype
from shardpress.result.finished import RESERVED
from shardpress.shards.vet import InputFile

log = logging.getLogger(__name__)

_MASK = "_present"  # end of the name of a mask

_MOST_LOGGED = 10  # messages of one kind
_FILES = 3  # files that a warning names
_NAMED = 20  # extras in a line of the log
_LEFT_OUT = 10  # left out extras in a line of the log
_LONGEST = 80  # characters of a name or reason


class FileExtras(NamedTuple):
    """The extras of a file, by their names in the output, and datasets of the file that are not extras."""

    file: InputFile
    extras: tuple[Extra, ...]
    left_out: tuple[LeftOut, ...]


_Holders = Sequence[tuple[FileExtras, Extra]]  # files that contain an extra of a given name, each with that extra


def unify_extras(
    files: Sequence[InputFile],
    columns: Columns,
    include: Sequence[str],
    categories: Mapping[str, Sequence[Category]],
) -> tuple[Shard, ...]:
    """Return the shards of files, which all have the same extras and the same `columns`.

    The extras are those of any file, with a dtype that holds the values of all files. Codes refer to known
    `categories`, followed by new ones. Raise `DataError` if no file has an extra at one of the paths `include`, or if
    no dtype holds those at the path of a dataset.
    """
    candidates, required = rename_extras(files, include)
    extras, unfit = common_extras(candidates, required, categories)
    shards = []
    for candidate, own in zip(candidates, extras, strict=True):
        shards.append(candidate.file.shard(columns, own, (*unfit, *candidate.left_out)))
        unfit = []  # only the first shard lists these extras, because they are the same for all shards
    return tuple(shards)


def common_extras(
    candidates: Sequence[FileExtras], required: frozenset[str], categories: Mapping[str, Sequence[Category]]
) -> tuple[list[tuple[Extra, ...]], list[LeftOut]]:
    """Return the extras of each file, which are the same for all files, and those without a common dtype.

    `required` are the names of extras that must have a common dtype. Log warnings about the others.
    """
    kinds = {tuple((extra.name, _kind(extra)) for extra in candidate.extras) for candidate in candidates}
    has_known = any(extra.name in categories for extra in candidates[0].extras)
    if len(kinds) == 1 and not has_known:
        return [candidate.extras for candidate in candidates], []  # the usual case
    common, unfit = _compare_extras(candidates, required, categories)
    return [tuple(_fitted_extras(candidate, common)) for candidate in candidates], unfit


def _compare_extras(
    candidates: Sequence[FileExtras], required: frozenset[str], categories: Mapping[str, Sequence[Category]]
) -> tuple[list[Extra], list[LeftOut]]:
    """Return the extras that every shard gets, and those without a common dtype."""
    holders = _holders_by_name(candidates)
    used_names = set(holders)  # including extras that are left out, so that no mask gets the name of a dataset
    unnamed = [name for name, pairs in holders.items() if not pairs[0][1].is_named]
    surplus = set(unnamed[MAX_EXTRAS:])  # extras that a user has named do not count
    warnings: list[str] = []
    partial: list[str] = []
    common: list[Extra] = []
    unfit: list[LeftOut] = []
    for name, pairs in holders.items():
        if name in surplus:
            continue
        # A file without rows has no values that must fit.
        with_rows = [pair for pair in pairs if pair[0].file.n_rows] or pairs
        kinds = _first_of_each_kind(with_rows)
        extra = _common_extra(name, [extra for _, extra in kinds], tuple(categories.get(name, ())))
        if extra is not None:
            lacking = _lacking(pairs, candidates)
            if lacking:
                extra = replace(extra, mask=_unused_name(f"{name}{_MASK}", used_names))
                is_unexpected = name in required or any(_reason(candidate, name) for candidate in lacking)
                lines = warnings if is_unexpected else partial
                lines.append(_describe_missing(extra, lacking, len(candidates)))
            common.append(extra)
            continue
        difference = _difference(name, kinds)
        if name in required:
            raise DataError(f"{difference}. Store it with one dtype in all files, or omit --include {printable(name)}.")
        warnings.append(f"{difference}. The extra is left out")
        unfit.append(LeftOut(name, difference, False))
    if surplus:
        n_left_out = quantity(len(surplus), "more extra")
        warnings.append(f"{n_left_out} left out: at most {MAX_EXTRAS} are copied. Choose others with --include")
    _log_first(logging.INFO, partial)
    _log_first(logging.WARNING, warnings)
    return common, unfit


def _holders_by_name(candidates: Sequence[FileExtras]) -> dict[str, list[tuple[FileExtras, Extra]]]:
    holders: dict[str, list[tuple[FileExtras, Extra]]] = {}
    for candidate in candidates:
        for extra in candidate.extras:
            holders.setdefault(extra.name, []).append((candidate, extra))
    return holders


def _kind(extra: Extra) -> object:
    # The metadata contain the names of an enumeration's values.
    return extra.dtype, repr(extra.dtype.metadata), extra.categories


def _common_extra(name: str, kinds: Sequence[Extra], known: tuple[Category, ...]) -> Extra | None:
    """Return an extra that can hold the values of extras of several kinds, or None.

    `known` categories keep their codes.
    """
    path = kinds[0].path
    all_categories = [extra.categories for extra in kinds if extra.categories is not None]
    if not all_categories:
        dtype = common_dtype([extra.dtype for extra in kinds])
        return None if dtype is None else Extra(name, dtype, path=path)
    if len(all_categories) < len(kinds):
        return None
    categories = _union([known, *all_categories])
    if categories is None:
        return None
    return Extra(name, code_dtype(categories), fill=-1, categories=categories, path=path)


def _first_of_each_kind(holders: _Holders) -> list[tuple[FileExtras, Extra]]:
    """Return the first file of each kind with its extra, sorted by the last file of each kind, for messages."""
    pairs: dict[object, tuple[FileExtras, Extra]] = {}
    for candidate, extra in reversed(holders):
        pairs[_kind(extra)] = (candidate, extra)
    return list(reversed(pairs.values()))


def _difference(name: str, kinds: _Holders) -> str:
    first, other = (f"{in_words(extra)} from file={printable(candidate.file.path)}" for candidate, extra in kinds[:2])
    reason = ""
    if all(extra.categories is not None for _, extra in kinds):
        reason = "; together they are too many or mix numbers and strings"
    return f"{shorten(name)} is {first} and {other}{reason}"


def in_words(extra: Extra) -> str:
    """Describe the values of an extra for a message."""
    if extra.categories is None:
        return str(extra.dtype)
    return f"codes of {len(extra.categories)} categories"


def _union(all_categories: Sequence[tuple[Category, ...]]) -> tuple[Category, ...] | None:
    """Return all categories in the order of first use, or None if they are too many or mix texts and numbers."""
    union = tuple(dict.fromkeys(category for categories in all_categories for category in categories))
    are_mixed = len({isinstance(category, str) for category in union}) > 1
    if are_mixed or not are_few(union):
        return None
    return union


def _lacking(holders: _Holders, candidates: Sequence[FileExtras]) -> list[FileExtras]:
    """Return the files that have rows, but not the extra of the holders."""
    # Compare identities, since a test for equality would compare all extras of the files.
    holder_ids = {id(candidate) for candidate, _ in holders}
    return [candidate for candidate in candidates if id(candidate) not in holder_ids and candidate.file.n_rows]


def _describe_missing(extra: Extra, lacking: Sequence[FileExtras], n_files: int) -> str:
    files = short_list((_file_and_reason(candidate, extra.name) for candidate in lacking), _FILES)
    return (
        f"{shorten(extra.name)} is missing in {len(lacking)} of {n_files} shards, {files}. Their rows get "
        f"{extra.fill_in_words}, and {shorten(extra.mask or '')} marks the rows that have it"
    )


def _unused_name(name: str, used_names: set[str]) -> str:
    """Return the name, with underscores until it is unused, and add it to `used_names`."""
    while name in used_names:
        name += "_"
    used_names.add(name)
    return name


def _file_and_reason(candidate: FileExtras, name: str) -> str:
    reason = _reason(candidate, name)
    suffix = f" ({shorten(reason)})" if reason else ""
    return f"file={printable(candidate.file.path)}{suffix}"


def _reason(candidate: FileExtras, name: str) -> str | None:
    return next((dataset.reason for dataset in candidate.left_out if dataset.name == name), None)


def _fitted_extras(candidate: FileExtras, common: Sequence[Extra]) -> Iterable[Extra]:
    """Yield the extras that every shard gets, and their masks, with the places of the values in this file."""
    own = {extra.name: extra for extra in candidate.extras if candidate.file.n_rows}
    for expected in common:
        extra = own.get(expected.name)
        if extra is None:
            yield expected
        else:
            yield replace(
                extra,
                dtype=expected.dtype,
                mask=expected.mask,
                categories=expected.categories,
                codes=_codes_of(extra, expected.categories),
            )
        if expected.mask:
            yield Extra(expected.mask, np.dtype(bool), fill=extra is not None)


def _codes_of(extra: Extra, categories: Sequence[Category] | None) -> tuple[int, ...] | None:
    """Return the position of each category of an extra in the common categories."""
    if categories is None:
        return None
    positions = {category: i for i, category in enumerate(categories)}
    return tuple(positions[category] for category in extra.categories or ())


# -- extras that a user has named ----------------------------------------------------------------------------------


def rename_extras(files: Sequence[InputFile], include: Sequence[str]) -> tuple[list[FileExtras], frozenset[str]]:
    """Return the extras of files with their names in the output, and the names of those at the paths `include`.

    The names do not include extras in groups that a user has given, and the names of rows. Raise `DataError` if there
    is no extra at a path, or if its name in the output is reserved.
    """
    extras = [extra for file in files for extra in file.description.extras]
    named = list(dict.fromkeys(extra.name for extra in extras if extra.is_named))
    existing = existing_paths(files, include)
    for path in include:
        if path not in existing:
            raise _missing_error(files[0], path)
    paths = [path for path in include if path in named]
    names = _short_names(paths, named, {extra.name for extra in extras if not extra.is_named}) if named else {}
    for path in paths:
        if names[path] in RESERVED:
            raise _reserved_error(files, path, names[path])
    return [_with_names(file, names) for file in files], frozenset(names[path] for path in paths)


def existing_paths(files: Sequence[InputFile], include: Sequence[str]) -> list[str]:
    """Return the paths of a user at which at least one file has an extra."""
    extras = [extra for file in files for extra in file.description.extras]
    paths = {extra.name if extra.is_named else normal(extra.stored.layout.name) for extra in extras if extra.stored}
    return [path for path in include if any(is_requested(own_path, [path]) for own_path in paths)]


def _missing_error(first: InputFile, path: str) -> DataError:
    where = f"file={printable(first.path)} dataset={printable(path)}"
    reasons = {dataset.name: dataset.reason for dataset in first.description.left_out}
    return DataError(f"{where}: {printable(reasons.get(path, 'cannot be copied'))}. Choose one with --include.")


def _reserved_error(files: Sequence[InputFile], path: str, name: str) -> DataError:
    holder = next(file for file in files if any(extra.name == path for extra in file.description.extras))
    return DataError(
        f"file={printable(holder.path)} dataset={printable(path)}: its values would be stored as {name}, a name that "
        f"is reserved for shardpress ({', '.join(RESERVED)}). Rename the dataset in the files, or omit --include "
        f"{printable(path)}."
    )


def _short_names(first: Sequence[str], paths: Sequence[str], used_names: set[str]) -> dict[str, str]:
    """Return a name for each path: the last part, or the whole path if the last part is in use or not unique.

    The names of the paths `first` do not depend on the other paths.
    """
    names: dict[str, str] = {}
    used_names = set(used_names)
    n_uses = Counter(_last_part(path) for path in paths)
    n_uses_in_first = Counter(_last_part(path) for path in first)
    for path in dict.fromkeys([*first, *paths]):
        name = _last_part(path)
        n = n_uses_in_first[name] if path in first else n_uses[name]
        if name in used_names or n > 1:
            name = path.replace("/", "_")
        names[path] = _unused_name(name, used_names)
    return names


def _last_part(path: str) -> str:
    return path.rpartition("/")[2]


def _with_names(file: InputFile, names: Mapping[str, str]) -> FileExtras:
    rows = file.description
    if not names:
        return FileExtras(file, rows.extras, rows.left_out)
    extras = []
    for extra in rows.extras:
        if extra.is_named:
            path = path_from_rows(extra.name, rows.group)
            name = names[extra.name]
            extra = replace(extra, name=name, path="" if path == name else path)
        extras.append(extra)
    left_out = [replace(dataset, name=names.get(dataset.name, dataset.name)) for dataset in rows.left_out]
    return FileExtras(file, tuple(extras), tuple(left_out))


def path_from_rows(path: str, group: str) -> str:
    """Return the path of an extra relative to the group of the rows if it is there, otherwise from the root."""
    prefix = f"/{normal(group)}/" if group else "/"
    return f"/{normal(path)}".removeprefix(prefix)


# -- dtypes --------------------------------------------------------------------------------------------------------


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype | None:
    """Return the dtype that holds all values of these dtypes exactly, or None if NumPy has no such dtype."""
    first = dtypes[0]
    notes: list[Any] = [dtype.metadata or {} for dtype in dtypes]
    if all(dtype == first for dtype in dtypes) and all(note == notes[0] for note in notes):
        return first
    kinds = {dtype.kind for dtype in dtypes}
    if kinds == {"S"}:
        return _common_text(dtypes, notes)
    if kinds <= {"S", "O"}:
        return np.dtype("O")
    if not kinds <= set("biuf") or any("enum" in note for note in notes):  # one number may have different names
        return None
    common = np.result_type(*dtypes)
    return common if all(_holds(common, dtype) for dtype in dtypes) else None


def _common_text(dtypes: Sequence[np.dtype], notes: Sequence[Any]) -> np.dtype:
    longest = max(dtype.itemsize for dtype in dtypes)
    # ASCII is UTF-8, but not vice versa.
    are_ascii = all(note.get("h5py_encoding") == "ascii" for note in notes)
    return np.dtype(f"S{longest}", metadata={"h5py_encoding": "ascii" if are_ascii else "utf-8"})


def _holds(common: np.dtype, dtype: np.dtype) -> bool:
    """Return whether a dtype holds all values of another dtype, which NumPy's promotion of integers does not ensure."""
    if common.kind == "f" and dtype.kind in "iu":
        return 8 * dtype.itemsize - (dtype.kind == "i") <= np.finfo(common).nmant + 1
    return np.can_cast(dtype, common, "safe")


# -- the log -------------------------------------------------------------------------------------------------------


def log_extras(shards: Sequence[Shard]) -> None:
    """Log the extras, and the reasons why datasets are left out. Log each name once, for any number of shards."""
    # All shards have the same extras.
    included = [_with_categories(extra) for extra in shards[0].extras]
    left_out = _left_out(shards)
    left_out_in_words = _left_out_in_words([dataset for dataset, _ in left_out.values()])
    log.info("input: extras: %s%s", short_list(included, _NAMED), left_out_in_words)
    warnings = [_warning_of(dataset, lacking) for dataset, lacking in left_out.values() if dataset.is_missed]
    _log_first(logging.WARNING, warnings)


def _left_out_in_words(left_out: Sequence[LeftOut]) -> str:
    groups = [shorten(item.name) for item in left_out if item.reason == A_GROUP]
    reasons = [f"{shorten(item.name)} ({shorten(item.reason)})" for item in left_out if item.reason != A_GROUP]
    words = ""
    if reasons:
        words += f"; left out: {short_list(reasons, _LEFT_OUT)}"
    if groups:
        words += f"; --include copies datasets from the groups: {short_list(groups, _LEFT_OUT)}"
    return words


def _with_categories(extra: Extra) -> str:
    if extra.categories is None:
        return shorten(extra.name)
    return f"{shorten(extra.name)} ({len(extra.categories)} categories)"


def _warning_of(dataset: LeftOut, lacking: Sequence[Shard]) -> str:
    more = f", in {len(lacking)} shards" if len(lacking) > 1 else ""
    where = f"file={printable(lacking[0].path)} dataset={printable(dataset.name)}"
    return f"{where}: {printable(dataset.reason)}, left out{more}"


def _log_first(level: int, lines: Sequence[str]) -> None:
    for line in lines[:_MOST_LOGGED]:
        log.log(level, "%s", line)
    if len(lines) > _MOST_LOGGED:
        log.log(level, "%d more messages about extras are not shown", len(lines) - _MOST_LOGGED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """Map each dataset that is left out to the entry of the first shard, and to all shards that leave it out."""
    left_out: dict[str, tuple[LeftOut, list[Shard]]] = {}
    included = {extra.name for extra in shards[0].extras}
    for shard in shards:
        for dataset in shard.left_out:
            if dataset.name not in included:  # other shards may have the extra that this shard lacks
                first = replace(dataset, reason=dataset.reason.rstrip("."))
                left_out.setdefault(dataset.name, (first, []))[1].append(shard)
    return left_out


def why_left_out(shards: Sequence[Shard]) -> dict[str, str]:
    """Map the names of datasets that are left out to the reasons, for at most `MOST_LEFT_OUT` names."""
    some_left_out = islice(_left_out(shards).items(), MOST_LEFT_OUT)
    return {shorten(name): shorten(dataset.reason) for name, (dataset, _) in some_left_out}


def shorten(words: str) -> str:
    """Return a printable name or reason that fits into a line."""
    if len(words) > _LONGEST:
        words = words[:_LONGEST] + "..."
    return printable(words)
