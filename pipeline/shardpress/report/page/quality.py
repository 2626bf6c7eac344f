"""The section about the quality of the features: errors and a baseline, pictures of rows, units, and a probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.pictures import bars, curves, histogram, images, profiles, scatter
from shardpress.report.page.svg import COMPARED, FEATURES
from shardpress.report.words import column, cut, path, percent, score


def quality(report: Mapping[str, Any]) -> Section:
    """Return the section about the quality of the features."""
    summary = report["summary"]
    training = report.get("training", {})
    sample = report.get("sample") or {}
    items = [*_errors(summary, sample, training.get("baseline") or {})]
    if sample:
        items += _probe(sample, summary["n_features"])
        items += _widths(sample)
        items += _points(sample.get("points"))
    items += _costs(training)
    if sample:
        items += _pairs(sample.get("pairs"))
        items += _rows(sample)
    items += _units(training.get("units") or sample.get("units"))
    if "sample" in report and not sample:
        items.append(
            "No sample of rows is shown: there were too few good rows, the model takes too much of the memory budget, "
            "or reading the rows again failed (see the warnings)."
        )
    return Section("Quality of the features", tuple(items))


def _errors(summary: Mapping[str, Any], sample: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the reconstruction error on validation rows, or on the sample if there are no validation rows."""
    title = "Reconstruction error (mean squared error in scaled units)"
    n_features = summary["n_features"]
    errors: list[Any] = [summary.get(key) for key in ("cost", "components", "mean")]
    if None not in errors:
        n_components = summary.get("n_components") or n_features
        names = (f"{n_features} features", f"{n_components} components", "column means")
        # A model of an earlier version does not have this number.
        of_rows = f" of {baseline['n_fitted']:,} training rows" if "n_fitted" in baseline else ""
        note = f"Measured on validation rows; lower is better. Components are principal components{of_rows}."
        if n_components != n_features:
            note += f" Rows are reconstructed from the code of {n_components} features."
        yield bars(title, dict(zip(names, errors, strict=True)), note=note)
    elif sample:
        note = f"Measured on a sample of {sample['n_rows']:,} rows; lower is better."
        values = {f"{n_features} features": sample["mean_error"], "column means": sample["of_mean"]}
        yield bars(title, values, note=note)


def _probe(sample: Mapping[str, Any], n_features: int) -> Iterator[Item]:
    probe = sample.get("probe")
    if not probe or "no_test" in probe:
        return
    n = probe["n_components"]
    is_regression = probe["score"] == "R2"
    names = {
        "features": f"{n_features} features",
        "components": f"{n} components",
        "standardized": f"{n} components, standardized",
        "columns": "raw columns",
        "constant": "mean" if is_regression else "most frequent label",
    }
    title = "R2 of a linear regression" if is_regression else "Accuracy of a linear classifier"
    model = "regression, trained on the numbers" if is_regression else "classifier, trained on the labels"
    note = (
        f"A ridge {model} {cut(probe['labels'], 40)} of {probe['n_train']:,} rows and tested on "
        f"{probe['n_test']:,} other rows. Components are those of {sample['n_fitted']:,} training rows. Error bars of "
        "the differences from the features, two standard errors of paired differences: at most "
        f"{score(max(probe['margins'].values()), probe['score'])}."
    )
    yield bars(title, {names[key]: probe[key] for key in names}, partial(score, name=probe["score"]), note)


def _widths(sample: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the error and the score of the first features of a nested model by their number."""
    found = sample.get("widths")
    if not found:
        return
    columns = "features, error, error of components"
    lines = [[each["n_features"], each["error"], each["components"]] for each in found]
    rows = sample["rows_of_widths"]
    title = (
        f"First features and as many principal components of {sample['n_fitted']:,} training rows: errors on "
        f"{rows['n']:,} {'held-out ' if rows['are_held_out'] else ''}rows"
    )
    if "score" in found[0]:
        name = sample["probe"]["score"]
        columns = f"{columns}, {name}, {name} of components"
        title = f"{title}, {name} on {sample['probe']['n_test']:,} test rows"
        for line, each in zip(lines, found, strict=True):
            line += [score(each["score"], name), score(each["components_score"], name)]
    yield Table.of(title, columns, lines)


def _points(points: Mapping[str, Any] | None) -> Iterator[Item]:
    if not points:
        return
    codes = np.array(points["labels"] or [])
    titles = {
        "inputs": "Input rows (first two principal components)",
        "codes": "Features (first two principal components)",
        "reconstructions": "Reconstructed rows (components of the input rows)",
    }
    for key, title in titles.items():
        colour = COMPARED if key == "inputs" else FEATURES
        yield scatter(title, np.array(points[key]), codes, points["names"], colour)


def _costs(training: Mapping[str, Any]) -> Iterator[Item]:
    history = training.get("history")
    if not history:
        return
    lines = {"training": [epoch["cost"] for epoch in history]}
    if history[-1]["validation_cost"] is not None:
        lines["validation"] = [epoch["validation_cost"] for epoch in history]
    levels = {}
    if training.get("baseline"):
        levels["principal components"] = training["baseline"]["components"]
    yield curves("Training curve", lines, levels)


def _pairs(pairs: Mapping[str, Any] | None) -> Iterator[Item]:
    if not pairs or not pairs["rows"]:
        return
    title = "Rows and their reconstructions, from the smallest to the largest error"
    if pairs["shape"] is None:
        yield profiles(title, pairs["rows"])
    else:
        yield images(title, pairs["rows"], pairs["shape"])


def _rows(sample: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the distribution of the errors of rows, and the worst rows."""
    errors = sample["errors"]
    quantiles = [(percent(float(share)), value) for share, value in errors["quantiles"].items()]
    table = Table.of("Quantiles of the reconstruction error of rows", "share of rows, error below", quantiles)
    axis = "mean squared error of a row"
    yield histogram("Reconstruction error of rows", errors["edges"], errors["counts"], axis, table)
    title = f"Worst rows of a sample of {sample['n_rows']:,} rows"
    if "n_of_worst" in sample:
        title = f"Worst rows of all {sample['n_of_worst']:,} good rows"
    worst = []
    for row in sample["worst"]:
        label = cut(row["label"] or "-", 24)
        worst.append((path(row["file"], 40), row["row"], label, row["error"], column(row), percent(row["leverage"])))
    yield Table.of(title, "file, row, label, error, worst column, largest share of a feature's variance", worst)


def _units(units: Mapping[str, Any] | None) -> Iterator[Item]:
    if not units:
        return
    of_all = f"of {units['n_features']}"
    rows = [
        ("nearly constant", f"{units['dead']} {of_all}"),
        ("saturated for most rows", f"{units['saturated']} {of_all}"),
        ("duplicate of another feature", f"{units['duplicate']} {of_all}"),
        ("saturated activations", percent(units["saturated_share"])),
    ]
    yield Table.of(f"Uninformative features, measured on {units['n_rows']:,} rows", "kind, features", rows)
