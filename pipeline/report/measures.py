"""What a sample of rows tells about the features, as plain values of bounded size, for report.json."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isqrt, prod
from typing import Any

import numpy as np

from pipeline.model import Model
from pipeline.report.probe import NONE, Labels, accuracy, labels_of
from pipeline.report.sample import Made, Sample
from pipeline.shards.shard import Shard
from pipeline.training.components import Components, principal_components
from pipeline.training.units import count_units

__all__ = ["measured"]

_BINS, _WORST, _POINTS, _PAIRS = 24, 10, 500, 8
_SIDE, _LINE = 32, 96  # pixels along an image's side, and columns of a line, at most
_LEAST_PIXELS = 49  # of columns that are as many as a square has; fewer are rather measurements
_LEAST_TOLD = 30  # rows that a classifier is tried on: of fewer the share says nothing


def measured(
    sample: Sample, made: Sequence[Made], model: Model, categories: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """All of it.

    Parameters
    ----------
    made : sequence of Made
        What the sample was drawn from.
    categories : mapping of str to ndarray
        What the codes in some riding datasets stand for.
    """
    again = model.decode(sample.features)
    squares = np.square(sample.scaled - again)
    errors, labels = squares.mean(axis=1), labels_of(sample.riders, categories)
    is_test = _kept_apart(sample)
    n_components = min(max(2, model.n_features), model.n_inputs)
    found = principal_components(sample.scaled[~is_test], n_components, np.random.default_rng(0))
    where = _Where(sample, made, labels)
    told = {
        "n_rows": len(errors),
        "mean_error": float(errors.mean()),
        "of_mean": float(np.square(sample.scaled - sample.scaled.mean(axis=0, dtype=np.float64)).mean()),
        "errors": _distribution(errors),
        "worst": [
            {**where.of(i), "error": float(errors[i]), **where.column(int(squares[i].argmax()))}
            for i in np.argsort(-errors, kind="stable")[:_WORST].tolist()
        ],
        "units": asdict(count_units(sample.features, model.network.code)),
        "points": _points(sample, again, found, labels),
        "pairs": _pairs(sample, again, errors, where, made[0].source.shard),
    }
    return told if labels is None else told | {"probe": _probe(sample, found, labels, is_test)}


class _Where:
    """Where the rows of a sample are found again."""

    def __init__(self, sample: Sample, made: Sequence[Made], labels: Labels | None) -> None:
        self._sample, self._made, self.labels = sample, made, labels

    def of(self, i: int) -> dict[str, Any]:
        """File, dataset, row and label of the i-th row."""
        shard = self._made[int(self._sample.sources[i])].source.shard
        code = NONE if self.labels is None else int(self.labels.codes[i])
        label = self.labels.names[code] if self.labels and code != NONE else None
        return {"file": shard.path, "dataset": shard.dataset, "row": int(self._sample.rows[i]), "label": label}

    def column(self, column: int) -> dict[str, Any]:
        """Return a column's number and its name, which is None if it is not known."""
        return {"column": column, "name": self._made[0].source.shard.columns.name_of(column)}


def _kept_apart(sample: Sample) -> np.ndarray:
    """A third of the rows, in whole stretches, since neighbours resemble each other."""
    stretches = np.unique(sample.stretches)
    if len(stretches) < 3:
        return np.arange(len(sample.rows)) % 3 == 2
    return np.isin(sample.stretches, stretches[2::3])


