"""What rides along with the rows of all shards: labels, ids; the same from each of them.

What some shards lack rides along from the others. Where it is not, a value stands that can hardly be taken for one, and
beside it rides which rows have it: ``y_present`` for ``y``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import DataError, shown
from pipeline.hdf5.limits import MOST_RIDERS
from pipeline.hdf5.paths import normal
from pipeline.hdf5.riders import are_few
from pipeline.shards.ridinglog import APART, cut, some, warn
from pipeline.shards.rows import told
from pipeline.shards.shard import LeftOut, Rider, Shard
from pipeline.shards.vet import code_dtype

__all__ = ["alike", "common_dtype"]

_FILES = 3  # that a warning names


@dataclass(frozen=True)
class _Plan:
    """How a riding dataset rides along; `dtype` is None where the shards have it in no common one."""

    name: str
    dtype: np.dtype | None
    first: Rider
    mask: str | None = None
    categories: tuple[Any, ...] | None = None


def alike(shards: Sequence[Shard], carry: Sequence[str] = ()) -> tuple[Shard, ...]:
    """The shards, from each of which the same rides along: what any of them has, in a dtype that holds them all.

    Raises
    ------
    DataError
        When nothing lies at one of the paths `carry` in any shard, or what does cannot go together.
    """
    shards = _renamed(shards, carry) if carry else shards
    if len({tuple((rider.name, _kind(rider)) for rider in shard.riders) for shard in shards}) == 1:
        return tuple(shards)
    having: dict[str, list[tuple[Shard, Rider]]] = {}
    for shard in shards:
        for rider in shard.riders:
            having.setdefault(rider.name, []).append((shard, rider))
    taken = set(having)
    warnings: list[str] = []
    too_many = [name for name, found in having.items() if not found[0][1].is_carried][MOST_RIDERS:]
    for name in too_many:
        del having[name]
    found = {name: _planned(name, each, shards, taken, warnings) for name, each in having.items()}
    plans = [plan for plan in found.values() if plan is not None]
    apart = [LeftOut(name, APART, False) for name, plan in found.items() if plan is None or plan.dtype is None]
    shards = [replace(shards[0], left_out=(*apart, *shards[0].left_out)), *shards[1:]]
    if too_many:
        warnings.append(f"{len(too_many)} more datasets do not ride along, expected {MOST_RIDERS} at most")
    warn(warnings)
    return tuple(replace(shard, riders=tuple(_riders(shard, plans))) for shard in shards)


def _kind(rider: Rider) -> object:
    # The metadata tell how an enumeration's values are called.
    return rider.dtype, repr(rider.dtype.metadata), rider.categories, rider.is_carried


def _planned(
    name: str, having: Sequence[tuple[Shard, Rider]], shards: Sequence[Shard], taken: set[str], warnings: list[str]
) -> _Plan | None:
    with_rows = [found for found in having if found[0].n_rows] or having  # of none, any dtype and categories will do
    kinds = list({_kind(rider): (shard, rider) for shard, rider in reversed(with_rows)}.values())[::-1]
    plan = _Plan(name, common_dtype([rider.dtype for _, rider in kinds]), kinds[0][1])
    if any(rider.categories is not None for _, rider in kinds):
        categories = _union([rider.categories for _, rider in kinds])
        plan = replace(plan, dtype=code_dtype(categories or ()), categories=categories)
    if plan.dtype is None or (plan.categories is None and any(rider.categories is not None for _, rider in kinds)):
        both = _both(name, kinds)
        if plan.first.is_carried:
            raise DataError(f"{both}. Write it alike in all, or leave out --carry {shown(name)}.")
        if plan.dtype is not None:
            warnings.append(f"{both}: it does not ride along")
            return None
        warnings.append(f"{both}: no dtype holds both, so that it stands in parts/ and not in index.h5")
    return _with_mask(plan, having, shards, taken, warnings)


def _both(name: str, kinds: Sequence[tuple[Shard, Rider]]) -> str:
    first, other = (
        f"{rider.dtype if rider.categories is None else f'codes of {len(rider.categories)} categories'} "
        f"from file={shown(shard.path)}"
        for shard, rider in kinds[:2]
    )
    why = "" if any(rider.categories is None for _, rider in kinds) else ", which are too many or of two kinds in all"
    return f"{cut(name)} rides along as {first} and as {other}{why}"


def _union(found: Sequence[tuple[Any, ...] | None]) -> tuple[Any, ...] | None:
    """All categories, in the order in which they come first.

    None where they are no such, or texts and numbers, or too many in all.
    """
    union: dict[Any, None] = {}
    for categories in found:
        if categories is None:
            return None
        union.update(dict.fromkeys(categories))
    return tuple(union) if len({isinstance(each, str) for each in union}) < 2 and are_few([*union]) else None


def _with_mask(
    plan: _Plan, having: Sequence[tuple[Shard, Rider]], shards: Sequence[Shard], taken: set[str], warnings: list[str]
) -> _Plan:
    name = plan.name
    has = {id(shard) for shard, _ in having}
    lacking = [shard for shard in shards if id(shard) not in has and shard.n_rows]
    if not lacking:
        return plan
    mask = f"{name}_present"
    while mask in taken:
        mask += "_"
    taken.add(mask)
    files = some((f"file={shown(shard.path)}{_why(shard, name)}" for shard in lacking), _FILES)
    value = told(_absent(plan))
    warnings.append(
        f"{cut(name)} is missing in {len(lacking)} of {len(shards)} shards, {files}: there it becomes {value}, and "
        f"{cut(mask)} tells which rows have it"
    )
    return replace(plan, mask=mask)


def _absent(plan: _Plan) -> Rider:
    """What rides along from a shard that has none."""
    fill, is_carried = None if plan.categories is None else -1, plan.first.is_carried
    return Rider(
        plan.name, plan.dtype or plan.first.dtype, fill=fill, is_carried=is_carried, categories=plan.categories
    )


def _riders(shard: Shard, plans: Sequence[_Plan]) -> Iterable[Rider]:
    own = {rider.name: rider for rider in shard.riders if shard.n_rows}
    for plan in plans:
        rider = own.get(plan.name)
        if rider is None:
            yield _absent(plan)
        elif plan.categories is None:
            yield replace(rider, dtype=plan.dtype or rider.dtype, mask=plan.mask)
        else:
            places = {each: i for i, each in enumerate(plan.categories)}
            codes = tuple(places[each] for each in rider.categories or ())
            rider = replace(rider, dtype=plan.dtype or rider.dtype, mask=plan.mask)
            yield replace(rider, categories=plan.categories, codes=codes)
        if plan.mask:
            yield Rider(plan.mask, np.dtype(bool), fill=rider is not None, is_carried=plan.first.is_carried)


def _renamed(shards: Sequence[Shard], carry: Sequence[str]) -> list[Shard]:
    """The shards, in which what is named by its path has the name under which it rides along."""
    carried = {rider.name for shard in shards for rider in shard.riders if rider.is_carried}
    others = [rider for shard in shards for rider in shard.riders if not rider.is_carried]
    nowhere = [path for path in carry if path not in carried | {normal(r.layout.name) for r in others if r.layout}]
    if nowhere:
        where = f"file={shown(shards[0].path)} dataset={shown(nowhere[0])}"
        reason = _reason(shards[0], nowhere[0]) or "cannot ride along"
        raise DataError(f"{where}: {shown(reason)}. Name one of them with --carry.")
    names: dict[str, str] = {}
    taken, last = {rider.name for rider in others}, [path.rpartition("/")[2] for path in carry]
    for path, name in zip(carry, last, strict=True):
        if path in carried:
            name = name if name not in taken and last.count(name) == 1 else path.replace("/", "_")
            while name in taken:
                name += "_"
            taken.add(name)
            names[path] = name
    return [_with_names(shard, names) for shard in shards]


def _with_names(shard: Shard, names: Mapping[str, str]) -> Shard:
    riders = (replace(rider, name=names[rider.name]) if rider.is_carried else rider for rider in shard.riders)
    left_out = (replace(each, name=names.get(each.name, each.name)) for each in shard.left_out)
    return replace(shard, riders=tuple(riders), left_out=tuple(left_out))


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype | None:
    """The dtype that holds the values of all, as they are; None where NumPy has none."""
    first, kinds = dtypes[0], {dtype.kind for dtype in dtypes}
    notes: list[Any] = [dtype.metadata or {} for dtype in dtypes]
    if all(dtype == first for dtype in dtypes) and all(note == notes[0] for note in notes):
        return first
    if kinds == {"S"}:
        longest = max(dtype.itemsize for dtype in dtypes)
        codes = {note.get("h5py_encoding") for note in notes}
        return np.dtype(f"S{longest}", metadata={"h5py_encoding": "ascii" if codes == {"ascii"} else "utf-8"})
    if kinds <= {"S", "O"}:
        return np.dtype("O")
    if not kinds <= set("biuf") or any("enum" in note for note in notes):
        return None
    common = np.result_type(*dtypes)
    return common if all(_holds(common, dtype) for dtype in dtypes) else None


def _holds(common: np.dtype, dtype: np.dtype) -> bool:
    """Whether each of its values has one there: NumPy lets floats stand for integers that they cannot hold."""
    if common.kind == "f" and dtype.kind in "iu":
        return 8 * dtype.itemsize - (dtype.kind == "i") <= np.finfo(common).nmant + 1
    return np.can_cast(dtype, common, "safe")


def _why(shard: Shard, name: str) -> str:
    reason = _reason(shard, name)
    return f" ({cut(reason)})" if reason else ""


def _reason(shard: Shard, name: str) -> str | None:
    return next((each.reason for each in shard.left_out if each.name == name), None)
