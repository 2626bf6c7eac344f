"""Generations: models that replace each other in one output directory, and maps between their features.

A generation is a trained model with its features. A run with ``--retrain`` publishes the next one. The manifests of
earlier generations that are kept become results of their own, and their parts stay. A linear map leads from the
features of a generation to those of each earlier one, even after that one has been removed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shardpress.alignment import Alignment, LinearMap, load_map
from shardpress.errors import DataError, printable
from shardpress.formats import fingerprint, seal
from shardpress.output.ledger import Ledger
from shardpress.output.records import OUTPUT, Entry, Record, fault_of, result_entry
from shardpress.report.compare import align_manifests
from shardpress.report.mapquality import Run, kept_accuracy
from shardpress.settings.config import ResultSettings

log = logging.getLogger(__name__)

_Manifest = Mapping[str, Any]
"""A manifest; of features that are about to be published, its ``parts``, ``n_features``, ``model`` and ``request``."""


@dataclass(frozen=True)
class Generations:
    """The generation that is published, and what is kept of earlier ones."""

    number: int = 1
    # ``generation``, ``model``, ``n_rows``, ``kept`` (fingerprints of results) and ``manifest`` (an entry) of each
    # earlier generation that is kept.
    earlier: tuple[dict[str, Any], ...] = ()
    # ``generation`` (to which it leads), ``model`` and ``file`` (an entry) of each map from the features of this
    # generation. A map that is not composed of others also has ``r2``, ``summary`` and ``classifier``.
    maps: tuple[dict[str, Any], ...] = ()
    keys: tuple[str, ...] = ()  # fingerprints of the new maps and manifests

    @property
    def entries(self) -> list[Entry]:
        """Files of the manifests and maps."""
        lines = [*(each["manifest"] for each in self.earlier), *(each["file"] for each in self.maps)]
        return [Entry(**line) for line in lines]

    def facts(self) -> dict[str, Any]:
        """Return the entries of the manifest. A first generation without maps has none."""
        if self.number == 1 and not self.maps:
            return {}
        return {"generation": self.number, "generations": list(self.earlier), "maps": list(self.maps)}


def _generation_of(manifest: _Manifest) -> int:
    return int(manifest.get("generation", 1))


def kept_keys(manifest: _Manifest) -> list[str]:
    """Return the fingerprints of all results that a manifest keeps, including those of earlier generations."""
    earlier = [key for each in manifest.get("generations", []) for key in each["kept"]]
    return [*manifest.get("kept", []), *earlier]


def _same_generation(directory: Path, manifest: _Manifest) -> Generations:
    """Return the generation of a finished run that is extended or published again, without damaged maps."""
    earlier = [each for each in manifest.get("generations", []) if _is_intact(directory, each["manifest"])]
    maps = [each for each in manifest.get("maps", []) if _is_intact(directory, each["file"])]
    return Generations(_generation_of(manifest), tuple(earlier), tuple(maps))


def _is_intact(directory: Path, line: Mapping[str, Any]) -> bool:
    fault = fault_of(directory, result_entry(directory, line))
    if fault is not None:
        log.warning("%s; it is removed from the results", fault)
    return fault is None


def count_generations(ledger: Ledger, new: _Manifest, results: ResultSettings, labels: str | None) -> Generations:
    """Determine the generation of new features, and fit maps to those of earlier ones.

    `new` is a manifest that is about to be published. A classifier of `labels` measures the quality of the maps.
    """
    before = ledger.manifest()
    if before is None:
        return Generations()
    if before["model"] == new["model"]:
        return _same_generation(ledger.directory, before)
    if results.retrain:
        return _next_generation(ledger, before, new, results.keep_generations, labels)
    return Generations(_generation_of(before) + 1)


def _next_generation(ledger: Ledger, before: _Manifest, new: _Manifest, n_kept: int, labels: str | None) -> Generations:
    """Keep the finished run as an earlier generation, and fit maps from the new features to those of earlier ones.

    `n_kept` is the number of generations to keep, including the new one.
    """
    number = _generation_of(before)
    found = Generations(number + 1, tuple(before.get("generations", [])))
    if n_kept > 1:
        entry, key = _kept_manifest(ledger, before, number)
        facts = {"generation": number, "model": before["model"], "n_rows": before["n_rows"], "kept": before["kept"]}
        earlier = (*found.earlier, {**facts, "manifest": asdict(entry)})
        found = replace(found, earlier=earlier[-(n_kept - 1) :], keys=(key,))
    else:
        found = replace(found, earlier=())
    run_before = (str(ledger.directory), before)
    run_now = (str(ledger.directory), new)
    alignment = _aligned(run_before, run_now)
    if alignment is None:
        return found
    found = _with_map(ledger, found, alignment.map, number, _quality(run_before, run_now, alignment, labels))
    for older, to_older in _earlier_maps(ledger.directory, before):
        found = _with_map(ledger, found, alignment.map.then(to_older), older, {})
    return found


# -- files ---------------------------------------------------------------------------------------------------------


def _kept_manifest(ledger: Ledger, before: _Manifest, number: int) -> tuple[Entry, str]:
    """Store the manifest of the finished run as a result; return its entry and fingerprint."""
    key = fingerprint("generation", number, before["fingerprint"], before["model"])
    content = {name: value for name, value in before.items() if name != "format"}
    entry = ledger.write("stages/generation", ".json", seal(OUTPUT, content))
    return _commit(ledger, Record(f"generation-{number}", key, entry)), key


def _with_map(
    ledger: Ledger, found: Generations, linear: LinearMap, number: int, quality: Mapping[str, Any]
) -> Generations:
    """Store a map as a result, and return the generation with it and with facts about its quality."""
    key = fingerprint("map", linear.encoder_from, linear.encoder_to)
    entry = ledger.write("stages/map", ".npz", linear.to_npz())
    entry = _commit(ledger, Record(f"map-{number}", key, entry))
    facts = {"generation": number, "model": linear.encoder_to, "file": asdict(entry), **quality}
    return replace(found, maps=(*found.maps, facts), keys=(*found.keys, key))


def _commit(ledger: Ledger, record: Record) -> Entry:
    """Commit a result, and return its file: that of an earlier, interrupted run if that has committed it already."""
    ledger.commit(record)
    (committed,) = [each for each in ledger.records(record.kind, record.fingerprint) if each.key == record.key]
    return committed.entry


def _aligned(a: Run, b: Run) -> Alignment | None:
    """Return the map from the features of B to those of A; None if there are too few common rows."""
    directory, manifest = a
    where = f"output={printable(directory)} generation={_generation_of(manifest)}"
    try:
        alignment = align_manifests(a, b)
    except DataError as error:
        log.warning("%s: no map leads to its features: %s", where, error)
        return None
    log.info("map to the features of %s: %s", where, alignment)
    return alignment


def _quality(a: Run, b: Run, alignment: Alignment, labels: str | None) -> dict[str, Any]:
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


def _earlier_maps(directory: Path, before: _Manifest) -> Iterator[tuple[int, LinearMap]]:
    """Yield the intact maps of the finished run to generations before it."""
    for each in _same_generation(directory, before).maps:
        yield int(each["generation"]), load_map(directory / each["file"]["file"])
