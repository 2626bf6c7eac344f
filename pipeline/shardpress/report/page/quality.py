"""The section about the quality of the features: errors and a baseline, pictures of rows, units, and a probe."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from shardpress.base.errors import quantity
from shardpress.model.about import BaselineErrors, TrainingFacts, Units
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.pictures import bars, curves, histogram, images, profiles, scatter
from shardpress.report.page.svg import COMPARED, FEATURES
from shardpress.report.summary import Report
from shardpress.report.words import MINUTES, column, cut, path, percent, score
from shardpress.result.facts import LinearProbe, Pairs, Points, SampleFacts, Summary


def quality(report: Report) -> Section:
    """Return the section about the quality of the features."""
    summary = report.summary
    sample = report.facts.rows.sample
    training = report.training
    items = [*_errors(summary, sample, None if training is None else training.baseline)]
    measured_by = report.facts.run(report.facts.rows.sample_run)
    if sample is not None and measured_by != report.facts.last:
        items.append(
            f"The sample was measured by run {measured_by.number} ({cut(measured_by.made[:MINUTES])}), when the result "
            f"had {quantity(measured_by.n_rows, 'row')}."
        )
    if sample is not None:
        items += _probe(sample.probe, summary.n_features)
        items += _widths(sample)
        items += _points(sample.points)
    if training is not None:
        items += _costs(training)
    if sample is not None:
        items += _pairs(sample.pairs)
        items += _rows(sample)
    if training is not None:
        items.append(_units(training.units))
    elif sample is not None:
        items.append(_units(sample.units))
    if sample is None:
        items.append(
            "No sample of rows is shown: there were too few good rows, the model takes too much of the memory budget, "
            "or reading the rows again failed (see the warnings)."
        )
    return Section("Quality of the features", tuple(items))


def _errors(summary: Summary, sample: SampleFacts | None, baseline: BaselineErrors | None) -> Iterator[Item]:
    """Yield the reconstruction error on validation rows, or on the sample if there are no validation rows."""
    title = "Reconstruction error (mean squared error in scaled units)"
    features = f"{summary.n_features} features"
    if summary.cost is not None and summary.components is not None and summary.mean is not None:
        components = f"{summary.n_components} components"
        values = {features: summary.cost, components: summary.components, "column means": summary.mean}
        of_rows = "" if baseline is None else f" of {baseline.n_fitted:,} training rows"
        note = f"Measured on validation rows; lower is better. Components are principal components{of_rows}."
        if summary.n_components != summary.n_features:
            note += f" Rows are reconstructed from the code of {summary.n_components} features."
        yield bars(title, values, note=note)
    elif sample is not None:
        note = f"Measured on a sample of {sample.n_rows:,} rows; lower is better."
        yield bars(title, {features: sample.mean_error, "column means": sample.of_mean}, note=note)


def _probe(probe: LinearProbe | None, n_features: int) -> Iterator[Item]:
    if probe is None:
        return
    n = probe.n_components
    is_regression = probe.score_name == "R2"
    values = {
        f"{n_features} features": probe.features,
        f"{n} components": probe.components.score,
        f"{n} components, standardized": probe.standardized.score,
        "raw columns": probe.columns.score,
        "mean" if is_regression else "most frequent label": probe.constant.score,
    }
    title = "R2 of a linear regression" if is_regression else "Accuracy of a linear classifier"
    model = "regression, trained on the numbers" if is_regression else "classifier, trained on the labels"
    margin = max(of_rows.margin for of_rows in (*probe.baselines.values(), probe.constant))
    note = (
        f"A ridge {model} {cut(probe.labels, 40)} of {probe.n_train:,} rows and tested on {probe.n_test:,} other rows. "
        f"Components are those of {probe.n_fitted:,} training rows. Error bars of the differences from the features, "
        f"two standard errors of paired differences: at most {score(margin, probe.score_name)}."
    )
    yield bars(title, values, partial(score, name=probe.score_name), note)


def _widths(sample: SampleFacts) -> Iterator[Item]:
    """Yield the error and the score of the first features of a nested model by their number."""
    widths = sample.widths
    if widths is None:
        return
    columns = "features, error, error of components"
    lines: list[list[object]] = [[width.n_features, width.error, width.components] for width in widths.widths]
    title = (
        f"First features and as many principal components of {widths.n_fitted:,} training rows: errors on "
        f"{widths.n_rows:,} {'held-out ' if widths.are_held_out else ''}rows"
    )
    if sample.probe is not None:
        name = sample.probe.score_name
        columns = f"{columns}, {name}, {name} of components"
        title = f"{title}, {name} on {sample.probe.n_test:,} test rows"
        for line, width in zip(lines, widths.widths, strict=True):
            for value in (width.score, width.components_score):
                line.append(None if value is None else score(value, name))
    yield Table.of(title, columns, lines)


def _points(points: Points) -> Iterator[Item]:
    codes = np.array(points.labels or [])
    for title, values, colour in (
        ("Input rows (first two principal components)", points.inputs, COMPARED),
        ("Features (first two principal components)", points.codes, FEATURES),
        ("Reconstructed rows (components of the input rows)", points.reconstructions, FEATURES),
    ):
        yield scatter(title, np.array(values), codes, points.names, colour)


def _costs(training: TrainingFacts) -> Iterator[Item]:
    history = training.history
    if not history:
        return
    lines = {"training": [epoch.cost for epoch in history]}
    of_validation = [epoch.validation_cost for epoch in history if epoch.validation_cost is not None]
    if of_validation:
        lines["validation"] = of_validation
    levels = {}
    if training.baseline is not None:
        levels["principal components"] = training.baseline.components
    yield curves("Training curve", lines, levels)


def _pairs(pairs: Pairs) -> Iterator[Item]:
    title = "Rows and their reconstructions, from the smallest to the largest error"
    if pairs.shape is None:
        yield profiles(title, pairs.rows)
    else:
        yield images(title, pairs.rows, pairs.shape)


def _rows(sample: SampleFacts) -> Iterator[Item]:
    """Yield the distribution of the errors of rows, and the worst rows."""
    errors = sample.errors
    quantiles = [(percent(float(share)), value) for share, value in errors.quantiles.items()]
    table = Table.of("Quantiles of the reconstruction error of rows", "share of rows, error below", quantiles)
    axis = "mean squared error of a row"
    yield histogram("Reconstruction error of rows", errors.edges, errors.counts, axis, table)
    title = f"Worst rows of a sample of {sample.n_rows:,} rows"
    if sample.n_of_worst is not None:
        title = f"Worst rows of all {sample.n_of_worst:,} good rows"
    worst = []
    for row in sample.worst:
        label = cut(row.label or "-", 24)
        worst_column = column(row.column, row.name)
        worst.append((path(row.file, 40), row.row, label, row.error, worst_column, percent(row.leverage)))
    yield Table.of(title, "file, row, label, error, worst column, largest share of a feature's variance", worst)


def _units(units: Units) -> Table:
    of_all = f"of {units.n_features}"
    rows = [
        ("nearly constant", f"{units.dead} {of_all}"),
        ("saturated for most rows", f"{units.saturated} {of_all}"),
        ("duplicate of another feature", f"{units.duplicate} {of_all}"),
        ("saturated activations", percent(units.saturated_share)),
    ]
    return Table.of(f"Uninformative features, measured on {units.n_rows:,} rows", "kind, features", rows)
