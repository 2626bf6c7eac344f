"""Generations: models that replace each other in one output directory, and maps between their features.

A generation is a trained model with its features. A run with ``--retrain`` publishes the next one. The results of
earlier generations that are kept become files of their own, and their parts stay. A linear map leads from the features
of a generation to those of each earlier one, even after that one has been removed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shardpress.base.errors import DataError, printable
from shardpress.model.labels import LabelChoice
from shardpress.output.journal import Journal
from shardpress.report.commonrows import EncodedRows, read_common_rows
from shardpress.report.mapquality import kept_accuracy, read_labels
from shardpress.result.alignment import Alignment, LinearMap, fit_map
from shardpress.result.facts import KeptAccuracy
from shardpress.result.finished import Result
from shardpress.result.records import Generation, MapFacts
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


def count_generations(
    journal: Journal, new: EncodedRows, results: ResultSettings, labels: LabelChoice | None
) -> Generations:
    """Determine the generation of new features, and fit maps to those of earlier ones.

    A classifier of `labels` measures the quality of the maps.
    """
    before = journal.base
    if before is None:
        return Generations()
    if before.encoder == new.encoder:
        facts = before.facts
        linear_maps = {earlier.generation: before.map_to(earlier.generation) for earlier in facts.model.maps}
        return Generations(facts.model.generation, tuple(facts.model.generations), tuple(facts.model.maps), linear_maps)
    if results.retrain:
        return _next_generation(before, new, results.keep_generations, labels)
    return Generations(before.facts.model.generation + 1)


def _next_generation(before: Result, new: EncodedRows, n_kept: int, labels: LabelChoice | None) -> Generations:
    """Keep the finished run as an earlier generation, and fit maps from the new features to those of earlier ones.

    `n_kept` is the number of generations to keep, including the new one.
    """
    number = before.facts.model.generation
    earlier = [*before.facts.model.generations, Generation(number, before.encoder, before.n_rows, before.digest)]
    earlier = earlier[max(0, len(earlier) + 1 - n_kept) :]
    generations = Generations(number + 1, tuple(earlier), keeps_published=n_kept > 1)
    try:
        alignment, classifier = _aligned(EncodedRows.of(before), new, labels)
    except DataError as error:
        log.warning("generation=%d: no map leads to its features: %s", number, error)
        return generations
    facts = [_map_facts(number, before.encoder, alignment, classifier)]
    linear_maps = {number: alignment.map}
    for older in before.facts.model.maps:
        facts.append(MapFacts(older.generation, older.model))
        linear_maps[older.generation] = alignment.map.then(before.map_to(older.generation))
    return replace(generations, maps=tuple(facts), linear_maps=linear_maps)


def _map_facts(number: int, encoder: str, alignment: Alignment, classifier: KeptAccuracy | None) -> MapFacts:
    return MapFacts(number, encoder, alignment.known_r2, alignment.n_rows, alignment.n_held_out, classifier)


def _aligned(a: EncodedRows, b: EncodedRows, labels: LabelChoice | None) -> tuple[Alignment, KeptAccuracy | None]:
    """Return the map from the features of B to those of A, and the accuracy that a classifier keeps, if it is known.

    Supervised features of the rows whose targets trained them look better than those of new rows, so they test nothing.
    """
    common = read_common_rows(a, b)
    alignment = fit_map(common.b, common.a, common.is_held_out, b.encoder, a.encoder)
    log.info("map to the features of the earlier generation: %s", alignment)
    if labels is None or ((a.is_supervised or b.is_supervised) and not common.trained_neither):
        return alignment, None
    kept = kept_accuracy(common, read_labels(b, common.rows_of_b, labels), alignment.map)
    if kept is not None:
        log.info(
            "map: a linear classifier of %s that was trained on the other features has an accuracy of %.1f %% on "
            "mapped features, and of %.1f %% on the other ones",
            printable(kept.labels),
            100 * kept.mapped,
            100 * kept.accuracy,
        )
    return alignment, kept
