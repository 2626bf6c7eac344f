"""Measurements of a finished run with other labels than those that the run has chosen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardpress.errors import DataError, printable
from shardpress.features import categories_of, open_features
from shardpress.labels import LABELS_IN_WORDS, extra_of
from shardpress.model import load_model
from shardpress.output.records import read_manifest
from shardpress.report.inputs import Inputs, preprocessing_of
from shardpress.report.judgment import judge, judgment_facts
from shardpress.report.measures import LabelChoice, measure
from shardpress.report.sample import PartSource, Sample, SampleSpec, draw_sample
from shardpress.rowfacts import trained_rows
from shardpress.shards.shard import Block


def with_labels(report: Mapping[str, Any], directory: str | Path, labels: str) -> dict[str, Any]:
    """Return a report whose sample is measured again with the labels in another extra. Nothing is written.

    The sample consists of the same rows, which are read again from the input files.

    Parameters
    ----------
    report : mapping
        The content of report.json.
    directory : str or Path
        Output directory of the run.
    labels : str
        Name of the extra, or the path of its dataset.

    Raises
    ------
    NoInput
        If there is no finished run, or if an input file no longer exists.
    DataError
        If an input file has changed, or if the extra does not contain labels.
    """
    folder = Path(directory)
    manifest = read_manifest(folder)
    config = manifest["config"]
    preprocessing = preprocessing_of(manifest, load_model(folder))
    spec = SampleSpec(
        preprocessing.model, preprocessing.missing, preprocessing.clips, config["memory_budget"], config["seed"]
    )
    parts = _parts(folder, manifest, spec)
    sample = draw_sample(parts, spec)
    if sample is None:
        raise DataError(
            f"features={printable(folder)}: no sample of rows, expected two good rows and enough memory for the model"
        )
    _check_extra(sample, folder, labels)
    choice = LabelChoice(named=labels, masks=manifest.get("masks", {}))
    facts = measure(sample, parts, spec.model, categories_of(parts[0].file), choice)
    _check_labels(facts, folder, labels)
    new = {**report, "sample": facts, "config": {**report["config"], "labels": labels}}
    return {**new, "judgment": judgment_facts(judge(new["summary"], facts, new["config"], new.get("scan")))}


def _parts(folder: Path, manifest: Mapping[str, Any], spec: SampleSpec) -> list[PartSource]:
    inputs = Inputs(manifest, spec.model)
    trained = trained_rows(open_features(folder)).rows
    shards = {}
    parts = []
    first = 0
    for part in manifest["parts"]:
        if part["shard"] not in shards:
            shards[part["shard"]] = inputs.shard(part)
        block = Block(shards[part["shard"]], part["start"], part["start"] + part["n_rows"])
        end = first + part["n_rows"]
        of_part = None if trained is None else trained[first:end]
        parts.append(PartSource(block, folder / part["file"], of_part, part.get("lost", {})))
        first = end
    return parts


def _check_extra(sample: Sample, folder: Path, labels: str) -> None:
    """Raise `DataError` if no extra has the name of the labels."""
    if extra_of(labels, list(sample.extras)) is None:
        raise DataError(
            f"features={printable(folder)} labels={printable(labels)}: no such extra, found "
            f"{printable(sorted(sample.extras))}. To copy other datasets, use shardpress run --include "
            f"{printable(labels)}."
        )


def _check_labels(facts: Mapping[str, Any], folder: Path, labels: str) -> None:
    """Raise `DataError` if the extra does not contain labels."""
    if "probe" not in facts:
        raise DataError(
            f"features={printable(folder)} labels={printable(labels)}: the values are not labels, expected "
            f"{LABELS_IN_WORDS}"
        )
