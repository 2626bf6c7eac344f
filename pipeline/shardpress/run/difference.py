"""The difference between what an output directory contains and what a run is asked for.

No file is read here. A shard is the same if its rows and extras have the same digests, wherever its file is. What the
file system says about a file only decides whether a digest is needed: if its size, times and inode are the same, so is
its content. A file with other content at the same path has changed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import structs

from shardpress.base.formats import fingerprint
from shardpress.result.records import Part, Request, ShardFacts

MOST_PARTS = 500
"""Number of parts above which small ones are merged. A process can open about a thousand files."""
_LIVE = 0.5  # smallest share of a part's rows that a result uses
_PLACE = attrgetter("path", "dataset", "first_row")
# Everything that identifies rows and their place. Tuples of it are compared much faster than by properties.
_FACTS = attrgetter(
    "path",
    "stat",
    "source",
    "dataset",
    "first_row",
    "shape",
    "dtype",
    "is_transposed",
    "column_order",
    "fields",
    "master",
)


@dataclass(frozen=True)
class Base:
    """The content of an output directory, without its parts."""

    request: Request
    model: str  # fingerprint of everything that determines the model
    encoder: str  # fingerprint of the model itself
    features: str  # fingerprint of everything else that determines the features of a row
    n_appends: int = 0


class Matching(NamedTuple):
    """Facts that decide which shards are the same, and in which order they are."""

    compares_digests: bool = True  # otherwise, files with the same name, size and modification time are the same
    reorders: bool = False  # whether the rows get the order of the input
    unreadable: frozenset[str] = frozenset()  # paths of files that cannot be used


@dataclass(frozen=True)
class Wanted:
    """The request of a run, and facts that decide which results satisfy it."""

    request: Request  # with the shards in the order of the input, and the digests that are known
    encoder: str | None  # fingerprint of the model if the run does not train one
    features: Callable[[str], str]  # returns the fingerprint `Base.features`, given that of the model
    matching: Matching


class Place(NamedTuple):
    """A shard of the result that a run makes."""

    base: int | None  # its position in the base; None for a new shard
    wanted: int | None  # its position in the input; None if its file cannot be used, and its rows stay
    is_same: bool = False  # whether its rows and extras are those of the base


@dataclass(frozen=True)
class Change:
    """The work of a run. `keeping` says which parts stay."""

    places: tuple[Place, ...]  # of the result, in the order of the rows
    gone: tuple[int, ...] = ()  # positions in the base
    relabelled: tuple[int, ...] = ()  # positions of shards whose extras have changed, but not their rows
    trains: bool = True  # whether the model of the base is not used
    settings: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # before and now, by name
    encodes_again: bool = False  # whether all rows are encoded again with the same model, for example with more extras
    kept: tuple[Part, ...] = ()  # parts, with the ranges that stay
    copied: tuple[Part, ...] = ()  # parts that are mostly dead or small, and whose rows stay in other parts

    @property
    def new(self) -> list[int]:
        return [i for i, place in enumerate(self.places) if place.base is None]

    @property
    def changed(self) -> list[int]:
        """Positions of shards whose rows or extras replace others."""
        return [i for i, place in enumerate(self.places) if place.base is not None and not place.is_same]

    @property
    def replaced(self) -> list[int]:
        """Positions of shards whose rows replace others."""
        return [i for i in self.changed if i not in self.relabelled]

    def moved(self, base: Base, wanted: Wanted) -> list[int]:
        """Return the positions of shards whose rows stay, and whose files are at other places."""
        before = base.request.shards
        now = wanted.request.shards
        return [
            i
            for i, place in enumerate(self.places)
            if place.is_same and place.base is not None and place.wanted is not None
            if _PLACE(before[place.base]) != _PLACE(now[place.wanted])
        ]

    @property
    def has_other_rows(self) -> bool:
        return bool(self.new or self.changed or self.gone)


def difference(base: Base | None, wanted: Wanted) -> Change:
    """Return what a run has to do.

    `needed_digests` says which digests `wanted` must contain for that.
    """
    if base is None:
        return Change(tuple(Place(None, i) for i in range(len(wanted.request.shards))))
    places = places_of(base.request.shards, wanted.request.shards, wanted.matching)
    reached = {place.base for place in places}
    gone = tuple(i for i in range(len(base.request.shards)) if i not in reached)
    trains = _trains(base, wanted, places)
    return Change(
        places=places,
        gone=gone,
        relabelled=tuple(_relabelled(base, wanted, places)),
        trains=trains,
        settings=_changed_settings(base.request, wanted.request),
        encodes_again=not trains and base.features != wanted.features(base.encoder),
    )


def keeping(change: Change, base: Base, parts: Iterable[Part]) -> Change:
    """Return the change in which all `parts` stay, with the ranges whose rows do."""
    if change.trains or change.encodes_again:
        return change
    ids = {base.request.shards[place.base].id for place in change.places if place.is_same and place.base is not None}
    kept = []
    for part in parts:
        ranges = [rows for rows in part.ranges if rows.shard in ids]
        if ranges:
            kept.append(structs.replace(part, ranges=ranges))
    return replace(change, kept=tuple(kept))


def compacted(change: Change, n_missing: int, part_rows: int) -> Change:
    """Return the change in which parts are copied that are mostly dead or, if there are too many parts, small.

    Nothing is copied unless `n_missing` rows are in no part, or shards are gone. New parts have `part_rows` rows.
    """
    if not n_missing and not change.gone:
        return change
    least = [_LIVE * part.n_rows for part in change.kept]
    n_kept = sum(part.n_live >= n for part, n in zip(change.kept, least, strict=True))
    if n_kept + -(-n_missing // part_rows) > MOST_PARTS:
        least = [_LIVE * max(part.n_rows, part_rows) for part in change.kept]
    kept: list[Part] = []
    copied: list[Part] = []
    for part, n in zip(change.kept, least, strict=True):
        if part.n_live >= n:
            kept.append(part)
        else:
            copied.append(part)
    return replace(change, kept=tuple(kept), copied=tuple(copied))


def needed_digests(before: Sequence[ShardFacts], now: Sequence[ShardFacts], matching: Matching) -> list[int]:
    """Return the positions of the shards of the input whose digests are needed.

    These are shards with another stat, whose shape and dtype are those of a shard that is not found otherwise.
    """
    if not matching.compares_digests:
        return []
    places = [place for place in places_of(before, now, matching) if place.is_same and place.wanted is not None]
    base_of = {place.wanted: place.base for place in places}  # a file that cannot be used may have moved
    missing = set(range(len(before))) - set(base_of.values())
    kinds = {before[i].kind for i in missing}
    return [i for i, shard in enumerate(now) if i not in base_of and shard.kind in kinds]


def resulting_shards(base: Base, wanted: Wanted, change: Change) -> list[ShardFacts]:
    """Return the wanted shards with their appends, and with what is known about those of the base that are the same.

    These are the digests and, if their parts stay, the ids.
    """
    shards = list(wanted.request.shards)
    keeps_ids = not (change.trains or change.encodes_again)
    same = [place.base for place in change.places if place.is_same]
    kept_ids = {base.request.shards[i].id for i in same if i is not None} if keeps_ids else set()
    for i, place in enumerate(change.places):
        if place.wanted is None:
            continue
        shard = shards[place.wanted]
        append_id = 0 if change.trains else base.n_appends + 1
        if place.base is not None and (place.is_same or i in change.relabelled):
            before = base.request.shards[place.base]
            append_id = 0 if change.trains else before.append_id
            if place.is_same:
                shard = _with_facts_of(before, shard, wanted.matching.compares_digests, keeps_ids)
        while not place.is_same and shard.id in kept_ids:  # a file that has been moved was at the place of this one
            shard = structs.replace(shard, id=fingerprint(shard.id)[: len(shard.id)])
        shards[place.wanted] = structs.replace(shard, append_id=append_id)
    return shards


def _with_facts_of(before: ShardFacts, shard: ShardFacts, compares_digests: bool, keeps_id: bool) -> ShardFacts:
    """Return a shard with what is known about the same content in the base."""
    shard = structs.replace(shard, rows=before.rows, extras=before.extras)
    if not compares_digests:
        shard = structs.replace(shard, stat=before.stat)  # that of the content to which the digests belong
    return structs.replace(shard, id=before.id) if keeps_id else shard


def _changed_settings(before: Request, now: Request) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, with both values: current ones first, then those that no longer exist."""
    changes = {}
    for stage, values in now.settings.items():
        earlier = before.settings[stage]
        for name in {**values, **earlier}:
            if earlier.get(name) != values.get(name):
                changes[name] = (earlier.get(name), values.get(name))
    return changes


