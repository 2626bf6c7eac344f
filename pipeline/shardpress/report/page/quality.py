"""The section about the quality of the features: errors and a baseline, pictures of rows, units, and a probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from shardpress.outliers import MOST_OF_ALL
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.pictures import bars, curves, histogram, images, profiles, scatter
from shardpress.report.page.svg import COMPARED, FEATURES
from shardpress.report.page.words import column, count, cut, number, path, percent, score


def quality(report: Mapping[str, Any]) -> Section:
    """Return the section about the quality of the features."""
    sample = report.get("sample") or {}
    items = [
        *_errors(report, sample),
        *_probe(report, sample),
        *_widths(sample),
        *_points(sample),
        *_costs(report),
        *_pairs(sample),
        *_rows(sample),
        *_units(report, sample),
        *_missing_sample(report),
    ]
    return Section("Quality of the features", tuple(items))


def _missing_sample(report: Mapping[str, Any]) -> Iterator[str]:
    if "sample" in report and not report["sample"]:
        yield (
            "No sample of rows is shown: there were too few good rows, the model takes too much of the memory budget, "
            "or reading the rows again failed (see the warnings)."
        )


def _costs(report: Mapping[str, Any]) -> Iterator[Item]:
    training = report.get("training", {})
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


def _errors(report: Mapping[str, Any], sample: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the reconstruction error on validation rows, or on the sample if there are no validation rows."""
    summary = report["summary"]
    title = "Reconstruction error (mean squared error in scaled units)"
    features = _features_in_words(report)
    values = [summary.get(key) for key in ("cost", "components", "mean")]
    if None not in values:
        n_components = summary.get("n_components") or summary["n_features"]
        names = (features, f"{n_components} components", "column means")
        note = "Measured on validation rows; lower is better. Components are principal components."
        if n_components != summary["n_features"]:
            note += f" Rows are reconstructed from the code of {n_components} features."
        note += _remark_on_outlier(summary.get("outlier"))
        yield bars(title, dict(zip(names, values, strict=True)), note=note)
    elif sample:
        errors = {features: sample["mean_error"], "column means": sample["of_mean"]}
        note = f"Measured on a sample of {count(sample['n_rows'])} rows; lower is better."
        yield bars(title, errors, note=note + _remark_on_outlier(sample["outlier"]))


def _remark_on_outlier(outlier: Mapping[str, Any] | None) -> str:
    """Return a sentence about the row that has most of the error of the features, if there is one."""
    if outlier is None or outlier["share"] < MOST_OF_ALL:
        return ""
    where = f"row {count(outlier['row'])} of {path(outlier['file'])}"
    return f" One row ({where}) has {percent(outlier['share'])} of the error of the features."


def _features_in_words(report: Mapping[str, Any]) -> str:
    return f"{report['summary']['n_features']} features"


def _widths(sample: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the error and the score of the first features of a nested model by their number."""
    found = sample.get("widths")
    if not found:
        return
    columns = "features, error, error of components"
    rows = [[count(each["n_features"]), number(each["error"]), number(each["components"])] for each in found]
    title = "First features and as many principal components: errors on the rows of the latter"
    if "score" in found[0]:
        name = sample["probe"]["score"]
        columns = f"{columns}, {name}, {name} of components"
        title = f"{title}, {name} on test rows"
        for row, each in zip(rows, found, strict=True):
            row += [score(each["score"], name), score(each["components_score"], name)]
    yield Table.of(title, columns, rows)


def _probe(report: Mapping[str, Any], sample: Mapping[str, Any]) -> Iterator[Item]:
    probe = sample.get("probe")
    if not probe or "no_test" in probe:
        return
    n = probe["n_components"]
    is_regression = probe["score"] == "R2"
    names = {
        "features": _features_in_words(report),
        "components": f"{n} components",
        "standardized": f"{n} components, standardized",
        "columns": "raw columns",
        "constant": "mean" if is_regression else "most frequent label",
    }
    scores = {names[key]: probe[key] for key in names}
    title = "R2 of a linear regression" if is_regression else "Accuracy of a linear classifier"
    model = "regression, trained on the numbers" if is_regression else "classifier, trained on the labels"
    note = (
        f"A ridge {model} {cut(probe['labels'], 40)} of {count(probe['n_train'])} rows and tested on "
        f"{count(probe['n_test'])} other rows. Error bars of the differences from the features, two standard errors of "
        f"paired differences: at most {score(max(probe['margins'].values()), probe['score'])}."
    )
    yield bars(title, scores, partial(score, name=probe["score"]), note)


def _points(sample: Mapping[str, Any]) -> Iterator[Item]:
    points = sample.get("points")
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


def _pairs(sample: Mapping[str, Any]) -> Iterator[Item]:
    pairs = sample.get("pairs")
    if not pairs or not pairs["rows"]:
        return
    title = "Rows and their reconstructions, from the smallest to the largest error"
    if pairs["shape"] is None:
        yield profiles(title, pairs["rows"])
    else:
        yield images(title, pairs["rows"], pairs["shape"])


def _rows(sample: Mapping[str, Any]) -> Iterator[Item]:
    if not sample:
        return
    errors = sample["errors"]
    quantiles = [(percent(float(share)), number(value)) for share, value in errors["quantiles"].items()]
    table = Table.of("Quantiles of the reconstruction error of rows", "share of rows, error below", quantiles)
    yield histogram(
        "Reconstruction error of rows", errors["edges"], errors["counts"], "mean squared error of a row", table
    )
    title = f"Worst rows of a sample of {count(sample['n_rows'])} rows"
    if "n_of_worst" in sample:
        title = f"Worst rows of all {count(sample['n_of_worst'])} good rows"
    worst = [_worst_row(row) for row in sample["worst"]]
    yield Table.of(title, "file, row, label, error, worst column", worst)


def _worst_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    label = cut(row["label"] or "-", 24)
    return path(row["file"], 40), count(row["row"]), label, number(row["error"]), column(row)


def _units(report: Mapping[str, Any], sample: Mapping[str, Any]) -> Iterator[Item]:
    units = report.get("training", {}).get("units") or sample.get("units")
    if not units:
        return
    of_all = f"of {units['n_features']}"
    rows = [
        ("nearly constant", f"{units['dead']} {of_all}"),
        ("saturated for most rows", f"{units['saturated']} {of_all}"),
        ("duplicate of another feature", f"{units['duplicate']} {of_all}"),
        ("saturated activations", percent(units["saturated_share"])),
    ]
    yield Table.of(f"Uninformative features, measured on {count(units['n_rows'])} rows", "kind, features", rows)
