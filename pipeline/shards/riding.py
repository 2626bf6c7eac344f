"""What rides along with the rows of all shards: labels, ids; the same from each of them.

What some shards lack rides along from the others. Where it is not, a value stands that can hardly be taken for one, and
beside it rides which rows have it: ``y_present`` for ``y``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import DataError, shown, some
from pipeline.hdf5.forms import are_few, normal
from pipeline.hdf5.limits import MOST_RIDERS
from pipeline.shards.inputlog import APART, cut, warn
from pipeline.shards.shard import LeftOut, Rider, Shard
from pipeline.shards.vet import code_dtype

__all__ = ["alike", "common_dtype"]

_FILES = 3  # that a warning names


@dataclass(frozen=True)
class _Plan:
    """How a riding dataset rides along from every shard."""

    absent: Rider  # what does from a shard that has none
    is_common: bool  # whether its dtype holds the values of all shards; else each keeps its own


Having = Sequence[tuple[Shard, Rider]]  # the shards that have something of one name, and what


def alike(shards: Sequence[Shard], carry: Sequence[str] = ()) -> tuple[Shard, ...]:
    """The shards, from each of which the same rides along: what any of them has, in a dtype that holds them all.

    Raises
    ------
    DataError
        When nothing lies at one of the paths `carry` in any shard, or what does cannot go together.
    """
    shards = _renamed(shards, carry) if carry else shards
    if len({tuple((rider.name, _kind(rider)) for rider in shard.riders) for shard in shards}) == 1:
        return tuple(shards)  # as nearly always
    having: dict[str, list[tuple[Shard, Rider]]] = {}
    for shard in shards:
        for rider in shard.riders:
            having.setdefault(rider.name, []).append((shard, rider))
    taken = set(having)  # also by what does not ride along: no mask takes a name that stands in a file
    warnings: list[str] = []
    # Each file has few enough, all together may not; what is named is meant, however many there are.
    too_many = [name for name, own in having.items() if not own[0][1].is_carried][MOST_RIDERS:]
    for name in too_many:
        del having[name]
    plans, apart = [], []
    for name, own in having.items():
        plan = _plan(name, own, warnings)
        if plan is None or not plan.is_common:
            apart.append(LeftOut(name, APART, False))
        if plan is not None:
            plans.append(_with_mask(plan, own, shards, taken, warnings))
    if too_many:
        warnings.append(f"{len(too_many)} more datasets do not ride along, expected {MOST_RIDERS} at most")
    warn(warnings)
    # Said of one shard, since it is the same for all, and each name is told once.
    shards = [replace(shards[0], left_out=(*apart, *shards[0].left_out)), *shards[1:]]
    return tuple(replace(shard, riders=tuple(_riders(shard, plans))) for shard in shards)


def _kind(rider: Rider) -> object:
    # The metadata tell how an enumeration's values are called.
    return rider.dtype, repr(rider.dtype.metadata), rider.categories, rider.is_carried


def _plan(name: str, having: Having, warnings: list[str]) -> _Plan | None:
    """How what some shards have can ride along from all; None where it cannot."""
    with_rows = [own for own in having if own[0].n_rows] or having  # of none, any dtype and categories will do
    # The first shard of each kind, which is what an error names.
    kinds = list({_kind(rider): (shard, rider) for shard, rider in reversed(with_rows)}.values())[::-1]
    first, coded = kinds[0][1], [rider.categories for _, rider in kinds if rider.categories is not None]
    categories = _union(coded) if len(coded) == len(kinds) else None
    if categories is not None:
        absent = Rider(name, code_dtype(categories), None, -1, first.is_carried, categories)
        return _Plan(absent, is_common=True)
    dtype = common_dtype([rider.dtype for _, rider in kinds])
    if dtype is None or coded:
        both = _both(name, kinds)
        if first.is_carried:
            raise DataError(f"{both}. Write it alike in all, or leave out --carry {shown(name)}.")
        if coded:  # which without their categories could be taken for labels
            warnings.append(f"{both}: it does not ride along")
            return None
        warnings.append(f"{both}: no dtype holds both, so that it stands in parts/ and not in index.h5")
    return _Plan(Rider(name, dtype or first.dtype, is_carried=first.is_carried), is_common=dtype is not None)


def _both(name: str, kinds: Sequence[tuple[Shard, Rider]]) -> str:
    first, other = (
        f"{rider.dtype if rider.categories is None else f'codes of {len(rider.categories)} categories'} "
        f"from file={shown(shard.path)}"
        for shard, rider in kinds[:2]
    )
    why = "" if any(rider.categories is None for _, rider in kinds) else ", which are too many or of two kinds in all"
    return f"{cut(name)} rides along as {first} and as {other}{why}"


def _union(all_categories: Sequence[tuple[Any, ...]]) -> tuple[Any, ...] | None:
    """All categories, in the order in which they come first; None where they are texts and numbers, or too many."""
    union = dict.fromkeys(each for categories in all_categories for each in categories)
    return tuple(union) if len({isinstance(each, str) for each in union}) < 2 and are_few([*union]) else None


def _with_mask(plan: _Plan, having: Having, shards: Sequence[Shard], taken: set[str], warnings: list[str]) -> _Plan:
    """The plan, with the name of a mask where some shards with rows have nothing of that name."""
    # By identity, which takes no time: to compare shards is to compare all their riders.
    name, has = plan.absent.name, {id(shard) for shard, _ in having}
    lacking = [shard for shard in shards if id(shard) not in has and shard.n_rows]
    if not lacking:
        return plan
    mask = f"{name}_present"
    while mask in taken:
        mask += "_"
    taken.add(mask)
    why = [f" ({cut(reason)})" if (reason := _reason(shard, name)) else "" for shard in lacking]
    files = some((f"file={shown(shard.path)}{each}" for shard, each in zip(lacking, why, strict=True)), _FILES)
    warnings.append(
        f"{cut(name)} is missing in {len(lacking)} of {len(shards)} shards, {files}: there it becomes "
        f"{plan.absent.absent_in_words}, and {cut(mask)} tells which rows have it"
    )
    return replace(plan, absent=replace(plan.absent, mask=mask))


def _riders(shard: Shard, plans: Sequence[_Plan]) -> Iterable[Rider]:
    """What rides along from a shard, by the plans."""
    own = {rider.name: rider for rider in shard.riders if shard.n_rows}
    for plan in plans:
        absent, rider = plan.absent, own.get(plan.absent.name)
        if rider is None:
            yield absent
        elif absent.categories is None:
            yield replace(rider, dtype=absent.dtype if plan.is_common else rider.dtype, mask=absent.mask)
        else:
            places = {each: i for i, each in enumerate(absent.categories)}
            codes = tuple(places[each] for each in rider.categories or ())
            yield replace(rider, dtype=absent.dtype, mask=absent.mask, categories=absent.categories, codes=codes)
        if absent.mask:
            yield Rider(absent.mask, np.dtype(bool), fill=rider is not None, is_carried=absent.is_carried)


def _renamed(shards: Sequence[Shard], carry: Sequence[str]) -> list[Shard]:
    """The shards, in which what is named by its path has the name under which it rides along."""
    carried = {rider.name for shard in shards for rider in shard.riders if rider.is_carried}
    others = [rider for shard in shards for rider in shard.riders if not rider.is_carried]
    nowhere = [path for path in carry if path not in carried | {normal(r.layout.name) for r in others if r.layout}]
    if nowhere:
        where = f"file={shown(shards[0].path)} dataset={shown(nowhere[0])}"
        reason = _reason(shards[0], nowhere[0]) or "cannot ride along"
        raise DataError(f"{where}: {shown(reason)}. Name one of them with --carry.")
    # The last part of its path, unless that is taken or not the only one: then all of the path.
    names: dict[str, str] = {}
    taken, last = {rider.name for rider in others}, [path.rpartition("/")[2] for path in carry]
    for path, name in zip(carry, last, strict=True):
        if path in carried:
            name = name if name not in taken and last.count(name) == 1 else path.replace("/", "_")
            while name in taken:
                name += "_"
            taken.add(name)
            names[path] = name
    renamed = []
    for shard in shards:
        riders = (replace(rider, name=names[rider.name]) if rider.is_carried else rider for rider in shard.riders)
        left_out = (replace(each, name=names.get(each.name, each.name)) for each in shard.left_out)
        renamed.append(replace(shard, riders=tuple(riders), left_out=tuple(left_out)))
    return renamed


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype | None:
    """The dtype that holds the values of all, as they are; None where NumPy has none."""
    first, kinds = dtypes[0], {dtype.kind for dtype in dtypes}
    notes: list[Any] = [dtype.metadata or {} for dtype in dtypes]
    if all(dtype == first for dtype in dtypes) and all(note == notes[0] for note in notes):
        return first
    if kinds == {"S"}:
        longest = max(dtype.itemsize for dtype in dtypes)
        codes = {note.get("h5py_encoding") for note in notes}  # ASCII is UTF-8, and not the other way round
        return np.dtype(f"S{longest}", metadata={"h5py_encoding": "ascii" if codes == {"ascii"} else "utf-8"})
    if kinds <= {"S", "O"}:
        return np.dtype("O")
    if not kinds <= set("biuf") or any("enum" in note for note in notes):  # 1 may mean dog here and cat there
        return None
    common = np.result_type(*dtypes)
    return common if all(_holds(common, dtype) for dtype in dtypes) else None


def _holds(common: np.dtype, dtype: np.dtype) -> bool:
    """Whether each of its values has one there: NumPy lets floats stand for integers that they cannot hold."""
    if common.kind == "f" and dtype.kind in "iu":
        return 8 * dtype.itemsize - (dtype.kind == "i") <= np.finfo(common).nmant + 1
    return np.can_cast(dtype, common, "safe")


def _reason(shard: Shard, name: str) -> str | None:
    return next((each.reason for each in shard.left_out if each.name == name), None)
