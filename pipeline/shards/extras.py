"""Extras, such as labels and ids: the same ones for all shards, and what the log says about them.

An extra that some shards lack gets a fill value there that hardly looks like a real one. A mask marks the rows
that have a value: ``y_present`` for ``y``.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from pipeline.errors import DataError, printable, quantity, short_list
from pipeline.hdf5.forms import A_GROUP, are_few, normal
from pipeline.hdf5.limits import MAX_EXTRAS, MOST_LEFT_OUT
from pipeline.shards.shard import Extra, LeftOut, Shard
from pipeline.shards.vet import code_dtype

__all__ = ["common_dtype", "log_extras", "shorten", "unify_extras", "why_left_out"]

log = logging.getLogger(__name__)

MOST_WARNED = 10
"""Number of warnings about extras."""

_NO_COMMON_DTYPE = "its dtypes or categories differ between shards"
_FILES = 3  # files that a warning names
_NAMED = 20  # extras in a line of the log
_LEFT_OUT = 10  # left out extras in a line of the log
_LONGEST = 80  # characters of a name or reason


@dataclass(frozen=True)
class _Plan:
    """Plan for reading an extra from every shard."""

    absent: Extra  # for a shard that has none
    is_common: bool  # whether its dtype holds the values of all shards; otherwise each shard keeps its own


Having = Sequence[tuple[Shard, Extra]]
"""The shards that have an extra of one name, each with that extra."""


def unify_extras(shards: Sequence[Shard], include: Sequence[str] = ()) -> tuple[Shard, ...]:
    """Return shards with the same extras: those that any of them has, in a dtype that holds the values of all.

    Raises
    ------
    DataError
        If no shard has an extra at one of the paths `include`, or if those of several shards do not fit together.
    """
    if include:
        shards = _renamed(shards, include)
    kinds = {tuple((extra.name, _kind(extra)) for extra in shard.extras) for shard in shards}
    if len(kinds) == 1:
        return tuple(shards)  # the usual case
    plans, apart = _plans(shards)
    unified = [replace(shard, extras=tuple(_planned_extras(shard, plans))) for shard in shards]
    # Listed for one shard only, since it is the same for all.
    left_out = [LeftOut(name, _NO_COMMON_DTYPE, False) for name in apart]
    unified[0] = replace(unified[0], left_out=(*left_out, *shards[0].left_out))
    return tuple(unified)


def _plans(shards: Sequence[Shard]) -> tuple[list[_Plan], list[str]]:
    """Return a plan for each extra, and the names of those without a common dtype; log warnings."""
    having = _shards_by_extra(shards)
    taken = set(having)  # also by extras that are left out, so that no mask gets the name of a dataset
    surplus = _surplus(having)
    warnings: list[str] = []
    plans: list[_Plan] = []
    apart: list[str] = []
    for name, own in having.items():
        if name in surplus:
            continue
        plan = _plan(name, own, warnings)
        if plan is None or not plan.is_common:
            apart.append(name)
        if plan is not None:
            plans.append(_with_mask(plan, own, shards, taken, warnings))
    if surplus:
        n_left_out = quantity(len(surplus), "more extra")
        warnings.append(f"{n_left_out} left out: at most {MAX_EXTRAS} are copied. Choose others with --include")
    _warn(warnings)
    return plans, apart


def _shards_by_extra(shards: Sequence[Shard]) -> dict[str, list[tuple[Shard, Extra]]]:
    having: dict[str, list[tuple[Shard, Extra]]] = {}
    for shard in shards:
        for extra in shard.extras:
            having.setdefault(extra.name, []).append((shard, extra))
    return having


def _surplus(having: Mapping[str, Having]) -> set[str]:
    """Return the names of extras that are too many over all files, without those that a user has named."""
    unnamed = [name for name, own in having.items() if not own[0][1].is_named]
    return set(unnamed[MAX_EXTRAS:])


def _kind(extra: Extra) -> object:
    # The metadata have the names of an enumeration's values.
    return extra.dtype, repr(extra.dtype.metadata), extra.categories, extra.is_named


def _plan(name: str, having: Having, warnings: list[str]) -> _Plan | None:
    """Return how an extra of some shards is read from all; None if it cannot be."""
    with_rows = [own for own in having if own[0].n_rows] or having  # without rows, any dtype and categories will do
    kinds = _first_of_each_kind(with_rows)
    absent = _common_extra(name, [extra for _, extra in kinds])
    if absent is None:
        return _plan_apart(name, kinds, warnings)
    return _Plan(absent, is_common=True)


def _common_extra(name: str, kinds: Sequence[Extra]) -> Extra | None:
    """Return an extra that can hold the values of extras of several kinds, or None."""
    is_named = kinds[0].is_named
    coded = [extra.categories for extra in kinds if extra.categories is not None]
    if not coded:
        dtype = common_dtype([extra.dtype for extra in kinds])
        return None if dtype is None else Extra(name, dtype, is_named=is_named)
    if len(coded) < len(kinds):
        return None
    categories = _union(coded)
    if categories is None:
        return None
    return Extra(name, code_dtype(categories), fill=-1, is_named=is_named, categories=categories)


def _plan_apart(name: str, kinds: Having, warnings: list[str]) -> _Plan | None:
    """Return the plan of an extra without a common dtype; None if its values are useless without categories."""
    first = kinds[0][1]
    difference = _difference(name, kinds)
    if first.is_named:
        raise DataError(f"{difference}. Store it with one dtype in all files, or omit --include {printable(name)}.")
    if any(extra.categories is not None for _, extra in kinds):  # without these, codes could be mistaken for labels
        warnings.append(f"{difference}. The extra is left out")
        return None
    warnings.append(f"{difference}. No dtype holds both, so the extra is in parts/ and not in index.h5")
    return _Plan(Extra(name, first.dtype, is_named=first.is_named), is_common=False)


def _first_of_each_kind(having: Having) -> list[tuple[Shard, Extra]]:
    """Return the first shard of each kind, since errors name it, with its extra; sorted by the last of each kind."""
    found: dict[object, tuple[Shard, Extra]] = {}
    for shard, extra in reversed(having):
        found[_kind(extra)] = (shard, extra)
    return list(reversed(found.values()))


def _difference(name: str, kinds: Sequence[tuple[Shard, Extra]]) -> str:
    """Return a sentence about the first two kinds of an extra."""
    first, other = (f"{_in_words(extra)} from file={printable(shard.path)}" for shard, extra in kinds[:2])
    why = ""
    if all(extra.categories is not None for _, extra in kinds):
        why = "; together they are too many or mix numbers and strings"
    return f"{shorten(name)} is {first} and {other}{why}"


def _in_words(extra: Extra) -> str:
    if extra.categories is None:
        return str(extra.dtype)
    return f"codes of {len(extra.categories)} categories"


def _union(all_categories: Sequence[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """Return all categories in the order of their first use; None if they are texts and numbers, or too many."""
    union = tuple(dict.fromkeys(each for categories in all_categories for each in categories))
    are_mixed = len({isinstance(each, str) for each in union}) > 1
    if are_mixed or not are_few(union):
        return None
    return union


def _with_mask(plan: _Plan, having: Having, shards: Sequence[Shard], taken: set[str], warnings: list[str]) -> _Plan:
    """Return the plan, with the name of a mask if some shards with rows lack the extra."""
    # By identity, which takes no time: a comparison of shards compares all their extras.
    has = {id(shard) for shard, _ in having}
    lacking = [shard for shard in shards if id(shard) not in has and shard.n_rows]
    if not lacking:
        return plan
    absent = replace(plan.absent, mask=_unused_name(f"{plan.absent.name}_present", taken))
    warnings.append(_missing_in_words(absent, lacking, len(shards)))
    return replace(plan, absent=absent)


def _missing_in_words(absent: Extra, lacking: Sequence[Shard], n_shards: int) -> str:
    files = short_list((_file_and_reason(shard, absent.name) for shard in lacking), _FILES)
    return (
        f"{shorten(absent.name)} is missing in {len(lacking)} of {n_shards} shards, {files}. Their rows get "
        f"{absent.absent_in_words}, and {shorten(absent.mask or '')} marks the rows that have it"
    )


def _unused_name(name: str, taken: set[str]) -> str:
    """Return a name that is not taken, with underscores at its end if necessary, and take it."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _file_and_reason(shard: Shard, name: str) -> str:
    reason = _reason(shard, name)
    why = f" ({shorten(reason)})" if reason else ""
    return f"file={printable(shard.path)}{why}"


