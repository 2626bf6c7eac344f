"""Measurements of a sample of rows and features for report.json, as plain values of bounded size."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isqrt
from typing import Any

import numpy as np

from shardpress.errors import printable
from shardpress.labels import LABELS_IN_WORDS, Labels, labels_of
from shardpress.model import Model
from shardpress.report.baselines import probe_facts
from shardpress.report.sample import PartSource, Sample
from shardpress.report.widths import width_facts
from shardpress.shards.shard import Shard
from shardpress.training.components import Components, principal_components
from shardpress.training.verdict import count_units

log = logging.getLogger(__name__)

_N_BINS = 24
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_N_WORST = 10  # number of rows to list
_N_POINTS = 500
_N_PAIRS = 8
_MAX_SIDE = 32  # maximum number of pixels per side of an image
_MAX_VALUES = 96  # maximum number of values of a row that is drawn as a line
_MIN_PIXELS = 49  # minimum length of rows to treat as square images; shorter rows are more likely measurements
_SHOWN_RANGE = (0.001, 0.999)  # quantiles of the values in an image that are black and white


@dataclass(frozen=True)
class LabelChoice:
    """Settings that determine which extra dataset contains the labels, and which rows have one.

    Attributes
    ----------
    include : tuple of str
        Paths of ``--include``; the first ones that can be labels are preferred.
    named : str or None
        Dataset of ``--labels``. No other dataset is tried.
    masks : mapping of str to str
        Names of the extras that mark the rows with a value of another extra, by the name of that extra.
    """

    include: tuple[str, ...] = ()
    named: str | None = None
    masks: Mapping[str, str] = field(default_factory=dict)


def measure(
    sample: Sample,
    parts: Sequence[PartSource],
    model: Model,
    categories: Mapping[str, np.ndarray],
    choice: LabelChoice = LabelChoice(),
) -> dict[str, Any]:
    """Return all measurements. Log a warning if the dataset of ``--labels`` cannot be used.

    Parameters
    ----------
    parts : sequence of PartSource
        Parts that contain the rows of the sample.
    categories : mapping of str to ndarray
        Categories of the extra datasets that are stored as codes.
    choice : LabelChoice
        Choice of the labels.
    """
    labels = labels_of(sample.extras, categories, choice.include, choice.named, choice.masks, sample.lost)
    if labels is None and choice.named is not None:
        log.warning(
            "labels=%s: %d rows contain no usable labels, expected %s; the report does without",
            printable(choice.named),
            len(sample.rows),
            LABELS_IN_WORDS,
        )
    is_test = _test_rows(sample, has_targets=model.target is not None)
    no_test = _why_untestable(sample, model)
    n_components = min(max(2, model.n_features), model.n_inputs)  # hidden layers can be wider than the rows
    components = principal_components(sample.scaled[~is_test], n_components, np.random.default_rng(0))
    facts = _reconstruction_facts(_Reconstruction.of(sample, parts, model, labels), components)
    if model.is_nested:
        facts["widths"] = width_facts(sample, model, components, None if no_test else labels, is_test)
    if labels is not None and no_test:
        facts["probe"] = {"labels": labels.name, "no_test": no_test}
    elif labels is not None:
        facts["probe"] = probe_facts(sample, components, labels, is_test)
    return facts


@dataclass(frozen=True)
class _Reconstruction:
    """Rows of a sample that were decoded from their features.

    Attributes
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
        Decoded rows, scaled.
    squares : ndarray of shape (n_rows, n_inputs)
        Squared error of each value.
    errors : ndarray of shape (n_rows,)
        Mean squared error of each row.
    """

    sample: Sample
    parts: Sequence[PartSource]
    model: Model
    labels: Labels | None
    rows: np.ndarray
    squares: np.ndarray
    errors: np.ndarray

    @classmethod
    def of(cls, sample: Sample, parts: Sequence[PartSource], model: Model, labels: Labels | None) -> _Reconstruction:
        """Decode the features of a sample."""
        rows = model.decode(sample.features)
        squares = np.square(sample.scaled - rows)
        return cls(sample, parts, model, labels, rows, squares, squares.mean(axis=1))

    def location(self, i: int) -> dict[str, Any]:
        """Return the file, dataset, row number and label of row `i` of the sample."""
        shard = self.parts[int(self.sample.sources[i])].block.shard
        label = None
        if self.labels is not None:
            label = self.labels.name_of(i)
        return {"file": shard.path, "dataset": shard.dataset, "row": int(self.sample.rows[i]), "label": label}

    def worst_column(self, i: int) -> dict[str, Any]:
        """Return the number and name of the column with the largest error in row `i`. The name can be None.

        The name of a missing indicator ends with "is missing".
        """
        worst = int(self.squares[i].argmax())
        column, name = self.shard.columns.name_of_input(worst, self.model.n_columns, self.model.scaler.indicators)
        return {"column": column, "name": name}

    @property
    def shard(self) -> Shard:
        """The first shard."""
        return self.parts[0].block.shard


def _reconstruction_facts(decoded: _Reconstruction, components: Components) -> dict[str, Any]:
    sample = decoded.sample
    errors = decoded.errors
    return {
        "n_rows": len(errors),
        "mean_error": float(errors.mean()),
        "of_mean": _error_of_mean(sample.scaled),
        "errors": _distribution(errors),
        "worst": _worst_rows(decoded),
        "units": asdict(count_units(sample.features, decoded.model.network.output.code)),
        "points": _points(decoded, components),
        "pairs": _pairs(decoded),
    }


def _test_rows(sample: Sample, has_targets: bool) -> np.ndarray:
    """Return a mask of the test rows, bool (n_rows,).

    Rows that the model was not trained on are test rows. Without such rows, about a third of all rows are. They are
    whole stretches if possible, because neighbouring rows are similar.

    Parameters
    ----------
    has_targets : bool
        Whether the model was trained with targets. Then no row that trained it is a test row, if these are known.
    """
    trained = sample.trained
    if trained is not None and 2 <= trained.sum() < len(trained):
        return ~trained
    stretches = np.unique(sample.stretches)
    is_test = np.isin(sample.stretches, stretches[2::3])
    if len(stretches) < 3:
        is_test = np.arange(len(sample.rows)) % 3 == 2
    if has_targets and trained is not None and not trained.all():
        is_test &= ~trained
    return is_test


def _why_untestable(sample: Sample, model: Model) -> str:
    """Return a sentence if no row of the sample can test a classifier honestly, otherwise an empty string."""
    target = model.target
    if target is None:
        return ""
    if sample.trained is None:
        return (
            "The features were trained with targets, perhaps with those of these rows, so that no honest test of a "
            "classifier is possible."
        )
    if not sample.trained.all():
        return ""
    if target["fit_on"] is None:
        return (
            "The features were trained with targets of all rows (--target without --fit-on), so that no row can tell "
            "how well a classifier does on new ones."
        )
    return (
        "The features were trained with targets of all sampled rows, so that these cannot tell how well a classifier "
        "does on new ones."
    )


# -- errors --------------------------------------------------------------------------------------------------------


def _error_of_mean(rows: np.ndarray) -> float:
    """Return the mean squared error of a reconstruction that replaces each row with the mean of all rows."""
    return float(np.square(rows - rows.mean(axis=0, dtype=np.float64)).mean())


def _distribution(errors: np.ndarray) -> dict[str, Any]:
    """Return quantiles and a histogram. The last bin includes all errors above the 99th percentile."""
    low = errors.min()
    high = max(np.quantile(errors, 0.99), low + 1e-12)
    edges = np.linspace(low, high, _N_BINS + 1)
    counts, _ = np.histogram(np.minimum(errors, edges[-1]), edges)
    return {
        "quantiles": {str(share): float(np.quantile(errors, share)) for share in _QUANTILES},
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _worst_rows(decoded: _Reconstruction) -> list[dict[str, Any]]:
    """Return the rows with the largest errors, and the column with the largest error in each row."""
    worst = np.argsort(-decoded.errors, kind="stable")[:_N_WORST].tolist()
    return [{**decoded.location(i), "error": float(decoded.errors[i]), **decoded.worst_column(i)} for i in worst]


# -- points --------------------------------------------------------------------------------------------------------


def _points(decoded: _Reconstruction, components: Components) -> dict[str, Any]:
    """Return two coordinates for each row, its features and its reconstruction.

    The coordinates are the columns if there are at most two, and otherwise the first two principal components.
    """
    scaled = decoded.sample.scaled
    features = decoded.sample.features
    chosen = np.linspace(0, len(scaled) - 1, min(len(scaled), _N_POINTS)).astype(int)
    plane_of_rows = _Plane.of(scaled, components)
    plane_of_features = _Plane.of(features)
    return {
        "axes": {"inputs": plane_of_rows.describe("column"), "codes": plane_of_features.describe("feature")},
        "inputs": plane_of_rows.project(scaled[chosen]),
        "codes": plane_of_features.project(features[chosen]),
        "reconstructions": plane_of_rows.project(decoded.rows[chosen]),
        **_labels_of_points(decoded.labels, chosen),
    }


def _labels_of_points(labels: Labels | None, chosen: np.ndarray) -> dict[str, Any]:
    if labels is None:
        return {"labels": None, "names": [], "dataset": None}
    return {"labels": labels.codes[chosen].tolist(), "names": list(labels.names), "dataset": labels.name}


class _Plane:
    """Plane for the projection of rows."""

    def __init__(self, mean: np.ndarray, axes: np.ndarray, is_rotated: bool) -> None:
        self._mean = mean
        self._axes = axes
        self._is_rotated = is_rotated

    @classmethod
    def of(cls, rows: np.ndarray, components: Components | None = None) -> _Plane:
        """Return the plane of the columns if there are at most two, otherwise the plane in which rows vary most."""
        width = rows.shape[1]
        if width <= 2:
            return cls(np.zeros(width), np.eye(width, 2), is_rotated=False)
        if components is None:
            components = principal_components(rows.astype(np.float32), 2, np.random.default_rng(0))
        return cls(components.mean, components.components[:, :2], is_rotated=True)

    def project(self, rows: np.ndarray) -> list[Any]:
        """Return the coordinates (n_rows, 2) of rows in the plane."""
        return _rounded((rows - self._mean) @ self._axes)

    def describe(self, column: str) -> str:
        """Return a description of the axes. `column` is the word for a column, such as ``feature``."""
        if self._is_rotated:
            return "first two principal components"
        return f"{column}s 0 and 1"


# -- rows and their reconstructions --------------------------------------------------------------------------------


def _pairs(decoded: _Reconstruction) -> dict[str, Any]:
    """Return a few rows with their features and reconstructions, as images if the rows are images.

    Missing indicators are not shown.
    """
    shape = _image_shape(decoded.shard)
    numbers = _typical_rows(decoded.errors, decoded.labels)
    if shape is None:
        n = decoded.model.n_columns
        lines = [{"input": _line(decoded.sample.scaled[i, :n]), "again": _line(decoded.rows[i, :n])} for i in numbers]
        return {"shape": None, "rows": _with_locations(lines, numbers, decoded)}
    images = _images_of_rows(numbers, decoded, shape)
    return {"shape": list(_shrunk(np.zeros(shape)).shape), "rows": _with_locations(images, numbers, decoded)}


def _images_of_rows(numbers: Sequence[int], decoded: _Reconstruction, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    features = _scaled_to_range(decoded.sample.features)
    n = decoded.model.n_columns
    low, high = _shown_range(decoded.sample.scaled[list(numbers), :n])
    images = []
    for i in numbers:
        row = (decoded.sample.scaled[i, :n] - low) / (high - low)
        again = (decoded.rows[i, :n] - low) / (high - low)
        images.append({"input": _image(row, shape), "again": _image(again, shape), "code": _square_image(features[i])})
    return images


def _shown_range(rows: np.ndarray) -> tuple[float, float]:
    """Return the values that are drawn black and white. A few outliers do not determine them."""
    low, high = np.quantile(rows, _SHOWN_RANGE).tolist()
    if low == high:
        low = float(rows.min())
        high = float(rows.max())
    if low == high:
        high = low + 1
    return low, high


def _with_locations(
    pairs: Sequence[Mapping[str, Any]], numbers: Sequence[int], decoded: _Reconstruction
) -> list[dict[str, Any]]:
    """Add the location and the error of each row to its pair."""
    located = []
    for i, pair in zip(numbers, pairs, strict=True):
        located.append({**decoded.location(i), "error": float(decoded.errors[i]), **pair})
    return located


def _scaled_to_range(features: np.ndarray) -> np.ndarray:
    """Scale each feature so that its minimum in the sample is 0 and its maximum is 1."""
    low = features.min(axis=0)
    width = features.max(axis=0) - low
    return np.asarray((features - low) / np.where(width > 0, width, 1))


def _typical_rows(errors: np.ndarray, labels: Labels | None) -> list[int]:
    """Return the row with the median error for each label. Without labels, return rows from the best to the worst."""
    if labels is None:
        order = np.argsort(errors, kind="stable")
        chosen = np.linspace(0, len(order) - 1, min(_N_PAIRS, len(order))).astype(int)
        return order[chosen].tolist()
    n_labels = min(len(labels.names), _N_PAIRS + 2)
    return [_median_row(errors, np.flatnonzero(labels.codes == code)) for code in range(n_labels)]


def _median_row(errors: np.ndarray, rows: np.ndarray) -> int:
    """Return the number of the row with the median error in `rows`."""
    order = np.argsort(errors[rows], kind="stable")
    return int(rows[order[len(rows) // 2]])


def _image_shape(shard: Shard) -> tuple[int, ...] | None:
    """Return the shape of images, or None if the rows are not images.

    The shape is (height, width), or (height, width, 3) for colour images.
    """
    shape = shard.shape[1:]
    if len(shape) == 3 and shape[-1] == 1:
        return shape[:2]
    if len(shape) == 3 and shape[-1] == 3:
        return shape
    if len(shape) == 2 and min(shape) > 4:
        return shape
    if len(shape) != 1 or shard.columns.is_known:  # columns with names are not pixels
        return None
    return _square(shape[0])


def _square(n: int) -> tuple[int, int] | None:
    """Return the shape of a square image with `n` pixels, or None if `n` is not a square or too small."""
    side = isqrt(n)
    if n < _MIN_PIXELS or side * side != n:
        return None
    return side, side


def _image(values: np.ndarray, shape: tuple[int, ...]) -> str:
    return _encoded_bytes(_shrunk(values.reshape(shape)))


def _square_image(values: np.ndarray) -> str:
    side = isqrt(len(values) - 1) + 1
    return _encoded_bytes(np.pad(values, (0, side * side - len(values))))


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    """Shrink an image to at most `_MAX_SIDE` pixels per side, by taking means over squares of pixels.

    Incomplete squares at the edges are dropped.
    """
    factor = -(-max(pixels.shape[:2]) // _MAX_SIDE)
    height, width = (n // factor or 1 for n in pixels.shape[:2])
    whole = pixels[: height * factor, : width * factor]
    n_rows, n_columns = whole.shape[:2]
    squares = whole.reshape(height, n_rows // height, width, n_columns // width, *whole.shape[2:])
    return squares.mean(axis=(1, 3))


def _line(values: np.ndarray) -> list[float]:
    """Return the values of all columns, or the means of `_MAX_VALUES` ranges of columns."""
    ranges = np.array_split(values, min(len(values), _MAX_VALUES))
    return _rounded(np.array([each.mean() for each in ranges]))


def _encoded_bytes(values: np.ndarray) -> str:
    """Encode values from 0 to 1 as bytes, and return them in Base64."""
    data = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8).tobytes()
    return b64encode(data).decode()


def _rounded(values: np.ndarray) -> list[Any]:
    return list(np.round(values.astype(np.float64), 4).tolist())
