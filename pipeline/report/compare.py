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
from pipeline.report.rows import Part, drawn, features_at

__all__ = ["Compared", "Likeness", "compare", "likeness", "linear_cka", "matched", "neighbour_overlap", "verdict"]

_NEIGHBOURS = 10
_LEAST_SPREAD = 0.01  # of the other columns'
_NEIGHBOUR_ROWS = 2048  # among which they are looked for: the distances take the square of it


@dataclass(frozen=True)
class Likeness:
    """What was measured of features A and B.

    Attributes
    ----------
    n_rows : int
        Rows.
    change : float or None
        The root mean square of B - A in standard deviations of A's columns, over all of these: 0 where B is A. None
        where there are more columns in one.
    correlation, least_correlation : float
        Mean and smallest size of the correlation of units that are matched one to one, so that the mean is largest.
    n_units, n_in_place : int
        Units that are matched, and how many of them have the same number in both.
    cka : float
        Linear centered kernel alignment, from 0 to 1: whether rows differ from each other in the same ways, whatever
        the units.
    neighbours : float
        Which share of the ten nearest rows of a row in A are among the ten nearest in B.
    """

    n_rows: int
    change: float | None
    correlation: float
    least_correlation: float
    n_units: int
    n_in_place: int
    cka: float
    neighbours: float


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare features (n_rows, n_features) and (n_rows, m_features) of the same rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second, sizes = matched(a, b)
    return Likeness(
        n_rows=len(a),
        change=_change(a, b) if a.shape == b.shape else None,
        correlation=float(sizes.mean()),
        least_correlation=float(sizes.min()),
        n_units=len(sizes),
        n_in_place=int((first == second).sum()),
        cka=linear_cka(a, b),
        neighbours=neighbour_overlap(a, b),
    )


def _change(a: np.ndarray, b: np.ndarray) -> float:
    """Columns that hardly vary beside the others count by a hundredth of these, so that no rounding is much of them."""
    spread = a.std(axis=0)
    least = max(_LEAST_SPREAD * float(np.sqrt(np.mean(spread**2))), float(np.finfo(float).tiny))
    return float(np.sqrt(np.mean(((b - a) / np.maximum(spread, least)) ** 2)))


def matched(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units of A and of B, matched one to one by the Hungarian method, and the sizes of their correlations.

    Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent learning", 2015, section 3. Units that never vary
    correlate with none.
    """
    from scipy.optimize import linear_sum_assignment  # here, since it takes as long to load as all else takes

    a, b = _centered(a), _centered(b)
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    correlations = np.divide(np.abs(a.T @ b), lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    first, second = linear_sum_assignment(correlations, maximize=True)
    return first, second, np.minimum(correlations[first, second], 1)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """``|B' A|^2 / (|A' A| |B' B|)`` in Frobenius norms, of centered features.

    Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited", 2019,
    equation 5 with section 3. With fewer rows than features it says too much.
    """
    a, b = _centered(a), _centered(b)
    return _share(np.linalg.norm(b.T @ a) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


def neighbour_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The mean share of a row's nearest rows in A that are among its nearest in B; of 2,048 rows at most."""
    n = min(len(a), _NEIGHBOUR_ROWS)
    k = min(_NEIGHBOURS, n - 1)
    if k < 1:
        return 1.0
    first, second = (_nearest(each[np.arange(n) * len(a) // n], k) for each in (a, b))
    return float((first & second).sum() / (n * k))


def _nearest(features: np.ndarray, k: int) -> np.ndarray:
    """Which rows are the `k` nearest of each: (n, n), bool. Of equally near ones those that come first."""
    features = _centered(features)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(nearest, np.argsort(distances, axis=1, kind="stable")[:, :k], True, axis=1)
    return nearest


def _centered(features: np.ndarray) -> np.ndarray:
    return np.asarray(features - features.mean(axis=0))


def _share(part: Any, whole: Any) -> float:
    """0 / 0 is 0: of features that never vary there is nothing to be alike in."""
    return float(part / whole) if whole > 0 else float(part > 0)


_ROWS = 4096
_BYTES = 2**26  # of features in float64, of either run
# Measured: docs/using.md has the table.
_SAME, _NEARLY = 0.01, 0.03  # of `Likeness.change`
_ALIKE, _SAME_NEIGHBOURS = 0.9, 0.6  # of `Likeness.cka` and `Likeness.neighbours`


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
    if found.cka >= _ALIKE and found.neighbours >= _SAME_NEIGHBOURS:
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
