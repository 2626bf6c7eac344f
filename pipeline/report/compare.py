"""Comparison of the features of two runs: how similar they are, and whether a model trained on one fits the other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DataError, printable, quantity
from pipeline.output.records import read_manifest
from pipeline.report.rows import PartLine, read_features, select_rows

__all__ = ["Comparison", "Likeness", "compare", "likeness", "linear_cka", "match_units", "neighbour_overlap", "verdict"]

_ROWS = 4096
_BYTES = 2**26  # maximum size of each run's features, in float64
_NEIGHBOURS = 10
_NEIGHBOUR_ROWS = 2048  # rows in the search for neighbours, which computes all distances between them
_MIN_SPREAD = 0.01  # minimum spread of a column, relative to the other columns

# Limits of the verdict. They were measured: docs/using.md contains the table.
_SAME_CHANGE = 0.01
_NEARLY_SAME_CHANGE = 0.03
_SIMILAR_CKA = 0.9
_SIMILAR_NEIGHBOURS = 0.6


@dataclass(frozen=True)
class Likeness:
    """Similarity of features A and B of the same rows.

    Attributes
    ----------
    n_rows : int
    change : float or None
        Root mean square of B - A over all columns, in standard deviations of A's columns: 0 if B is A. None if A and B
        have different numbers of columns.
    correlation, least_correlation : float
        Mean and minimum of the absolute correlations of units that are matched one to one with the largest mean.
    n_units, n_in_place : int
        Number of matched units, and how many of them have the same number in both.
    cka : float
        Linear centered kernel alignment, from 0 to 1. It compares the similarities between rows, so it does not depend
        on the order or rotation of the units.
    neighbours : float
        Share of the ten nearest rows of a row in A that are among the ten nearest in B.
    """

    n_rows: int
    change: float | None
    correlation: float
    least_correlation: float
    n_units: int
    n_in_place: int
    cka: float
    neighbours: float

    @property
    def _change_text(self) -> str:
        if self.change is None:
            return "undefined, since the numbers of features differ"
        return f"{self.change:.2g}"

    def lines(self) -> list[str]:
        """Return the measures of similarity as lines of a table."""
        return [
            f"  change               {self._change_text} (RMS difference in standard deviations; 0: identical)",
            f"  matched units        mean correlation {self.correlation:.3f}, minimum {self.least_correlation:.3f}; "
            f"{self.n_in_place} of {self.n_units} in the same position",
            f"  linear CKA           {self.cka:.3f} (1: the same similarities between rows)",
            f"  nearest neighbours   {100 * self.neighbours:.1f} % of the ten nearest rows shared",
        ]


@dataclass(frozen=True)
class Comparison:
    """Result of comparing two runs.

    Attributes
    ----------
    a, b : str
        The output directories.
    n_features : tuple of int
        Numbers of features of A and of B.
    n_common : int
        Rows that have features in both.
    n_changed : int
        Input files with such rows whose size or modification time differs between the runs.
    likeness : Likeness
        Similarity of the features of a selection of these rows.
    retrain : bool
        Whether a model trained on A's features must be trained again for B's.
    verdict : str
        The result in one sentence.
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
        changed = ""
        if self.n_changed:
            changed = f"; {quantity(self.n_changed, 'file')} of the input changed between the runs"
        n, m = self.n_features
        lines = [
            self.verdict,
            f"  rows                 {self.likeness.n_rows} of {self.n_common} common rows{changed}",
            f"  features             {n} in {printable(self.a)}, {m} in {printable(self.b)}",
            *self.likeness.lines(),
        ]
        return "\n".join(lines)


def verdict(found: Likeness) -> tuple[bool, str]:
    """Return whether a downstream model must be trained again, and a sentence that says what the numbers mean."""
    keeps = "Models trained on A work on B unchanged."
    if found.change == 0:
        return False, f"The features are identical. {keeps}"
    if found.change is not None and found.change < _SAME_CHANGE:
        return False, f"The features agree up to rounding. {keeps}"
    if found.change is not None and found.change < _NEARLY_SAME_CHANGE:
        return False, f"The features nearly agree. {keeps} About one prediction in a hundred may change."
    retrain = "Retrain models on B"
    if found.cka >= _SIMILAR_CKA and found.neighbours >= _SIMILAR_NEIGHBOURS:
        return True, f"A and B carry similar information in different coordinates. {retrain}; expect similar accuracy."
    return True, f"A and B carry different information. {retrain}, and measure their accuracy."