def _reason(shard: Shard, name: str) -> str | None:
    return next((each.reason for each in shard.left_out if each.name == name), None)


def _planned_extras(shard: Shard, plans: Sequence[_Plan]) -> Iterable[Extra]:
    """Yield the extras of a shard, and their masks, as planned."""
    own = {extra.name: extra for extra in shard.extras if shard.n_rows}
    for plan in plans:
        absent = plan.absent
        extra = own.get(absent.name)
        if extra is None:
            yield absent
        else:
            yield _planned_extra(extra, plan)
        if absent.mask:
            yield Extra(absent.mask, np.dtype(bool), fill=extra is not None, is_named=absent.is_named)


def _planned_extra(extra: Extra, plan: _Plan) -> Extra:
    absent = plan.absent
    if absent.categories is None:
        dtype = absent.dtype if plan.is_common else extra.dtype
        return replace(extra, dtype=dtype, mask=absent.mask)
    places = {each: i for i, each in enumerate(absent.categories)}
    codes = tuple(places[each] for each in extra.categories or ())
    return replace(extra, dtype=absent.dtype, mask=absent.mask, categories=absent.categories, codes=codes)


# -- extras that a user has named ----------------------------------------------------------------------------------


def _renamed(shards: Sequence[Shard], include: Sequence[str]) -> list[Shard]:
    """Return the shards with the final names of the extras at the paths `include`."""
    extras = [extra for shard in shards for extra in shard.extras]
    named = {extra.name for extra in extras if extra.is_named}
    others = [extra for extra in extras if not extra.is_named]
    found = named | {normal(extra.layout.name) for extra in others if extra.layout}
    for path in include:
        if path not in found:
            raise _not_named(shards[0], path)
    names = _short_names(include, named, {extra.name for extra in others})
    return [_with_names(shard, names) for shard in shards]


