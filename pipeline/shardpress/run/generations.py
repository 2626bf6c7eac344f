"""Generations: models that replace each other in one output directory, and maps between their features.

A generation is a trained model with its features. A run with ``--retrain`` publishes the next one. The results of
earlier generations that are kept become files of their own, and their parts stay. A linear map leads from the features
of a generation to those of each earlier one, even after that one has been removed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shardpress.alignment import Alignment, LinearMap
from shardpress.errors import DataError, printable
from shardpress.output.journal import Journal
from shardpress.records import Generation, MapFacts
from shardpress.report.commonrows import EncodedRows
from shardpress.report.compare import align_rows
from shardpress.report.mapquality import kept_accuracy
from shardpress.result import Result
from shardpress.settings.config import ResultSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Generations:
    """The generation that is published, and what is kept of earlier ones."""

    number: int = 1
    earlier: tuple[Generation, ...] = ()
    maps: tuple[MapFacts, ...] = ()
    linear_maps: Mapping[int, LinearMap] = field(default_factory=dict)  # by the generations to which they lead
    keeps_published: bool = False  # whether the result that is published now becomes an earlier generation


def count_generations(journal: Journal, new: EncodedRows, results: ResultSettings, labels: str | None) -> Generations:
    """Determine the generation of new features, and fit maps to those of earlier ones.

    A classifier of `labels` measures the quality of the maps.
    """
    before = journal.base
    if before is None:
        return Generations()
    if before.encoder == new.encoder:
        facts = before.facts
        linear_maps = {each.generation: before.map_to(each.generation) for each in facts.maps}
        return Generations(facts.generation, tuple(facts.generations), tuple(facts.maps), linear_maps)
    if results.retrain:
        return _next_generation(before, new, results.keep_generations, labels)
    return Generations(before.facts.generation + 1)


def _next_generation(before: Result, new: EncodedRows, n_kept: int, labels: str | None) -> Generations:
    """Keep the finished run as an earlier generation, and fit maps from the new features to those of earlier ones.

    `n_kept` is the number of generations to keep, including the new one.
    """
    number = before.facts.generation
    earlier = [*before.facts.generations, Generation(number, before.encoder, before.n_rows, before.digest)]
    earlier = earlier[max(0, len(earlier) + 1 - n_kept) :]
    found = Generations(number + 1, tuple(earlier), keeps_published=n_kept > 1)
    rows_before = EncodedRows.of(before)
    alignment = _aligned(rows_before, new, f"output={printable(before.directory)} generation={number}")
    if alignment is None:
        return found
    facts = [MapFacts(number, before.encoder, **_quality(rows_before, new, alignment, labels))]
    linear_maps = {number: alignment.map}
    for each in before.facts.maps:
        facts.append(MapFacts(each.generation, each.model))
        linear_maps[each.generation] = alignment.map.then(before.map_to(each.generation))
    return replace(found, maps=tuple(facts), linear_maps=linear_maps)


def _aligned(a: EncodedRows, b: EncodedRows, where: str) -> Alignment | None:
    """Return the map from the features of B to those of A; None if there are too few common rows."""
    try:
        alignment = align_rows(a, b)
    except DataError as error:
        log.warning("%s: no map leads to its features: %s", where, error)
        return None
    log.info("map to the features of %s: %s", where, alignment)
    return alignment


def _quality(a: EncodedRows, b: EncodedRows, alignment: Alignment, labels: str | None) -> dict[str, Any]:
    """Return facts about a map: R2 of each feature and, with labels, the accuracy that a classifier keeps."""
    facts = {**alignment.facts(), "summary": str(alignment)}
    found = None if labels is None else kept_accuracy(a, b, alignment.map, labels)
    if found is None:
        return facts
    log.info(
        "map: a linear classifier of %s that was trained on the other features has an accuracy of %.1f %% on mapped "
        "features, and of %.1f %% on the other ones",
        printable(labels),
        100 * found["mapped"],
        100 * found["accuracy"],
    )
    return {**facts, "classifier": found}
