"""What rides along with the rows of all shards: labels, ids; the same from each of them.

What some shards lack rides along from the others. Where it is not, a value stands that can hardly be taken for one, and
beside it rides which rows have it: ``y_present`` for ``y``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import shown
from pipeline.formats import missing_value
from pipeline.gate import LeftOut, Rider, Shard
from pipeline.layout import Layout
from pipeline.rawread import read_across, read_values
from pipeline.riders import MOST_RIDERS

__all__ = ["absent", "alike", "chunk_rows", "log_riding", "read_rider", "told"]

log = logging.getLogger(__name__)

_NAMED, _LEFT_OUT, MOST_WARNED, _FILES = 20, 10, 10, 3  # in a line of the log; lines; files in one
_LONGEST = 80  # characters of a name or reason


def read_rider(shard: Shard, rider: Rider, start: int, stop: int) -> np.ndarray:
    """A riding dataset's values for rows `start` to `stop`: shape (stop - start,); raises like `read_values`."""
    if rider.layout is None:
        return absent(stop - start, rider)
    if _lies_across(rider.layout, shard.n_rows):
        return read_across(shard, rider.layout, start, np.empty((stop - start, 1), rider.dtype)).reshape(-1)
    values = read_values(shard, rider.layout, start, stop, rider.dtype)
    return values.reshape(stop - start, *values.shape[len(rider.layout.shape) :])  # of an array for each row, that


def chunk_rows(shard: Shard, layout: Layout) -> int | None:
    """Rows of a riding dataset's chunk; None where there are no chunks."""
    return layout.chunks[-1 if _lies_across(layout, shard.n_rows) else 0] if layout.chunks else None


def _lies_across(layout: Layout, n_rows: int) -> bool:
    """Whether its axes of length 1 come first, as MATLAB's do."""
    return layout.shape[0] != n_rows


def absent(n: int, rider: Rider) -> np.ndarray:
    """What stands for `n` values that are not there: shape (n,)."""
    values = np.zeros(n, rider.dtype)
    values[...] = missing_value(values.dtype) if rider.fill is None else rider.fill
    return values


def told(rider: Rider) -> str:
    """What stands for a value that is not there, in words."""
    value = missing_value(rider.dtype) if rider.fill is None else rider.fill
    return "empty" if isinstance(value, bytes) and not value.strip(b"\0") else str(value)


# -- alike in all shards ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How a riding dataset rides along; `dtype` is None where the shards have it in no common one."""

    name: str
    dtype: np.dtype | None
    first: Rider
    mask: str | None


def alike(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards, from each of which the same rides along: what any of them has, in a dtype that holds them all."""
    if len({tuple((rider.name, _kind(rider)) for rider in shard.riders) for shard in shards}) == 1:
        return tuple(shards)
    having: dict[str, list[tuple[Shard, Rider]]] = {}
    for shard in shards:
        for rider in shard.riders:
            having.setdefault(rider.name, []).append((shard, rider))
    taken = set(having)
    warnings: list[str] = []
    plans = [_planned(name, having[name], shards, taken, warnings) for name in list(having)[:MOST_RIDERS]]
    if len(having) > MOST_RIDERS:
        warnings.append(f"{len(having) - MOST_RIDERS} more datasets do not ride along, expected {MOST_RIDERS} at most")
    _warn(warnings)
    return tuple(replace(shard, riders=tuple(_riders(shard, plans))) for shard in shards)


def _kind(rider: Rider) -> object:
    return rider.dtype, repr(rider.dtype.metadata)  # which tells how an enumeration's values are called


def _planned(
    name: str, having: Sequence[tuple[Shard, Rider]], shards: Sequence[Shard], taken: set[str], warnings: list[str]
) -> _Plan:
    first = having[0][1]
    dtype = common_dtype([rider.dtype for _, rider in {_kind(each[1]): each for each in having}.values()])
    if dtype is None:
        shard, other = next(each for each in having if _kind(each[1]) != _kind(first))
        warnings.append(
            f"{_cut(name)} rides along as {first.dtype} from file={shown(having[0][0].path)} and as {other.dtype} from "
            f"file={shown(shard.path)}: no dtype holds both, so that it stands in parts/ and not in index.h5"
        )
    has = {id(shard) for shard, _ in having}
    lacking = [shard for shard in shards if id(shard) not in has and shard.n_rows]
    if not lacking:
        return _Plan(name, dtype, first, None)
    mask = f"{name}_present"
    while mask in taken:
        mask += "_"
    taken.add(mask)
    files = _some((f"file={shown(shard.path)}{_why(shard, name)}" for shard in lacking), _FILES)
    value = told(Rider(name, dtype or first.dtype))
    warnings.append(
        f"{_cut(name)} is missing in {len(lacking)} of {len(shards)} shards, {files}: there it becomes {value}, and "
        f"{_cut(mask)} tells which rows have it"
    )
    return _Plan(name, dtype, first, mask)


def _riders(shard: Shard, plans: Sequence[_Plan]) -> Iterable[Rider]:
    own = {rider.name: rider for rider in shard.riders}
    for plan in plans:
        rider = own.get(plan.name)
        if rider is None:
            yield Rider(plan.name, plan.dtype or plan.first.dtype)
        else:
            yield replace(rider, dtype=plan.dtype or rider.dtype)
        if plan.mask:
            yield Rider(plan.mask, np.dtype(bool), fill=rider is not None)


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
    reason = next((each.reason for each in shard.left_out if each.name == name), None)
    return f" ({_cut(reason)})" if reason else ""


# -- told at the start -------------------------------------------------------------------------------------------


def log_riding(shards: Sequence[Shard]) -> None:
    """Say what rides along and what does not, and why: of each name once, however many shards there are."""
    riding = dict.fromkeys(rider.name for rider in shards[0].riders)
    left_out = {name: found for name, found in _left_out(shards).items() if name not in riding}
    line = f"riding along: {_some(map(_cut, riding), _NAMED)}"
    if left_out:
        reasons = (f"{_cut(each.name)} ({_cut(each.reason.rstrip('.'))})" for each, _ in left_out.values())
        line += f"; left out: {_some(reasons, _LEFT_OUT)}"
    log.info("input: %s", line)
    _warn([_missed(each, among) for each, among in left_out.values() if each.is_missed])


def _missed(each: LeftOut, among: Sequence[Shard]) -> str:
    more = f", in {len(among)} shards" if len(among) > 1 else ""
    where = f"file={shown(among[0].path)} dataset={shown(each.name)}"
    return f"{where}: {shown(each.reason.rstrip('.'))}, does not ride along{more}"


def _warn(lines: Sequence[str]) -> None:
    for line in lines[:MOST_WARNED]:
        log.warning("%s", line)
    if len(lines) > MOST_WARNED:
        log.warning("%d more datasets are told of in no line", len(lines) - MOST_WARNED)


def _left_out(shards: Sequence[Shard]) -> dict[str, tuple[LeftOut, list[Shard]]]:
    """What does not ride along, by name: what is said of the first, and in which shards."""
    found: dict[str, tuple[LeftOut, list[Shard]]] = {}
    for shard in shards:
        for each in shard.left_out:
            found.setdefault(each.name, (each, []))[1].append(shard)
    return found


def _some(names: Iterable[str], n: int) -> str:
    every = list(names)
    more = f" and {len(every) - n} more" if len(every) > n else ""
    return (", ".join(every[:n]) or "nothing") + more


def _cut(words: str) -> str:
    return shown(words if len(words) <= _LONGEST else words[:_LONGEST] + "...")
