"""Measurements of a sample of rows and features for the report."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import isqrt

import numpy as np
from msgspec.structs import replace

from shardpress.base.errors import printable
from shardpress.base.outliers import Outlier, Spread, largest_share, outliers, owners, worst_first
from shardpress.hdf5.shard import Shard
from shardpress.model.encoder import Model
from shardpress.model.labels import LABELS_IN_WORDS, LabelChoice, Labels, Numbers, numbers_in
from shardpress.report.baselines import (
    FittedComponents,
    Prediction,
    linear_probe,
    prediction_of,
    score_of,
)
from shardpress.report.sampling import (
    PartSource,
    Sample,
    SampleSpec,
    draw_sample,
    labelled_stretches,
    training_stretches,
)
from shardpress.result.facts import (
    Distribution,
    Location,
    NoTest,
    Owner,
    Pair,
    Pairs,
    Points,
    SampleFacts,
    Width,
    Widths,
    WorstRow,
)
from shardpress.training.complaints import count_units
from shardpress.training.components import Components, principal_components

log = logging.getLogger(__name__)

_MOST_CLASSES = 1000  # of a target, as in the training
_N_BINS = 24
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
N_WORST = 10
"""Number of rows with large errors to list."""
_N_POINTS = 500
_N_PAIRS = 8
_MAX_SIDE = 32  # maximum number of pixels per side of an image
_MAX_VALUES = 96  # maximum number of values of a row that is drawn as a line
_MIN_PIXELS = 49  # minimum length of rows to treat as square images; shorter rows are more likely measurements
_FIRST_WIDTH = 8  # smallest number of the first features of a nested model; it is doubled until it is that of all
_SHOWN_RANGE = (0.001, 0.999)  # quantiles of the values in an image that are black and white


def measure(
    sample: Sample,
    parts: Sequence[PartSource],
    spec: SampleSpec,
    choice: LabelChoice,
) -> SampleFacts:
    """Return all measurements. Log a warning if the dataset of ``--labels`` cannot be used."""
    model = spec.model
    labels = choice.find(sample.extras, sample.lost)
    if labels is None and choice.named is not None:
        log.warning(
            "labels=%s: %d rows contain no usable labels, expected %s; the report does without",
            printable(choice.named),
            len(sample.rows),
            LABELS_IN_WORDS,
        )
    is_usable = _are_usable(sample)
    facts = _reconstruction_facts(Reconstruction.of(sample, parts, model, labels), is_usable)
    wanted = _values_to_predict(sample, model, labels, choice)
    if wanted is None and not model.is_nested:
        return facts
    components = _components(sample, parts, spec)
    if model.is_nested:
        facts = replace(facts, widths=_widths(sample, model, components, is_usable))
    if wanted is None:
        return facts
    if isinstance(wanted, Labels):
        facts = replace(facts, labels_remark=choice.remark(wanted, sample.extras))
    labelled, prediction = _prediction(wanted, parts, spec, choice)
    no_test = _why_untestable(sample, model, prediction, wanted)
    if no_test is not None:
        return replace(facts, no_test=no_test)
    if labelled is None or prediction is None:
        return facts
    widths = facts.widths
    if widths is not None:
        widths = _with_scores(widths, labelled, components, prediction)
    return replace(facts, probe=linear_probe(labelled, components, prediction), widths=widths)


def _components(sample: Sample, parts: Sequence[PartSource], spec: SampleSpec) -> FittedComponents:
    """Return the components of training rows, or of the sample if fewer than two rows trained the model."""
    n_components = min(max(2, spec.model.n_features), spec.model.n_inputs)  # hidden layers can be wider than the rows
    fitted = draw_sample(parts, spec, training_stretches(parts, spec))
    rows = sample.scaled.copy() if fitted is None else fitted.scaled
    return FittedComponents.of(rows, n_components)


def _are_usable(sample: Sample) -> np.ndarray:
    """Return a mask of the rows (n_rows,) without damaged ones: these would decide a linear model and its error."""
    return ~outliers(np.square(sample.scaled - sample.scaled.mean(axis=0, dtype=np.float64)).mean(axis=1))


def _prediction(
    wanted: Labels | Numbers, parts: Sequence[PartSource], spec: SampleSpec, choice: LabelChoice
) -> tuple[Sample | None, Prediction | None]:
    """Return rows with a value, and a prediction of these values; None if there are too few of such rows."""

    def values_in(extras: dict[str, np.ndarray], lost: dict[str, np.ndarray]) -> Labels | Numbers | None:
        if isinstance(wanted, Labels):
            return choice.as_labels(wanted.name, extras, lost)
        return numbers_in(wanted.name, extras[wanted.name], choice.has_value(wanted.name, extras, lost))

    def has_value(extras: dict[str, np.ndarray], lost: dict[str, np.ndarray]) -> np.ndarray:
        values = values_in(extras, lost)
        assert values is not None
        return values.has_value

    names = (wanted.name, choice.masks.get(wanted.name, ""))
    labelled = draw_sample(parts, spec, labelled_stretches(parts, spec, names, has_value))
    if labelled is None:
        return None, None
    is_test = _test_rows(labelled, has_targets=spec.model.target is not None)
    values = values_in(labelled.extras, labelled.lost)
    assert values is not None
    return labelled, prediction_of(values, is_test, _are_usable(labelled))


def _values_to_predict(
    sample: Sample,
    model: Model,
    labels: Labels | None,
    choice: LabelChoice,
) -> Labels | Numbers | None:
    """Return the values of the target that trained the features, or the labels if there is none, or for --labels."""
    target = model.target
    if target is None or choice.named is not None or target.name not in sample.extras:
        return labels
    name = target.name
    if target.kind == "numbers":
        has_value = choice.has_value(name, sample.extras, sample.lost)
        return numbers_in(name, sample.extras[name], has_value)
    return choice.labels_in(name, sample.extras, sample.lost, _MOST_CLASSES)


@dataclass(frozen=True)
class Reconstruction:
    """Rows of a sample that were decoded from their features."""

    sample: Sample
    parts: Sequence[PartSource]
    model: Model
    labels: Labels | None
    rows: np.ndarray  # (n_rows, n_inputs), scaled
    squares: np.ndarray  # (n_rows, n_inputs), squared errors
    errors: np.ndarray  # (n_rows,), their means

    @classmethod
    def of(cls, sample: Sample, parts: Sequence[PartSource], model: Model, labels: Labels | None) -> Reconstruction:
        rows = model.decode(sample.features)
        squares = np.square(sample.scaled - rows)
        return cls(sample, parts, model, labels, rows, squares, squares.mean(axis=1))

    def location(self, i: int) -> Location:
        """Return the file, dataset, row number and label of row `i` of the sample."""
        shard = self.parts[int(self.sample.sources[i])].block.shard
        label = None
        if self.labels is not None:
            label = self.labels.name_of(i)
        return Location(shard.path, shard.dataset, int(self.sample.rows[i]), label)

    def worst_row(self, i: int, error: float, leverage: float) -> WorstRow:
        """Return facts about row `i`. If its worst column is a missing indicator, the name ends with "is missing"."""
        place = self.location(i)
        worst = int(self.squares[i].argmax())
        column, name = self.shard.columns.name_of_input(worst, self.model.n_columns, self.model.scaler.indicators)
        return WorstRow(place.file, place.dataset, place.row, place.label, error, leverage, column, name)

    @property
    def shard(self) -> Shard:
        return self.parts[0].block.shard


def _reconstruction_facts(decoded: Reconstruction, is_usable: np.ndarray) -> SampleFacts:
    sample = decoded.sample
    n_components = min(2, decoded.model.n_inputs)
    components = principal_components(sample.scaled[is_usable], n_components, np.random.default_rng(0), is_exact=False)
    errors = decoded.errors
    shares = Spread.of([sample.features]).shares(sample.features)
    return SampleFacts(
        n_rows=len(errors),
        mean_error=float(errors.mean()),
        of_mean=_error_of_mean(sample.scaled),
        outlier=_outlier(decoded, is_usable),
        errors=_distribution(errors),
        worst=_worst_rows(decoded, shares.max(axis=1)),
        owners=[owner_at(decoded.location(i), shares[i]) for i in owners(shares, len(errors)).tolist()],
        units=count_units(sample.features, decoded.model.network.output.code),
        points=_points(decoded, components),
        pairs=_pairs(decoded),
    )


def _test_rows(sample: Sample, has_targets: bool) -> np.ndarray:
    """Return a mask of the test rows, bool (n_rows,).

    Rows that the model was not trained on are test rows. Without such rows, about a third of all rows are. They are
    whole stretches if possible, because neighbouring rows are similar. If the model was trained with targets, no row
    that trained it is a test row, unless all rows have trained it.
    """
    trained = sample.trained
    if 2 <= trained.sum() < len(trained):
        return ~trained
    stretches = np.unique(sample.stretches)
    is_test = np.isin(sample.stretches, stretches[2::3])
    if len(stretches) < 3:
        is_test = np.arange(len(sample.rows)) % 3 == 2
    if has_targets and not trained.all():
        is_test &= ~trained
    return is_test


def _why_untestable(
    sample: Sample, model: Model, prediction: Prediction | None, wanted: Labels | Numbers
) -> NoTest | None:
    """Return the reason if too few rows of the sample can test a linear model honestly, otherwise None."""
    if model.target is None:
        return None
    if sample.trained.all():
        return NoTest(wanted.name, score_of(wanted), "all rows")
    return NoTest(wanted.name, score_of(wanted), "most rows") if prediction is None else None


# -- errors --------------------------------------------------------------------------------------------------------


def _error_of_mean(rows: np.ndarray) -> float:
    """Return the mean squared error of a reconstruction that replaces each row with the mean of all rows."""
    return float(np.square(rows - rows.mean(axis=0, dtype=np.float64)).mean())


def _outlier(decoded: Reconstruction, is_usable: np.ndarray) -> Outlier | None:
    """Return the row with the largest error, and the mean errors without outliers, as in the summary; or None.

    `is_usable` (n_rows,) is False for rows that are far from all others.
    """
    errors = decoded.errors
    is_usual = is_usable & ~outliers(errors)
    if is_usual.all():
        return None
    largest, share = largest_share(errors)
    place = decoded.location(largest)
    cost = float(errors[is_usual].mean())
    return Outlier(place.row, share, cost, _error_of_mean(decoded.sample.scaled[is_usual]), file=place.file)


def _distribution(errors: np.ndarray) -> Distribution:
    """Return quantiles and a histogram. The last bin includes all errors above the 99th percentile."""
    low = errors.min()
    high = max(np.quantile(errors, 0.99), low + 1e-12)
    edges = np.linspace(low, high, _N_BINS + 1)
    counts, _ = np.histogram(np.minimum(errors, edges[-1]), edges)
    quantiles = {str(share): float(np.quantile(errors, share)) for share in _QUANTILES}
    return Distribution(quantiles, edges.tolist(), counts.tolist())


def _worst_rows(decoded: Reconstruction, leverage: np.ndarray) -> list[WorstRow]:
    """Return the rows with the largest errors or leverage (n_rows,)."""
    worst = worst_first(decoded.errors, leverage, len(leverage))[:N_WORST].tolist()
    return [decoded.worst_row(i, float(decoded.errors[i]), float(leverage[i])) for i in worst]


def owner_at(place: Location, shares: np.ndarray) -> Owner:
    """Return a row, given its shares of the variance of each feature (n_features,)."""
    feature = int(shares.argmax())
    return Owner(place.file, place.dataset, place.row, place.label, feature, float(shares[feature]))


# -- first features of a nested model ------------------------------------------------------------------------------


def _widths(sample: Sample, model: Model, components: FittedComponents, is_usable: np.ndarray) -> Widths:
    """Return the errors of the first 8, 16, 32, ... features, and of as many components of the scaled training rows.

    They are measured on rows to which neither features nor components were fitted; on all rows if there are none.
    """
    is_test = is_usable & ~sample.fitted
    is_held_out = bool(is_test.any())
    if not is_held_out:
        is_test = is_usable
    rows = sample.scaled[is_test]
    n_most = min(model.n_features, rows.shape[1], components.scaled.n_rows)
    powers = takewhile(lambda n: n < n_most, (_FIRST_WIDTH * 2**i for i in range(64)))
    widths = []
    for n in (*powers, n_most):
        directions = components.scaled.components[:, :n]
        projected = components.scaled.coordinates(rows, n) @ directions.T + components.scaled.mean
        decoded = model.with_first_features(n).decode(sample.features[is_test, :n])
        widths.append(Width(n, _mean_square(decoded - rows), _mean_square(projected - rows)))
    return Widths(len(rows), is_held_out, components.scaled.n_rows, widths)


def _mean_square(differences: np.ndarray) -> float:
    return float(np.square(differences).mean())


def _with_scores(widths: Widths, labelled: Sample, components: FittedComponents, prediction: Prediction) -> Widths:
    """Add the scores of a linear model on the first features, and on the same number of components."""
    scored = []
    for width in widths.widths:
        n = width.n_features
        coordinates = components.scaled.coordinates(labelled.scaled, n)
        score = prediction.score(labelled.features[prediction.has_value, :n])
        components_score = prediction.score(coordinates[prediction.has_value])
        scored.append(replace(width, score=score, components_score=components_score))
    return replace(widths, widths=scored)


# -- points --------------------------------------------------------------------------------------------------------


def _points(decoded: Reconstruction, components: Components) -> Points:
    """Return the first two principal components of some rows, of their features and of their reconstructions."""
    sample = decoded.sample
    n_rows, n_features = sample.features.shape
    chosen = np.linspace(0, n_rows - 1, min(n_rows, _N_POINTS)).astype(int)
    n_components = min(2, n_features)
    of_features = principal_components(sample.features, n_components, np.random.default_rng(0), is_exact=False)
    labels = decoded.labels
    return Points(
        inputs=_projected(sample.scaled[chosen], components),
        codes=_projected(sample.features[chosen], of_features),
        reconstructions=_projected(decoded.rows[chosen], components),
        labels=None if labels is None else labels.codes[chosen].tolist(),
        names=[] if labels is None else list(labels.names),
        dataset=None if labels is None else labels.name,
    )


def _projected(rows: np.ndarray, components: Components) -> list[tuple[float, float]]:
    """Return two coordinates of each row. The second one of rows with one column is 0."""
    coordinates = components.coordinates(rows, 2)
    two = np.pad(coordinates, ((0, 0), (0, 2 - coordinates.shape[1])))
    return list(zip(_rounded(two[:, 0]), _rounded(two[:, 1]), strict=True))


# -- rows and their reconstructions --------------------------------------------------------------------------------


def _pairs(decoded: Reconstruction) -> Pairs:
    """Return rows from the best to the worst with their reconstructions, as images if the rows are images.

    Missing indicators are not shown.
    """
    order = np.argsort(decoded.errors, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(_N_PAIRS, len(order))).astype(int)]
    n = decoded.model.n_columns
    shape = _image_shape(decoded.shard)
    draw: Callable[[np.ndarray], list[float] | str] = _line
    if shape is not None:
        low, high = np.quantile(decoded.sample.scaled[chosen, :n], _SHOWN_RANGE)
        draw = partial(_image, shape=shape, black=low, white=high if high > low else low + 1)
    pairs = []
    for i in chosen.tolist():
        place = decoded.location(i)
        row = draw(decoded.sample.scaled[i, :n])
        again = draw(decoded.rows[i, :n])
        error = float(decoded.errors[i])
        pairs.append(Pair(place.file, place.dataset, place.row, place.label, error, row, again))
    return Pairs(None if shape is None else list(_shrunk(np.zeros(shape)).shape), pairs)


def _image_shape(shard: Shard) -> tuple[int, ...] | None:
    """Return (height, width), or (height, width, 3) for colour images, or None if the rows are not images."""
    shape = shard.shape[1:]
    if len(shape) == 3 and shape[-1] == 1:
        return shape[:2]
    if len(shape) == 3 and shape[-1] == 3:
        return shape
    if len(shape) == 2 and min(shape) > 4:
        return shape
    if len(shape) != 1 or shard.columns.is_known:  # columns with names are not pixels
        return None
    side = isqrt(shape[0])
    is_square = shape[0] >= _MIN_PIXELS and side * side == shape[0]
    return (side, side) if is_square else None


def _image(values: np.ndarray, shape: tuple[int, ...], black: float, white: float) -> str:
    """Return an image of a row in Base64, with one byte a pixel."""
    pixels = np.clip((_shrunk(values.reshape(shape)) - black) / (white - black), 0, 1)
    return b64encode(np.rint(255 * pixels).astype(np.uint8).tobytes()).decode()


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
    return _rounded(np.array([values.mean() for values in ranges]))


def _rounded(values: np.ndarray) -> list[float]:
    return list(np.round(values.astype(np.float64), 4).tolist())