def _distribution(errors: np.ndarray) -> dict[str, Any]:
    """Quantiles, and counts between edges; the last bin takes all that is beyond the 99th percentile."""
    shares = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    edges = np.linspace(errors.min(), max(np.quantile(errors, 0.99), errors.min() + 1e-12), _BINS + 1)
    counts = np.histogram(np.minimum(errors, edges[-1]), edges)[0]
    return {
        "quantiles": {str(share): float(np.quantile(errors, share)) for share in shares},
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _points(sample: Sample, again: np.ndarray, found: Components, labels: Labels | None) -> dict[str, Any]:
    """Two coordinates of rows, codes and reconstructions: columns where there are two, else principal components."""
    chosen = np.linspace(0, len(again) - 1, min(len(again), _POINTS)).astype(int)
    rows, codes = _Plane.of(sample.scaled, found), _Plane.of(sample.features)
    planes = {"inputs": rows.of_rows(sample.scaled), "codes": codes.of_rows(sample.features)}
    planes["reconstructions"] = rows.of_rows(again)  # seen from where the rows are seen
    return {
        "axes": {"inputs": rows.words("column"), "codes": codes.words("feature")},
        **{name: _rounded(points[chosen]) for name, points in planes.items()},
        "labels": None if labels is None else labels.codes[chosen].tolist(),
        "names": [] if labels is None else list(labels.names),
        "dataset": None if labels is None else labels.name,
    }


class _Plane:
    """From where many columns are looked at."""

    def __init__(self, mean: np.ndarray, axes: np.ndarray, is_turned: bool) -> None:
        self._mean, self._axes, self._is_turned = mean, axes, is_turned

    @classmethod
    def of(cls, rows: np.ndarray, found: Components | None = None) -> _Plane:
        """The plane of two columns, or that in which rows vary most."""
        width = rows.shape[1]
        if width <= 2:
            return cls(np.zeros(width), np.eye(width, 2), False)
        found = found or principal_components(rows.astype(np.float32), 2, np.random.default_rng(0))
        return cls(found.mean, found.components[:, :2], True)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Coordinates (n_rows, 2)."""
        return np.asarray((rows - self._mean) @ self._axes)

    def words(self, what: str) -> str:
        """What the axes are."""
        return "their first two principal components" if self._is_turned else f"{what}s 0 and 1"


def _pairs(sample: Sample, again: np.ndarray, errors: np.ndarray, where: _Where, shard: Shard) -> dict[str, Any]:
    """A few rows, what their features are, and what these give back; as images, where rows are such."""
    shape = _image_shape(shard)
    low, high = sample.features.min(axis=0), sample.features.max(axis=0)
    listed = []
    for i in _typical(errors, where.labels):
        told: dict[str, Any] = {**where.of(i), "error": float(errors[i])}
        for name, values in (("input", sample.scaled[i]), ("again", again[i])):
            told[name] = _line(values) if shape is None else _bytes(_shrunk(values.reshape(shape)))
        if shape is not None:
            code = (sample.features[i] - low) / np.where(high > low, high - low, 1)
            side = isqrt(len(code) - 1) + 1
            told["code"] = _bytes(np.pad(code, (0, side * side - len(code))))
        listed.append(told)
    return {"shape": None if shape is None else list(_shrunk(np.zeros(shape)).shape), "rows": listed}


def _typical(errors: np.ndarray, labels: Labels | None) -> list[int]:
    """The row of middling error of each label; without labels, rows from the best to the worst."""
    if labels is None:
        order = np.argsort(errors, kind="stable")
        return [int(order[at]) for at in np.linspace(0, len(order) - 1, min(_PAIRS, len(order))).astype(int)]
    chosen = []
    for code in range(min(len(labels.names), _PAIRS + 2)):
        these = np.flatnonzero(labels.codes == code)
        chosen.append(int(these[np.argsort(errors[these], kind="stable")[len(these) // 2]]))
    return chosen


def _image_shape(shard: Shard) -> tuple[int, ...] | None:
    """Height and width, and 3 for colours, of rows that are images; None of others."""
    axes = shard.shape[1:]
    if len(axes) == 3 and axes[-1] in (1, 3):
        return axes[:2] if axes[-1] == 1 else axes
    if len(axes) == 2 and min(axes) > 4:
        return axes
    side = isqrt(prod(axes))
    is_square = len(axes) == 1 and side * side == axes[0] >= _LEAST_PIXELS
    return (side, side) if is_square and not shard.columns.is_known else None  # pixels have no names


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """At most so many pixels along a side: means of whole squares of them, and what lies beyond these cut off."""
    factor = -(-max(pixels.shape[:2]) // _SIDE)
    height, width = (n // factor or 1 for n in pixels.shape[:2])
    cut = pixels[: height * factor, : width * factor]
    return cut.reshape(height, cut.shape[0] // height, width, cut.shape[1] // width, *cut.shape[2:]).mean(axis=(1, 3))


def _line(values: np.ndarray) -> list[float]:
    """A value for each column, or for each of as many stretches of them as a line has room for: their mean."""
    return _rounded(np.array([each.mean() for each in np.array_split(values, min(len(values), _LINE))]))


def _bytes(values: np.ndarray) -> str:
    return b64encode(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).tobytes()).decode()


def _rounded(values: np.ndarray) -> list[Any]:
    return list(np.round(values.astype(np.float64), 4).tolist())


def _probe(sample: Sample, found: Components, labels: Labels, is_test: np.ndarray) -> dict[str, Any] | None:
    """Shares of rows that a linear classifier tells right by features, components and raw columns."""
    has = labels.codes != NONE
    n_test = int((has & is_test).sum())
    learnt = labels.codes[has & ~is_test]
    if n_test < _LEAST_TOLD or len(np.unique(learnt)) < 2:
        return None
    n = min(sample.features.shape[1], found.components.shape[1], len(learnt))
    tables = {
        "features": sample.features,
        "components": (sample.scaled - found.mean) @ found.components[:, :n],
        "columns": sample.scaled,
    }
    commonest = np.bincount(learnt).argmax()
    return {
        "labels": labels.name,
        "n_train": len(learnt),
        "n_test": n_test,
        "n_components": n,
        "commonest": float((labels.codes[has & is_test] == commonest).mean()),
        **{name: accuracy(table[has], labels.codes[has], is_test[has]) for name, table in tables.items()},
    }
