"""Whether the features of two runs mean the same, and whether what was trained on one can go on with the other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, counted, shown
from pipeline.output.records import read_manifest
from pipeline.report.likeness import Likeness, likeness
from pipeline.report.parts import Part, drawn, features_at

__all__ = ["Compared", "compare", "verdict"]

_ROWS = 4096
_BYTES = 2**26  # of features in float64, of either run
# Measured: docs/using.md has the table.
_SAME, _NEARLY = 0.01, 0.03  # of `Likeness.change`
_ALIKE, _NEIGHBOURS = 0.9, 0.6  # of `Likeness.cka` and `Likeness.neighbours`


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes
    ----------
    a, b : str
        The directories.
    n_features : tuple of int
        Of A and of B.
    n_common : int
        Rows that both have features of.
    n_changed : int
        Input files with such rows that are not as they were when A was made: other bytes, or another time.
    retrain : bool
        Whether what was trained on A's features must be trained again for B's.
    verdict : str
        In a sentence.
    """

    a: str
    b: str
    n_features: tuple[int, int]
    n_common: int
    n_changed: int
    likeness: Likeness
    retrain: bool
    verdict: str

    def __str__(self) -> str:
        found, (n, m) = self.likeness, self.n_features
        change = "no number, since the columns are not as many" if found.change is None else f"{found.change:.2g}"
        changed = f"; {counted(self.n_changed, 'file')} of these changed between the runs" if self.n_changed else ""
        return "\n".join(
            [
                self.verdict,
                f"  rows                 {found.n_rows} of {self.n_common} that both have{changed}",
                f"  features             {n} in {shown(self.a)}, {m} in {shown(self.b)}",
                f"  change               {change} (rms, in standard deviations; 0: the same columns)",
                f"  matched units        correlation {found.correlation:.3f} on average, {found.least_correlation:.3f} "
                f"at least; {found.n_in_place} of {found.n_units} in their places",
                f"  linear CKA           {found.cka:.3f} (1: rows differ in the same ways, whatever the units)",
                f"  nearest neighbours   {100 * found.neighbours:.1f} % of ten shared",
            ]
        )


def verdict(found: Likeness) -> tuple[bool, str]:
    """Whether a downstream model has to be trained again, and in a sentence what the numbers say."""
    keeps = "what was trained on A can take B as it is."
    if found.change == 0:
        return False, f"The features are the same: {keeps}"
    if found.change is not None and found.change < _SAME:
        return False, f"The features mean the same, but for roundings: {keeps}"
    if found.change is not None and found.change < _NEARLY:
        return False, f"The features mean nearly the same, and one prediction in a hundred may change: {keeps}"
    again = "train again what was trained on A"
    if found.cka >= _ALIKE and found.neighbours >= _NEIGHBOURS:
        return True, f"The features say about the same in other numbers: {again}, and expect about the same of it."
    return True, f"The features say other things: {again}, and measure what it is worth then."


def compare(a: str, b: str, n_rows: int | None = None) -> Compared:
    """Hold the features of two runs against each other, on rows that both have: of the same files, by their numbers.

    Parameters
    ----------
    a, b : str
        Directories of finished runs, or the same one twice.
    n_rows : int, optional
        How many rows at most, drawn by a fixed seed; 4096 without it, or fewer where there are thousands of features.

    Raises
    ------
    NoInput
        When there is no finished run.
    DataError
        When they have no row in common, or a part cannot be read.
    """
    first, second = (read_manifest(Path(each)) for each in (a, b))
    pieces = list(_common(first["parts"], second["parts"]))
    n_features = (first["n_features"], second["n_features"])
    rows = drawn([piece.n_rows for piece in pieces], n_rows or min(_ROWS, _BYTES // (8 * max(n_features))))
    read = [_read((a, b), piece, few) for piece, few in zip(pieces, rows, strict=True) if len(few)]
    features = [np.concatenate([each[i] for each in read]) for i in (0, 1)] if read else [np.empty((0, 0))] * 2
    if len(features[0]) < 2:
        raise DataError(
            f"output={shown(a)} and output={shown(b)}: found {counted(len(features[0]), 'row')} with features in both, "
            "expected two at least, of input files of the same names and datasets. Compare runs over the same files."
        )
    found = likeness(*features)
    n_changed = len(_changed(first, second) & {piece.name for piece in pieces})
    return Compared(a, b, n_features, sum(piece.n_rows for piece in pieces), n_changed, found, *verdict(found))


@dataclass(frozen=True)
class _Piece:
    """Rows that stand in one part of A and in one of B: from which row of each part on, and how many."""

    name: str
    parts: tuple[str, str]
    starts: tuple[int, int]
    n_rows: int


def _common(a: Sequence[Part], b: Sequence[Part]) -> Iterator[_Piece]:
    """Pieces of all rows that both have, in the order of A."""
    has_names = all(_tells_apart(parts) for parts in (a, b))
    of_file: dict[tuple[str, str], list[Part]] = {}
    for part in sorted(b, key=lambda part: part["start"]):
        of_file.setdefault(_source(part, has_names), []).append(part)
    for part in a:
        others = of_file.get(_source(part, has_names), [])
        first = bisect_right(others, part["start"], key=lambda other: other["stop"])  # there may be thousands
        for other in others[first : bisect_left(others, part["stop"], key=lambda other: other["start"])]:
            start, stop = max(part["start"], other["start"]), min(part["stop"], other["stop"])
            starts = (start - part["start"], start - other["start"])
            yield _Piece(Path(part["path"]).name, (part["file"], other["file"]), starts, stop - start)


def _source(part: Part, has_name: bool) -> tuple[str, str]:
    """By which its rows are known in another run: wherever the file lay then, if its name tells it from the others."""
    return Path(part["path"]).name if has_name else part["path"], part["dataset"]


def _tells_apart(parts: Sequence[Part]) -> bool:
    return len({_source(part, True) for part in parts}) == len({_source(part, False) for part in parts})


def _read(outputs: tuple[str, str], piece: _Piece, rows: np.ndarray) -> list[np.ndarray]:
    """Features of some of its rows in A and in B, of those that count in both."""
    found = [
        features_at(Path(output) / part, rows + start)
        for output, part, start in zip(outputs, piece.parts, piece.starts, strict=True)
    ]
    count = found[0][1] & found[1][1]
    return [features[count] for features, _ in found]


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """Names of files that were not the same bytes at the same time."""
    before, now = (
        {shard["file"]: (shard["n_bytes"], shard["changed"]) for shard in each["request"]["inputs"]["shards"]}
        for each in (a, b)
    )
    return {name for name in before.keys() & now.keys() if before[name] != now[name]}