def _not_named(first: Shard, path: str) -> DataError:
    where = f"file={printable(first.path)} dataset={printable(path)}"
    reason = _reason(first, path) or "cannot be copied"
    return DataError(f"{where}: {printable(reason)}. Choose one with --include.")


def _short_names(include: Sequence[str], named: set[str], taken: set[str]) -> dict[str, str]:
    """Return a name for each path: its last part, or all of it if the last part is taken or not unique."""
    names: dict[str, str] = {}
    taken = set(taken)
    n_uses = Counter(path.rpartition("/")[2] for path in include)
    for path in include:
        if path not in named:
            continue
        name = path.rpartition("/")[2]
        if name in taken or n_uses[name] > 1:
            name = path.replace("/", "_")
        names[path] = _unused_name(name, taken)
    return names


def _with_names(shard: Shard, names: dict[str, str]) -> Shard:
    extras = []
    for extra in shard.extras:
        name = names[extra.name] if extra.is_named else extra.name
        extras.append(replace(extra, name=name))
    left_out = [replace(each, name=names.get(each.name, each.name)) for each in shard.left_out]
    return replace(shard, extras=tuple(extras), left_out=tuple(left_out))


# -- dtypes --------------------------------------------------------------------------------------------------------


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype | None:
    """Return the dtype that holds the values of all as they are; None if NumPy has none."""
    first = dtypes[0]
    notes: list[Any] = [dtype.metadata or {} for dtype in dtypes]
    if all(dtype == first for dtype in dtypes) and all(note == notes[0] for note in notes):
        return first
    kinds = {dtype.kind for dtype in dtypes}
    if kinds == {"S"}:
        return _common_text(dtypes, notes)
    if kinds <= {"S", "O"}:
        return np.dtype("O")
    if not kinds <= set("biuf") or any("enum" in note for note in notes):  # 1 may mean dog here and cat there
        return None
    return _common_number(dtypes)