# -- shards ------------------------------------------------------------------------------------------------------------


def places_of(before: Sequence[ShardFacts], now: Sequence[ShardFacts], matching: Matching) -> tuple[Place, ...]:
    """Match the shards of the base with those of the input. Their order is that of the base; new shards are last."""
    # Most shards of an append have the same facts at the same position, which takes the least time to find out.
    pairs = enumerate(zip(before, now, strict=False))
    same = {i: i for i, (earlier, shard) in pairs if _FACTS(earlier) == _FACTS(shard)}
    rest = [i for i in range(len(now)) if i not in same]
    at_place = _pairs(before, now, rest, _PLACE, set(same))
    same |= {i: j for i, j in at_place.items() if _is_same(before[j], now[i], matching.compares_digests)}
    keys: list[Callable[[ShardFacts], Hashable]] = [_named_stat_key if matching.compares_digests else _name_key]
    if matching.compares_digests:
        keys.append(_content_key)
    for key in keys:
        rest = [i for i in rest if i not in same]
        same |= _pairs(before, now, rest, key, set(same.values()))
    matched = dict(same)
    taken = set(same.values())
    for i, j in at_place.items():
        if i not in same and j not in taken:
            matched[i] = j
    places = [Place(matched.get(i), i, i in same) for i in range(len(now))]
    if matching.reorders:
        return tuple(places)
    reached = {place.base for place in places}
    for j, shard in enumerate(before):
        if j not in reached and not matching.unreadable.isdisjoint(shard.paths):
            places.append(Place(j, None, is_same=True))
    return tuple(sorted(places, key=lambda place: len(before) if place.base is None else place.base))


