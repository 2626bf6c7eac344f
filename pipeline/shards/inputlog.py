"""What the log says of the input at the start: each thing once, however many shards there are, and in bounds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import counted, shown, some
from pipeline.hdf5.files import writers
from pipeline.hdf5.forms import A_GROUP
from pipeline.hdf5.limits import MOST_LEFT_OUT
from pipeline.shards.shard import LeftOut, Shard, row_dtype

__all__ = ["APART", "cut", "log_shards", "warn", "why_left_out"]

log = logging.getLogger(__name__)

APART = "the shards do not have it alike"  # in no dtype, or no categories, that hold the values of all
_FORMS = {
    "columns": "stored by columns: the last axis counts them",
    "sparse": "sparse: what is not there is 0",
    "table": "records of a table, of which a first field `index` is none of the columns",
}
_DATASETS, _NAMED, _LEFT_OUT = 3, 20, 10  # in a line of the log
MOST_WARNED = 10  # lines
_LONGEST = 80  # characters of a name or reason


def log_shards(shards: Sequence[Shard]) -> None:
    """Say what the rows are, what rides along with them, and what may be amiss."""
    first = shards[0]
    n_bytes = sum(shard.n_rows * shard.row_bytes for shard in shards)
    log.info(
        "input: %s, %s x %d columns %s, %.1f MB",
        *(counted(len(shards), "shard"), counted(sum(shard.n_rows for shard in shards), "row")),
        *(first.n_inputs, row_dtype(shards), n_bytes / 1e6),
    )
    names = dict.fromkeys(shard.dataset for shard in shards)
    if list(names) != ["X"]:  # which is what everybody expects
        log.info("input: rows are those of dataset %s", some(map(cut, names), _DATASETS))
    if len(first.shape) > 2:
        log.info("input: rows of shape %s are flattened to %d columns", first.shape[1:], first.n_inputs)
    if len({shard.dtype for shard in shards}) > 1:
        log.info("input: dtypes %s are read as %s", sorted({s.stored_dtype for s in shards}), row_dtype(shards))
    for form, n in Counter(shard.form for shard in shards if shard.form in _FORMS).items():
        log.info("input: rows %sare %s", "" if n == len(shards) else f"of {counted(n, 'shard')} ", _FORMS[form])
    for value in sorted({shard.fill_value for shard in shards if shard.fill_value is not None}):
        log.info("input: attribute _FillValue: %s stands for no value. If it occurs: --missing-value %s", value, value)
    _log_riding(shards)
    for shard in shards:
        if not shard.n_rows:
            log.warning("%s: no rows", shard)
    _warn_of_writers(shards)


def _warn_of_writers(shards: Sequence[Shard]) -> None:
    at_work = writers()  # asked for once, since the kernel lists those of all files
    held = [(shard, place) for shard in shards if (place := (shard.identity.device, shard.identity.inode)) in at_work]
    if held:
        (shard, place), *others = held
        more = f" (and {len(others)} more files are held so)" if others else ""
        log.warning(
            "file=%s: process %d holds it open for writing%s: what is written from now on is not read, or ends the "
            "run. Close it there first.",
            *(shown(shard.path), at_work[place], more),
        )


# -- what rides along ------------------------------------------------------------------------------------------


def _log_riding(shards: Sequence[Shard]) -> None:
    """Say what rides along and what does not, and why: of each name once, however many shards there are."""
    # The first shard tells of all, since the same rides along from each.
    riding = [
        cut(rider.name) + ("" if rider.categories is None else f" ({len(rider.categories)} categories)")
        for rider in shards[0].riders
    ]
    left_out = _left_out(shards)
    line = f"riding along: {some(riding, _NAMED)}"
    groups = [cut(each.name) for each, _ in left_out.values() if each.reason == A_GROUP]
    reasons = [f"{cut(each.name)} ({cut(each.reason)})" for each, _ in left_out.values() if each.reason != A_GROUP]
    if reasons:
        line += f"; left out: {some(reasons, _LEFT_OUT)}"
    if groups:
        line += f"; --carry takes from the groups: {some(groups, _LEFT_OUT)}"
    log.info("input: %s", line)
    warn([_missed(each, lacking) for each, lacking in left_out.values() if each.is_missed])


def _missed(each: LeftOut, lacking: Sequence[Shard]) -> str:
    more = f", in {len(lacking)} shards" if len(lacking) > 1 else ""
    where = f"file={shown(lacking[0].path)} dataset={shown(each.name)}"
    return f"{where}: {shown(each.reason)}, does not ride along{more}"


def warn(lines: Sequence[str]) -> None:
    """Warn in a few lines at most."""
    for line in lines[:MOST_WARNED]:
        log.warning("%s", line)
    if len(lines) > MOST_WARNED:
        log.warning("%d more datasets are told of in no line", len(lines) - MOST_WARNED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """What does not ride along, by name: what is said of the first, and in which shards."""
    told: dict[str, tuple[LeftOut, list[Shard]]] = {}
    riding = {rider.name for rider in shards[0].riders}
    for shard in shards:
        for each in shard.left_out:
            if each.name not in riding or each.reason == APART:  # it may ride along from others, and be absent here
                first = replace(each, reason=each.reason.rstrip("."))
                told.setdefault(each.name, (first, []))[1].append(shard)
    return told


def why_left_out(shards: Sequence[Shard]) -> dict[str, str]:
    """Why what lies beside the rows does not ride along, by name; not of too many."""
    return {cut(name): cut(each.reason) for name, (each, _) in list(_left_out(shards).items())[:MOST_LEFT_OUT]}


def cut(words: str) -> str:
    """A name or reason that fits into a line."""
    return shown(words if len(words) <= _LONGEST else words[:_LONGEST] + "...")