def _common_number(dtypes: Sequence[np.dtype]) -> np.dtype | None:
    common = np.result_type(*dtypes)
    if all(_holds(common, dtype) for dtype in dtypes):
        return common
    return None


def _common_text(dtypes: Sequence[np.dtype], notes: Sequence[Any]) -> np.dtype:
    longest = max(dtype.itemsize for dtype in dtypes)
    # ASCII is UTF-8, but not vice versa.
    are_ascii = all(note.get("h5py_encoding") == "ascii" for note in notes)
    return np.dtype(f"S{longest}", metadata={"h5py_encoding": "ascii" if are_ascii else "utf-8"})


def _holds(common: np.dtype, dtype: np.dtype) -> bool:
    """Return whether a dtype holds all values of another one: NumPy promotes integers to floats that do not."""
    if common.kind == "f" and dtype.kind in "iu":
        return 8 * dtype.itemsize - (dtype.kind == "i") <= np.finfo(common).nmant + 1
    return np.can_cast(dtype, common, "safe")


# -- the log -------------------------------------------------------------------------------------------------------


def log_extras(shards: Sequence[Shard]) -> None:
    """Log the extras and the reasons for those left out: each name once, whatever the number of shards."""
    # The first shard is enough, since the extras of all are the same.
    included = [_with_categories(extra) for extra in shards[0].extras]
    left_out = _left_out(shards)
    left_out_in_words = _left_out_in_words([each for each, _ in left_out.values()])
    log.info("input: extras: %s%s", short_list(included, _NAMED), left_out_in_words)
    _warn([_warning_of(each, lacking) for each, lacking in left_out.values() if each.is_missed])


def _left_out_in_words(left_out: Sequence[LeftOut]) -> str:
    groups = [shorten(each.name) for each in left_out if each.reason == A_GROUP]
    reasons = [f"{shorten(each.name)} ({shorten(each.reason)})" for each in left_out if each.reason != A_GROUP]
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


def _warning_of(each: LeftOut, lacking: Sequence[Shard]) -> str:
    more = f", in {len(lacking)} shards" if len(lacking) > 1 else ""
    where = f"file={printable(lacking[0].path)} dataset={printable(each.name)}"
    return f"{where}: {printable(each.reason)}, left out{more}"


def _warn(lines: Sequence[str]) -> None:
    """Log warnings, but not too many."""
    for line in lines[:MOST_WARNED]:
        log.warning("%s", line)
    if len(lines) > MOST_WARNED:
        log.warning("%d more warnings about extras are not shown", len(lines) - MOST_WARNED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """Return what is left out, by name: the entry of the first shard, and the shards."""
    found: dict[str, tuple[LeftOut, list[Shard]]] = {}
    included = {extra.name for extra in shards[0].extras}
    for shard in shards:
        for each in shard.left_out:
            if (
                each.name not in included or each.reason == _NO_COMMON_DTYPE
            ):  # others may have the extra that this shard lacks
                first = replace(each, reason=each.reason.rstrip("."))
                found.setdefault(each.name, (first, []))[1].append(shard)
    return found


def why_left_out(shards: Sequence[Shard]) -> dict[str, str]:
    """Return the reasons for datasets next to the rows that are left out, by name; a limited number of them."""
    some_left_out = islice(_left_out(shards).items(), MOST_LEFT_OUT)
    return {shorten(name): shorten(each.reason) for name, (each, _) in some_left_out}


def shorten(words: str) -> str:
    """Return a name or reason, cut so that it fits into a line."""
    if len(words) > _LONGEST:
        words = words[:_LONGEST] + "..."
    return printable(words)
