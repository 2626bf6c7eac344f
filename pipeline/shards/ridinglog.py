"""What the log says at the start of what rides along: each name once, however many shards there are, and in bounds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.errors import shown
from pipeline.hdf5.limits import MOST_LEFT_OUT
from pipeline.hdf5.riders import A_GROUP
from pipeline.shards.shard import LeftOut, Rider, Shard

__all__ = ["APART", "cut", "log_riding", "some", "warn", "why_left_out"]

log = logging.getLogger(__name__)

APART = "the shards do not have it alike"  # in no dtype, or no categories, that hold the values of all
_NAMED, _LEFT_OUT, MOST_WARNED = 20, 10, 10  # in a line of the log; lines
_LONGEST = 80  # characters of a name or reason


def log_riding(shards: Sequence[Shard]) -> None:
    """Say what rides along and what does not, and why: of each name once, however many shards there are."""
    riding = {rider.name: _called(rider) for rider in shards[0].riders}
    left_out = _left_out(shards)
    line = f"riding along: {some(riding.values(), _NAMED)}"
    groups = [cut(each.name) for each, _ in left_out.values() if each.reason == A_GROUP]
    reasons = [f"{cut(each.name)} ({cut(each.reason)})" for each, _ in left_out.values() if each.reason != A_GROUP]
    if reasons:
        line += f"; left out: {some(reasons, _LEFT_OUT)}"
    if groups:
        line += f"; --carry takes from the groups: {some(groups, _LEFT_OUT)}"
    log.info("input: %s", line)
    warn([_missed(each, among) for each, among in left_out.values() if each.is_missed])


def _called(rider: Rider) -> str:
    return cut(rider.name) + ("" if rider.categories is None else f" ({len(rider.categories)} categories)")


def _missed(each: LeftOut, among: Sequence[Shard]) -> str:
    more = f", in {len(among)} shards" if len(among) > 1 else ""
    where = f"file={shown(among[0].path)} dataset={shown(each.name)}"
    return f"{where}: {shown(each.reason)}, does not ride along{more}"


def warn(lines: Sequence[str]) -> None:
    """Warn in a few lines at most."""
    for line in lines[:MOST_WARNED]:
        log.warning("%s", line)
    if len(lines) > MOST_WARNED:
        log.warning("%d more datasets are told of in no line", len(lines) - MOST_WARNED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """What does not ride along, by name: what is said of the first, and in which shards."""
    found: dict[str, tuple[LeftOut, list[Shard]]] = {}
    riding = {rider.name for rider in shards[0].riders}
    for shard in shards:
        for each in shard.left_out:
            if each.name not in riding or each.reason == APART:
                told = replace(each, reason=each.reason.rstrip("."))
                found.setdefault(each.name, (told, []))[1].append(shard)
    return found


def why_left_out(shards: Sequence[Shard]) -> dict[str, str]:
    """Why what lies beside the rows does not ride along, by name; not of too many."""
    return {cut(name): cut(each.reason) for name, (each, _) in list(_left_out(shards).items())[:MOST_LEFT_OUT]}


def some(names: Iterable[str], n: int) -> str:
    """The first `n` of many names."""
    every = list(names)
    more = f" and {len(every) - n} more" if len(every) > n else ""
    return (", ".join(every[:n]) or "nothing") + more


def cut(words: str) -> str:
    """A name or reason that fits into a line."""
    return shown(words if len(words) <= _LONGEST else words[:_LONGEST] + "...")
