"""Table of differences between a result and what a run is asked for.

A shard is written as ``path=content``. Marks behind it say what differs from a file that was not touched since:

- ``*``: another stat, with a known digest; ``?``: another stat, with an unknown digest
- ``!``: edited with restored times, with a known digest; ``e``: other extras
- ``s``: the stat that all files with this mark have
- ``/f8``: another dtype; ``/3``: three rows
- ``x``: a damaged part in the base, or a file that cannot be used in the input
- ``@1``: rows of the first append

The expected change lists the shards of the new result in order: ``=a`` its features stay, ``.a`` its rows stay and are
encoded again, ``~a`` its rows are replaced, ``,a`` only its extras are, ``+a`` it is new, ``!a`` its rows stay although
its file cannot be used, ``-a`` it is gone. Then ``train``, if a model is trained, ``again``, if all rows are encoded
again with the same model, and the names of settings that differ.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

import pytest
from msgspec import structs

from shardpress.result.records import Entry, Part, Range, Request, ShardFacts, Stat
from shardpress.run import difference as module
from shardpress.run.difference import Base, Change, Matching, Place, Wanted, compacted, difference, keeping

_SHARD = re.compile(r"(?P<path>[\w/]+)=(?P<content>\w)(?P<marks>(?:[*?!xes]|/f8|/\d|@\d)*)")
_TRAINING = {"seed": 0}
_ENCODING = {"storage_dtype": "float32", "include": []}


class Row(NamedTuple):
    title: str
    base: str
    wanted: str
    expected: str
    append: bool = False
    reorders: bool = False
    sizes: bool = False  # --verify sizes
    seed: int = 0
    include: tuple[str, ...] = ()
    storage: str = "float32"


append = partial(Row, append=True)
retrain = partial(Row, reorders=True)

ROWS = [
    # first runs and repeated runs
    Row("nothing is there", "", "a=1 b=2", "+a +b train"),
    Row("nothing differs", "a=1 b=2", "a=1 b=2", "=a =b"),
    Row("another order of the input", "a=1 b=2", "b=2 a=1", "=a =b"),
    Row("a touched file", "a=1 b=2", "a=1* b=2", "=a =b"),
    Row("a touched file that cannot be read for its digest", "a=1 b=2", "a=1? b=2", "~a =b train"),
    Row("an edited file", "a=1 b=2", "a=3* b=2", "~a =b train"),
    Row("edited with restored times", "a=1 b=2", "a=3! b=2", "~a =b train"),
    Row("other extras", "a=1 b=2", "a=1*e b=2", ",a =b train"),
    Row("a new file", "a=1 b=2", "a=1 b=2 c=3", "=a =b +c train"),
    Row("a new file that comes first", "b=2 c=3", "a=1 b=2 c=3", "=b =c +a train"),
    Row("a file is gone", "a=1 b=2", "a=1", "=a -b train"),
    Row("other settings of the training", "a=1 b=2", "a=1 b=2", "=a =b train seed", seed=1),
    Row("another form of storage", "a=1 b=2", "a=1 b=2", ".a .b again storage_dtype", storage="float16"),
    Row("another extra", "a=1 b=2", "a=1 b=2", ".a .b again include", include=("y",)),
    Row("an extra and other settings", "a=1", "a=1", "=a train include seed", include=("y",), seed=1),
    Row("a damaged part", "a=1x b=2", "a=1 b=2", ".a =b"),
    Row("a shard without rows", "a=1/0 b=2", "a=1/0 b=2", "=a =b"),
    Row("a shard gets rows", "a=1/0 b=2", "a=3* b=2", "~a =b train"),
    Row("equal values in another dtype", "a=1 b=2", "a=1/f8* b=2", "~a =b train"),
    # places
    Row("a moved file", "a=1 b=2", "c=1* b=2", "=c =b"),
    Row("a moved folder, whose files keep their stats", "a=1 b=2", "c=1 d=2", "=c =d"),
    Row("a hard link to a file, whose digest is unknown", "a=1", "a=1 b=1?", "=a +b train"),
    Row("swapped names", "a=1 b=2", "a=2* b=1*", "=b =a"),
    Row("swapped names of equal files", "a=1 b=1", "a=1* b=1*", "=a =b"),
    Row("a log is rotated: its rows get another name", "a=1", "a=2* b=1*", "=b +a train"),
    Row("a copy of a file is added", "a=1", "a=1 b=1*", "=a +b train"),
    Row("duplicates", "a=1 b=1", "a=1 b=1", "=a =b"),
    Row("one duplicate is gone", "a=1 b=1", "a=1", "=a -b train"),
    Row("the other duplicate is gone", "a=1 b=1", "b=1", "=b -a train"),
    Row("a duplicate becomes another file", "a=1 b=1", "a=1 b=2*", "=a ~b train"),
    Row("one of two duplicates is moved", "a=1 b=1", "a=1 d=1*", "=a =d"),
    Row("one of two files with the same name and stat is gone", "a/x=1s b/x=2s", "b/x=2s?", "=b/x -a/x train"),
    Row("more duplicates than before", "a=1 b=1", "a=1 b=1 c=1*", "=a =b +c train"),
    # sizes only
    Row("a touched file, without digests", "a=1 b=2", "a=1* b=2", "~a =b train", sizes=True),
    Row("edited with restored times, without digests", "a=1 b=2", "a=3! b=2", "=a =b", sizes=True),
    Row("a file with another name, without digests", "a=1 b=2", "c=1 b=2", "=b +c -a train", sizes=True),
    Row("a file in another folder, without digests", "a=1 b=2", "f/a=1 b=2", "=f/a =b", sizes=True),
    # appends
    append("nothing is new", "a=1 b=2", "a=1 b=2", "=a =b"),
    append("a new file", "a=1 b=2", "a=1 b=2 c=3", "=a =b +c"),
    append("a new file that comes first", "b=2", "a=1 b=2", "=b +a"),
    append("a changed file keeps its place", "a=1 b=2", "a=3* b=2", "~a =b"),
    append("an appended file has changed", "a=1 b=2@1", "a=1 b=3*", "=a ~b"),
    append("other extras", "a=1 b=2", "a=1*e b=2", ",a =b"),
    append("other extras, without digests", "a=1", "a=1*e", "~a", sizes=True),
    append("a file is gone", "a=1 b=2 c=3", "a=1 c=3", "=a =c -b"),
    append("a file is moved and another one is new", "a=1 b=2", "b=2 c=3 d=1*", "=d =b +c"),
    append("a new file has the name of one that is moved", "a=1 b=2", "a=3* b=2 c=1*", "=c =b +a"),
    append("an extra is added", "a=1 b=2", "a=1 b=2", ".a .b again include", include=("y",)),
    append("an extra and a file are added", "a=1", "a=1 b=2", ".a +b again include", include=("y",)),
    # files that cannot be used
    append("a file cannot be used", "a=1 b=2", "a=1x b=2", "!a =b"),
    append("a new file cannot be used", "a=1", "a=1 b=2x", "=a"),
    append("a moved file, and one in its place that cannot be used", "a=1 b=2", "a=3x b=2 c=1*", "=c =b"),
    Row("a file cannot be used in a repeated run", "a=1 b=2", "a=1x b=2", "!a =b train"),
    # training again
    retrain("nothing differs", "a=1 b=2", "a=1 b=2", "=a =b"),
    retrain("another order of the input", "a=1 b=2", "b=2 a=1", "=b =a train"),
    retrain("appended files come to their places", "a=1 c=3 b=2@1", "a=1 b=2 c=3", "=a =b =c train"),
    retrain("after an append", "a=1 b=2@1", "a=1 b=2", "=a =b train"),
    retrain("a file is gone", "a=1 b=2", "b=2", "=b -a train"),
    retrain("a file cannot be used", "a=1 b=2", "a=1x b=2", "=b -a train"),
    Row("a repeated run after an append", "a=1 b=2@1", "a=1 b=2", "=a =b train"),
    Row("a run without what was appended", "a=1 b=2@1", "a=1", "=a -b"),
]


def shard(match: re.Match[str]) -> ShardFacts:
    marks = match["marks"]
    n_rows = int(found[1]) if (found := re.search(r"/(\d)", marks)) else 4
    dtype = "<f8" if "/f8" in marks else "<f4"
    content = "0" if not n_rows else match["content"]
    changed = 1 if "*" in marks or "?" in marks else 0
    ctime = 1 if set("*?!") & set(marks) else 0
    is_known = "?" not in marks
    stat = Stat(n_rows, 10 * ord(match["content"]) + changed if changed else 0, ctime, ord(match["content"]))
    return ShardFacts(
        id=match["path"],
        path=f"/in/{match['path']}",
        dataset="X",
        shape=[n_rows, 2],
        dtype=dtype,
        stat=Stat(n_rows, 0, 0, 0) if "s" in marks else stat,
        rows=content * 32 if is_known else None,
        extras=str(int("e" in marks)) * 32 if is_known else None,
    )


def base_and_wanted(row: Row) -> tuple[Base | None, list[Part], Wanted]:
    before = [*_SHARD.finditer(row.base)]
    now = [*_SHARD.finditer(row.wanted)]
    usable = [shard(match) for match in now if "x" not in match["marks"]]
    encoding = {**_ENCODING, "include": list(row.include), "storage_dtype": row.storage}
    request = Request(usable, {}, {"seed": row.seed}, encoding)
    wanted = Wanted(
        request=request,
        encoder="encoder" if row.append else None,
        features=lambda encoder: request.of_features(encoder, list(row.include)),
        matching=Matching(
            compares_digests=not row.sizes,
            reorders=row.reorders,
            unreadable=frozenset(f"/in/{match['path']}" for match in now if "x" in match["marks"]),
        ),
    )
    if not before:
        return None, [], wanted
    earlier = Request([shard(match) for match in before], {}, _TRAINING, _ENCODING)
    trained = [shard(match) for match in before if "@" not in match["marks"]]
    ranges = []  # in one part, except for those in damaged parts
    first = 0
    for i, match in enumerate(before):
        n_rows = earlier.shards[i].shape[0]
        if "x" not in match["marks"] and n_rows:
            ranges.append(Range(first, earlier.shards[i].id, 0, n_rows))
            first += n_rows
    parts = [Part(Entry("", 0, ""), first, ranges)] if ranges else []
    model = structs.replace(earlier, shards=trained).of_model()
    return Base(earlier, model, "encoder", earlier.of_features("encoder", [])), parts, wanted


def in_words(base: Base | None, wanted: Wanted, change: Change) -> str:
    kept = {each.shard for part in change.kept for each in part.ranges}
    words = []
    for i, place in enumerate(change.places):
        if place.wanted is None:
            assert base is not None
            assert place.base is not None
            assert place.is_same
            facts = base.request.shards[place.base]
        else:
            facts = wanted.request.shards[place.wanted]
        name = facts.path.removeprefix("/in/")
        if place.wanted is None:
            mark = "!"
        elif place.base is None:
            mark = "+"
        elif not place.is_same:
            mark = "," if i in change.relabelled else "~"
        else:
            assert base is not None
            facts_before = base.request.shards[place.base]
            # A model that is trained encodes all rows; the table then shows which ones are the same.
            mark = "=" if facts_before.id in kept or change.trains or not facts.shape[0] else "."
        words.append(mark + name)
    assert base is not None or not change.gone
    words += [f"-{base.request.shards[i].path.removeprefix('/in/')}" for i in change.gone] if base else []
    words += ["train"] if change.trains else []
    words += ["again"] if change.encodes_again else []
    return " ".join([*words, *sorted(change.settings)])


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.title}{' (append)' * row.append}" for row in ROWS])
def test_the_table(row: Row) -> None:
    base, parts, wanted = base_and_wanted(row)
    change = difference(base, wanted)
    if base is not None:
        change = keeping(change, base, parts)
    assert in_words(base, wanted, change) == row.expected
    assert not change.kept or not (change.trains or change.encodes_again)
    if base is not None:
        same = {
            base.request.shards[place.base].id for place in change.places if place.is_same and place.base is not None
        }
        assert same.issuperset(rows.shard for part in change.kept for rows in part.ranges)


# -- parts whose rows are copied to others -----------------------------------------------------------------------------


PART_ROWS = 8
MOST_PARTS = 3
# Title; parts, written as ``live/all`` rows; those that stay; rows that no part has; files that are gone. Live rows can
# be those of several files, as in ``2+1/4``.
COMPACTIONS = [
    ("most rows are dead", "3/8 4/8 1/3", "4/8", 1, 0),
    ("live rows of several files", "2+2/8 2+1/8", "2+2/8", 1, 0),
    ("nothing changes, and there are too many parts", "1/1 1/1 1/1 1/1", "1/1 1/1 1/1 1/1", 0, 0),
    ("files are only removed", "1/8 8/8", "8/8", 0, 1),
    ("with the new one, as many parts as possible", "1/1 8/8", "1/1 8/8", 8, 0),
    ("with two new ones, too many parts", "1/1 8/8", "8/8", 9, 0),
    ("too many parts, of which some are larger than new ones", "8/20 10/20 4/8", "10/20 4/8", 1, 0),
]


def change_of(parts_and_rows: str, n_gone: int) -> Change:
    """Return a change that keeps all parts. The files of the parts are named by the words in the table."""
    places: list[Place] = []
    parts = []
    for word in parts_and_rows.split():
        live, n_rows = word.split("/")
        ranges = []
        for n_live in live.split("+"):
            ranges.append(Range(0, str(len(places)), 0, int(n_live)))
            places.append(Place(len(places), len(places), is_same=True))
        parts.append(Part(Entry(word, 0, ""), int(n_rows), ranges))
    gone = tuple(range(len(places), len(places) + n_gone))
    return Change(tuple(places), gone, trains=False, kept=tuple(parts))


@pytest.mark.parametrize(("title", "parts", "expected", "n_missing", "n_gone"), COMPACTIONS)
def test_parts_that_are_mostly_dead_or_small_do_not_stay(
    monkeypatch: pytest.MonkeyPatch, title: str, parts: str, expected: str, n_missing: int, n_gone: int
) -> None:
    monkeypatch.setattr(module, "MOST_PARTS", MOST_PARTS)
    change = change_of(parts, n_gone)
    found = compacted(change, n_missing, PART_ROWS)
    assert " ".join(part.file for part in found.kept) == expected
    assert [part for part in change.kept if part not in found.kept] == list(found.copied)