# -- common rows ---------------------------------------------------------------------------------------------------


def compare(a: str, b: str, n_rows: int | None = None) -> Comparison:
    """Compare the features of two runs on common rows: rows with the same number in the same file.

    Parameters
    ----------
    a, b : str
        Directories of finished runs, or the same one twice.
    n_rows : int, optional
        Largest number of rows, selected by `select_rows`. By default 4096, or fewer if there are thousands of features.

    Raises
    ------
    NoInput
        If there is no finished run.
    DataError
        If they have no row in common, or a part cannot be read.
    """
    manifest_a = read_manifest(Path(a))
    manifest_b = read_manifest(Path(b))
    pieces = list(_common(manifest_a["parts"], manifest_b["parts"]))
    n_features = (manifest_a["n_features"], manifest_b["n_features"])
    if not n_rows:
        n_rows = min(_ROWS, _BYTES // (8 * max(n_features)))
    found = _likeness_of_pieces(a, b, pieces, n_rows)
    retrain, sentence = verdict(found)
    changed_files = _changed_files(manifest_a, manifest_b)
    return Comparison(
        a=a,
        b=b,
        n_features=n_features,
        n_common=sum(piece.n_rows for piece in pieces),
        n_changed=len(changed_files & {piece.name for piece in pieces}),
        likeness=found,
        retrain=retrain,
        verdict=sentence,
    )


def _likeness_of_pieces(a: str, b: str, pieces: Sequence[_Piece], n_rows: int) -> Likeness:
    """Return the similarity of up to `n_rows` rows; raise `DataError` if fewer than two are valid in both."""
    features_a, features_b = _read_pieces(a, b, pieces, n_rows)
    if len(features_a) < 2:
        n_found = quantity(len(features_a), "row")
        raise DataError(
            f"output={printable(a)} and output={printable(b)}: found {n_found} with features in both, "
            "expected at least two, from input files with the same names and datasets. Compare runs on the same files."
        )
    return likeness(features_a, features_b)


@dataclass(frozen=True)
class _Piece:
    """Rows of one input file that are in one part of A and in one of B, and their first row in each of these parts."""

    name: str
    parts: tuple[str, str]
    starts: tuple[int, int]
    n_rows: int

    @classmethod
    def of(cls, a: PartLine, b: PartLine) -> _Piece:
        """Return the rows that two parts have in common."""
        start = max(a["start"], b["start"])
        stop = min(a["stop"], b["stop"])
        return cls(
            name=Path(a["path"]).name,
            parts=(a["file"], b["file"]),
            starts=(start - a["start"], start - b["start"]),
            n_rows=stop - start,
        )

    def read(self, a: Path, b: Path, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Read some rows of both runs, and keep those that are valid in both."""
        features_a, valid_a = read_features(a / self.parts[0], rows + self.starts[0])
        features_b, valid_b = read_features(b / self.parts[1], rows + self.starts[1])
        is_valid = valid_a & valid_b
        return features_a[is_valid], features_b[is_valid]


def _common(a: Sequence[PartLine], b: Sequence[PartLine]) -> Iterator[_Piece]:
    """Yield pieces of all rows that both have, in the order of A."""
    by_name = _has_unique_names(a) and _has_unique_names(b)
    parts_of_file: dict[tuple[str, str], list[PartLine]] = {}
    for part in sorted(b, key=lambda part: part["start"]):
        parts_of_file.setdefault(_source(part, by_name), []).append(part)
    for part in a:
        others = parts_of_file.get(_source(part, by_name), [])
        for other in _overlapping(part, others):
            yield _Piece.of(part, other)


def _overlapping(part: PartLine, others: Sequence[PartLine]) -> Sequence[PartLine]:
    """Return the other parts of a file, sorted by their starts, that overlap this part."""
    first = bisect_right(others, part["start"], key=lambda other: other["stop"])  # there may be thousands of parts
    last = bisect_left(others, part["stop"], key=lambda other: other["start"])
    return others[first:last]


def _source(part: PartLine, by_name: bool) -> tuple[str, str]:
    """Return the key that identifies a source across runs: its name, in any directory, if names are unique."""
    path = part["path"]
    return Path(path).name if by_name else path, part["dataset"]


def _has_unique_names(parts: Sequence[PartLine]) -> bool:
    names = {_source(part, by_name=True) for part in parts}
    paths = {_source(part, by_name=False) for part in parts}
    return len(names) == len(paths)


def _changed_files(a: Mapping[str, Any], b: Mapping[str, Any]) -> set[str]:
    """Return names of input files whose sizes or modification times differ between two manifests."""
    before = _file_states(a)
    now = _file_states(b)
    return {name for name in before.keys() & now.keys() if before[name] != now[name]}


def _file_states(manifest: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    shards = manifest["request"]["inputs"]["shards"]
    return {shard["file"]: (shard["n_bytes"], shard["changed"]) for shard in shards}


def _read_pieces(a: str, b: str, pieces: Sequence[_Piece], n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Read up to `n_rows` rows of the features of A and of B, and keep those that are valid in both."""
    selection = select_rows([piece.n_rows for piece in pieces], n_rows)
    found = [piece.read(Path(a), Path(b), rows) for piece, rows in zip(pieces, selection, strict=True) if len(rows)]
    if not found:
        return np.empty((0, 0)), np.empty((0, 0))
    return np.concatenate([of_a for of_a, _ in found]), np.concatenate([of_b for _, of_b in found])


# -- similarity ----------------------------------------------------------------------------------------------------


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare features (n_rows, n_features) and (n_rows, m_features) of the same rows."""
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    units_a, units_b, correlations = match_units(a, b)
    return Likeness(
        n_rows=len(a),
        change=_change(a, b),
        correlation=float(correlations.mean()),
        least_correlation=float(correlations.min()),
        n_units=len(correlations),
        n_in_place=int((units_a == units_b).sum()),
        cka=linear_cka(a, b),
        neighbours=neighbour_overlap(a, b),
    )


def _change(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return `Likeness.change`. The spread of a column counts as at least a hundredth of that of the others.

    Otherwise rounding errors would look like large changes of columns that hardly vary.
    """
    if a.shape != b.shape:
        return None
    spread = a.std(axis=0)
    root_mean_square = float(np.sqrt(np.mean(spread**2)))
    min_spread = max(_MIN_SPREAD * root_mean_square, float(np.finfo(float).tiny))
    changes = (b - a) / np.maximum(spread, min_spread)
    return float(np.sqrt(np.mean(changes**2)))


def match_units(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match units of A and of B one to one by the Hungarian method.

    Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent learning", 2015, section 3. Constant units correlate
    with none.

    Returns
    -------
    units_a, units_b : ndarray of shape (n_units,), int64
    correlations : ndarray of shape (n_units,), float64
        Absolute values.
    """
    from scipy.optimize import linear_sum_assignment  # its import takes as long as everything else

    correlations = _absolute_correlations(a, b)
    units_a, units_b = linear_sum_assignment(correlations, maximize=True)
    return units_a, units_b, np.minimum(correlations[units_a, units_b], 1)


def _absolute_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlations (n_features, m_features) of all pairs of units."""
    a = _centered(a)
    b = _centered(b)
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    return np.divide(np.abs(a.T @ b), lengths, out=np.zeros(lengths.shape), where=lengths > 0)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Return ``|B' A|^2 / (|A' A| |B' B|)`` in Frobenius norms, of centered features.

    Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited", 2019,
    equation 5 with section 3. It is too large if there are fewer rows than features.
    """
    a = _centered(a)
    b = _centered(b)
    common = float(np.linalg.norm(b.T @ a) ** 2)
    whole = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    if whole > 0:
        return common / whole
    return float(common > 0)  # constant features have nothing in common; tiny ones may underflow


def neighbour_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean share of a row's nearest rows in A that are among its nearest in B, of at most 2,048 rows."""
    n = min(len(a), _NEIGHBOUR_ROWS)
    k = min(_NEIGHBOURS, n - 1)
    if k < 1:
        return 1.0
    rows = np.arange(n) * len(a) // n
    n_shared = (_nearest(a[rows], k) & _nearest(b[rows], k)).sum()
    return float(n_shared / (n * k))


def _nearest(features: np.ndarray, k: int) -> np.ndarray:
    """Return which rows are the `k` nearest of each row, bool (n, n); among equally near rows, the first ones."""
    features = _centered(features)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")
    nearest = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(nearest, order[:, :k], True, axis=1)
    return nearest


def _centered(features: np.ndarray) -> np.ndarray:
    return np.asarray(features - features.mean(axis=0))
