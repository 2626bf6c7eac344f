"""The section about the quality of the features: errors and a baseline, pictures of rows, units, and a probe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.report.page.document import Item, Section, Table
from pipeline.report.page.pictures import bars, curves, histogram, images, profiles, scatter
from pipeline.report.page.words import column, count, cut, number, path, percent

__all__ = ["quality"]


def quality(report: Mapping[str, Any]) -> Section:
    """Return the section."""
    sample = report.get("sample") or {}
    items = [
        *_errors(report, sample),
        *_probe(sample),
        *_points(sample),
        *_costs(report),
        *_pairs(sample),
        *_rows(sample),
        *_units(report, sample),
        *_missing_sample(report),
    ]
    return Section("Is it good?", tuple(items))


def _missing_sample(report: Mapping[str, Any]) -> Iterator[str]:
    if "sample" in report and not report["sample"]:
        yield (
            "No rows are shown here: there were too few good ones, the model takes too much of the memory budget, or "
            "they could not be read once more, which is a warning then."
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
    yield curves("Cost over the epochs", lines, levels)


def _errors(report: Mapping[str, Any], sample: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the reconstruction error: on validation rows, or on the sample if none were left out."""
    summary = report["summary"]
    title = "Mean squared error in scaled units"
    features = f"{summary['n_features']} features"
    values = [summary.get(key) for key in ("cost", "components", "mean")]
    if None not in values:
        names = (features, f"{summary['n_features']} components", "the mean")
        note = "On rows that were kept out of the training: the lower, the more of a row its features still know."
        yield bars(title, dict(zip(names, values, strict=True)), note=note)
    elif sample:
        errors = {features: sample["mean_error"], "the mean": sample["of_mean"]}
        yield bars(title, errors, note=f"On {count(sample['n_rows'])} of the rows.")


def _probe(sample: Mapping[str, Any]) -> Iterator[Item]:
    probe = sample.get("probe")
    if not probe:
        return
    accuracies = {
        "features": probe["features"],
        f"{probe['n_components']} components": probe["components"],
        "raw columns": probe["columns"],
        "always the commonest": probe["commonest"],
    }
    largest_deviation = max(_deviation(share, probe["n_test"]) for share in accuracies.values())
    note = (
        f"A ridge classifier that has learnt the labels {cut(probe['labels'], 40)} from {count(probe['n_train'])} "
        f"rows, tried on {count(probe['n_test'])} others; give or take {percent(2 * largest_deviation)}."
    )
    yield bars("Rows that a linear probe tells right", accuracies, percent, note)


def _deviation(share: float, n: int) -> float:
    """Return the standard deviation of a share of `n` independent rows."""
    return (share * (1 - share) / n) ** 0.5


def _points(sample: Mapping[str, Any]) -> Iterator[Item]:
    points = sample.get("points")
    if not points:
        return
    codes = np.array(points["labels"] or [0] * len(points["inputs"]))
    axes = points["axes"]
    titles = {
        "inputs": f"Rows ({axes['inputs']})",
        "codes": f"Their features ({axes['codes']})",
        "reconstructions": f"Rows again, from the features alone ({axes['inputs']})",
    }
    for key, title in titles.items():
        yield scatter(title, np.array(points[key]), codes, points["names"])


def _pairs(sample: Mapping[str, Any]) -> Iterator[Item]:
    pairs = sample.get("pairs")
    if not pairs or not pairs["rows"]:
        return
    title = "Rows and what their features give back"
    if pairs["shape"] is None:
        yield profiles(title, pairs["rows"])
        return
    lines = {"input": "rows", "code": "their features", "again": "rows again, from the features alone"}
    yield images(title, pairs["rows"], pairs["shape"], lines)


def _rows(sample: Mapping[str, Any]) -> Iterator[Item]:
    if not sample:
        return
    errors = sample["errors"]
    quantiles = [(percent(float(share)), number(value)) for share, value in errors["quantiles"].items()]
    table = Table.of("Errors of single rows: so many have less", "share of the rows, less than", quantiles)
    yield histogram("Errors of single rows", errors["edges"], errors["counts"], "mean squared error of a row", table)
    title = f"The worst of {count(sample['n_rows'])} rows from all over the data"
    worst = [_worst_row(row) for row in sample["worst"]]
    yield Table.of(title, "file, row, label, error, most of it in column", worst)


def _worst_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    label = cut(row["label"] or "-", 24)
    return path(row["file"]), count(row["row"]), label, number(row["error"]), column(row)


def _units(report: Mapping[str, Any], sample: Mapping[str, Any]) -> Iterator[Item]:
    units = report.get("training", {}).get("units") or sample.get("units")
    if not units:
        return
    of_all = f"of {units['n_features']}"
    rows = [
        ("hardly vary", f"{units['dead']} {of_all}"),
        ("are saturated for most rows", f"{units['saturated']} {of_all}"),
        ("repeat another one", f"{units['duplicate']} {of_all}"),
        ("activations that are saturated", percent(units["saturated_share"])),
    ]
    yield Table.of(f"Features that say little, in {count(units['n_rows'])} rows", "features that, how many", rows)
