"""What an earlier run has left in the output directory: what of it would be used, and why the rest would not."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.encoding.storage import storages
from pipeline.errors import DataError, NoInput
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.ledger import Ledger
from pipeline.output.records import FOLDERS, Record, fault_of
from pipeline.run.earlier import kept_deadline, passes, plainly
from pipeline.run.fingerprints import differences
from pipeline.run.job import Prepared, step_of, trained
from pipeline.run.scan_stage import load_scan
from pipeline.scan.ranges import Scan

__all__ = ["Kept", "kept", "looked_into"]

_NOTHING = "nothing of an earlier run is there"
_DECIDES = {"scan": ("scan",), "training": ("scan", "training"), "encoding": ("scan", "training", "encoding")}


@dataclass(frozen=True)
class Kept:
    """What would be taken over.

    Attributes
    ----------
    is_complete : bool
        All of it: the run would only compare what is there with its digests.
    scan : bool
        The scan's result.
    model : Model or None
        The training's.
    n_steps : int
        Of the training, that a checkpoint keeps; 0 without one.
    n_epochs, ends_by : int and float, or None
        How many it is going to make in all, as a checkpoint keeps it, and when the run is to be over (seconds since
        1970).
    n_encoded, n_bytes : int
        Rows with committed features, and the bytes of their files.
    why : dict of str to str
        For ``scan``, ``training`` and ``encoding``, what is used, or why it cannot be.
    """

    is_complete: bool = False
    scan: bool = False
    model: Model | None = None
    n_steps: int = 0
    n_epochs: int | None = None
    ends_by: float | None = None
    n_encoded: int = 0
    n_bytes: int = 0
    why: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_DECIDES, _NOTHING))


class _Unchanging(Disk):
    """For a look: what a run would clear away stays."""

    def remove(self, path: Path) -> None:
        """Leave it."""


def looked_into(directory: Path) -> Ledger | None:
    """An output directory as it is, without its lock and without a change; None where there is none yet."""
    if not all(os.path.isdir(directory / name) for name in FOLDERS):
        return None
    return Ledger(directory, _Unchanging())


def kept(ledger: Ledger, prepared: Prepared) -> Kept:
    """What of a directory's results a run like this one would use.

    Files are compared by their sizes; a run compares their digests, if `verify` asks for it. Whether there is leave to
    replace the others is another question (`pipeline.run.earlier.asked_for`).
    """
    if prepared.config.results.restart:
        return Kept(why=dict.fromkeys(_DECIDES, "--restart throws away what is there"))
    manifest = ledger.manifest(warn=False) or {}
    if manifest.get("fingerprint") == prepared.request.of_all() and passes(manifest, prepared):
        n_bytes = sum(part["n_bytes"] for part in manifest["parts"])
        complete = dict.fromkeys(_DECIDES, "an earlier run has finished it")
        return Kept(True, True, n_encoded=prepared.n_rows, n_bytes=n_bytes, why=complete)
    return _of_records(ledger, prepared, ledger.request() or manifest.get("request"))


def _of_records(ledger: Ledger, prepared: Prepared, before: Mapping[str, Any] | None) -> Kept:
    scan = _scan(ledger, prepared)
    unreadable = scan.unreadable if scan else {}
    fingerprint = prepared.of_model(unreadable)
    model = prepared.given or _model(ledger, fingerprint)
    checkpoints = _there(ledger, ledger.records("checkpoint", fingerprint))
    checkpoint = checkpoints[-1] if checkpoints and model is None else None
    facts = [PartFacts.of(record) for record in _parts(ledger, prepared, model, unreadable)] if model else []
    overlapping = plan_parts(prepared.shards, prepared.budget.part_rows, facts)[1]
    facts = [part for part in facts if part not in overlapping]
    n_encoded = sum(part.n_rows for part in facts)
    used = {
        "scan": "an earlier run has finished it" if scan and not unreadable else "",
        "training": _trained(prepared, model, checkpoint),
        "encoding": f"an earlier run has encoded {n_encoded} of {prepared.n_rows} rows" if n_encoded else "",
    }
    why = {stage: words or _why_not(stage, before, prepared) for stage, words in used.items()}
    n_bytes = sum(part.entry.n_bytes for part in facts)
    told = checkpoint.facts if checkpoint else {}
    deadline = kept_deadline(ledger, prepared.config, plainly(prepared.request), time.time()) or {}
    training = step_of(checkpoint) if checkpoint else 0, told.get("of"), deadline.get("ends_by")
    return Kept(False, bool(used["scan"]), model, *training, n_encoded, n_bytes, why)


def _parts(ledger: Ledger, prepared: Prepared, model: Model, unreadable: Iterable[int]) -> list[Record]:
    """Of features as they are stored: those of the form that was tried last, where one was too coarse."""
    for storage in reversed(storages(prepared.config.storage)):
        fingerprint = prepared.of_features(model, unreadable, storage)
        there = _there(ledger, ledger.records("part", fingerprint))
        if there:
            return there
    return []


def _trained(prepared: Prepared, model: Model | None, checkpoint: Record | None) -> str:
    if prepared.given is not None:
        return "a fitted model is given"
    if model is not None:
        return "an earlier run has finished it"
    return f"a checkpoint keeps {trained(checkpoint)}" if checkpoint else ""


def _why_not(stage: str, before: Mapping[str, Any] | None, prepared: Prepared) -> str:
    if before is None:
        return _NOTHING
    changed = differences(before, plainly(prepared.request), _DECIDES[stage])
    return f"made anew: {changed}" if changed else "an earlier run has not come so far, or its files are damaged"


def _scan(ledger: Ledger, prepared: Prepared) -> Scan | None:
    for record in reversed(_there(ledger, ledger.records("scan", prepared.request.of_scan()))):
        with suppress(ValueError):
            return load_scan(ledger, record, prepared.shards)
    return None


def _model(ledger: Ledger, fingerprint: str) -> Model | None:
    for record in reversed(_there(ledger, ledger.records("model", fingerprint))):
        with suppress(ValueError, DataError, NoInput):
            return load_model(ledger.directory / record.entry.file)
    return None


def _there(ledger: Ledger, records: Iterable[Record]) -> list[Record]:
    """Those whose files are there, of their sizes."""
    return [record for record in records if not fault_of(ledger.directory, record.entry, digests=False)]