def _pairs(
    before: Sequence[ShardFacts],
    now: Sequence[ShardFacts],
    positions: Sequence[int],
    key: Callable[[ShardFacts], Hashable],
    taken: Collection[int] = (),
) -> dict[int, int]:
    """Pair shards with equal keys, each one once and in order. Shards whose key is None stay alone."""
    pairs: dict[int, int] = {}
    if not positions:
        return pairs
    free: dict[Hashable, list[int]] = defaultdict(list)
    for j in reversed(range(len(before))):
        if j not in taken:
            free[key(before[j])].append(j)
    for i in positions:
        value = key(now[i])
        if value is not None and free[value]:
            pairs[i] = free[value].pop()
    return pairs


def _is_same(before: ShardFacts, now: ShardFacts, compares_digests: bool) -> bool:
    if not compares_digests:
        return _name_key(before) == _name_key(now)
    return _stat_key(before) == _stat_key(now) or _content_key(before) == _content_key(now) is not None


def _relabelled(base: Base, wanted: Wanted, places: Sequence[Place]) -> Iterator[int]:
    for i, place in enumerate(places):
        if place.is_same or place.base is None or place.wanted is None or not wanted.matching.compares_digests:
            continue
        if wanted.request.shards[place.wanted].has_rows_of(base.request.shards[place.base]):
            yield i


def _stat_key(shard: ShardFacts) -> Hashable:
    return shard.stat, shard.source, shard.selection, shard.kind, shard.master_key()


def _named_stat_key(shard: ShardFacts) -> Hashable:
    """Return what identifies a file in another folder. Without the name, coarse times would confuse new files."""
    return shard.name, _stat_key(shard)


def _name_key(shard: ShardFacts) -> Hashable:
    return shard.name, shard.stat[:2], shard.source, shard.selection, shard.kind, shard.master_key(False)


def _content_key(shard: ShardFacts) -> Hashable:
    """Return what identifies the content of a shard, or None if it is unknown."""
    if shard.rows is None or shard.extras is None:
        return None
    return shard.kind, shard.rows, shard.extras


# -- model and features ------------------------------------------------------------------------------------------------


def _trains(base: Base, wanted: Wanted, places: Sequence[Place]) -> bool:
    """Return whether the model of the base is another one than the run is asked for."""
    if wanted.encoder is not None:
        return wanted.encoder != base.encoder
    known = []
    for place in places:
        if place.base is None or place.wanted is None or not place.is_same:
            return True
        shard = wanted.request.shards[place.wanted]
        known.append(structs.replace(shard, rows=base.request.shards[place.base].rows))
    return structs.replace(wanted.request, shards=known).of_model() != base.model
