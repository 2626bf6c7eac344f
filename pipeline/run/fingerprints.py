"""What a run is asked for, and what depends on what.

Fingerprints chain: the inputs and what affects the scan decide the scan; the scan and what affects the model decide the
model; the inputs, the model and what affects the features decide the features. Which setting affects what, it says
itself, in `pipeline.settings.config`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import shown
from pipeline.formats import fingerprint
from pipeline.model import Model
from pipeline.run.budget import Budget
from pipeline.settings.config import current_name, fingerprint_values
from pipeline.settings.resolve import Settings
from pipeline.shards.shard import Shard

__all__ = ["CONTENTS", "Request", "differences", "other_inputs", "other_settings", "request_of"]

# Of a shard whose file was changed in place under an unchanged modification time: the digest of its bytes.
CONTENTS = "contents"

# To be raised when the same settings begin to give other numbers.
_SCAN = 1
_TRAINING = 1
_ENCODING = 1

_STAGES = ("scan", "training", "encoding")
_LISTED = 10  # differences that a message names: it is read in a terminal
_FOLDERS = 3  # folders that a message names


@dataclass(frozen=True)
class Request:
    """Plain values that decide a run's results.

    Attributes
    ----------
    inputs : dict
        Each shard by its file name: dataset, shape, dtype, bytes, time of change.
    scan, training, encoding : dict
        Settings of each stage.
    folders : list of str
        In which the shards lie. They decide nothing: a data set may be moved between two evenings.
    """

    inputs: dict[str, Any]
    scan: dict[str, Any]
    training: dict[str, Any]
    encoding: dict[str, Any]
    folders: list[str]

    def of_scan(self) -> str:
        """Fingerprint of the scan's result."""
        return fingerprint("scan", self.inputs, self.scan)

    def of_model(self, unreadable: Iterable[int] = ()) -> str:
        """Return the fingerprint of the training's result.

        Parameters
        ----------
        unreadable : iterable of int
            Positions of shards that could not be read, so that the training did without them.
        """
        key = fingerprint("model", self.of_scan(), self.training)
        missing = sorted(unreadable)
        return fingerprint(key, missing) if missing else key

    def of_features(self, model: str) -> str:
        """Fingerprint of the features that a model, given by its own fingerprint, makes."""
        return fingerprint("features", self.inputs, self.scan, self.encoding, model)

    def of_all(self) -> str:
        """Fingerprint of everything that was asked for."""
        return fingerprint("run", {name: value for name, value in asdict(self).items() if name != "folders"})


def request_of(settings: Settings, shards: Sequence[Shard], model: Model | None, budget: Budget) -> Request:
    """What a run with these settings is asked for.

    Parameters
    ----------
    model : Model or None
        A fitted one, that takes the training's place.
    """
    n_rows = sum(shard.n_rows for shard in shards)
    n_validated = round(settings.validation.validation_fraction * n_rows)
    training = {
        **fingerprint_values(settings, "model"),
        # A budget that holds all of them may change.
        "window_rows": budget.window_rows if budget.window_rows < n_rows else None,
        "validation_rows": budget.max_validation_rows if budget.max_validation_rows < n_validated else None,
        **({"sample_rows": budget.max_sample_rows} if _samples(settings, budget, n_rows) else {}),
        # How many epochs fit, only the run finds out: so it is no other's, whatever those had; of two by a deadline the
        # second goes on with what the first has decided.
        **({"by_deadline": True} if settings.timing.finish_by or settings.timing.max_hours else {}),
        "versions": {name: version(name) for name in ("numpy", "Theano")},
        "format": _TRAINING,
    }
    if settings.training.start == "components":  # of so many rows; another start looks at none
        training["sample_rows"] = budget.max_sample_rows if budget.max_sample_rows < n_rows else None
    return Request(
        inputs={"shards": [_identity(shard) for shard in shards]},
        scan={**fingerprint_values(settings, "scan"), **_filled(model), "format": _SCAN},
        training=training if model is None else {"model": model.fingerprint},
        encoding={**fingerprint_values(settings, "features"), "format": _ENCODING},
        folders=sorted({os.path.realpath(folder) for folder in {os.path.dirname(shard.path) for shard in shards}}),
    )


def _filled(model: Model | None) -> dict[str, Any]:
    """Which rows are bad depends on whether a given model fills in what is missing."""
    return {"filled": True} if model is not None and model.scaler.fill is not None else {}


def _samples(settings: Settings, budget: Budget, n_rows: int) -> bool:
    """Whether the start depends on how many rows a sample may have."""
    return settings.training.start == "components" and budget.max_sample_rows < n_rows


def _identity(shard: Shard) -> dict[str, Any]:
    return {
        "file": Path(shard.path).name,
        "dataset": shard.dataset,
        "shape": list(shard.shape),
        "dtype": shard.stored_dtype,
        "n_bytes": shard.identity.size,
        "changed": shard.identity.mtime_ns,
        "riders": [rider.name for rider in shard.riders if not rider.is_carried],
        # Where it is what it always was, runs of earlier versions can go on.
        **({} if shard.form == "dense" else {"form": shard.form}),
        **({} if shard.order is None else {"column_order": order_digest(shard.order)}),
    }


def order_digest(order: np.ndarray) -> str:
    """Return the SHA-256 of the order (n_inputs,) in which a shard's columns are read."""
    return sha256(order.astype("<i4").tobytes()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any], stages: Sequence[str] = _STAGES) -> str:
    """What was asked for then and is asked for now of the files and these stages, in words; empty where it is alike."""
    changes = [*_changed_files(_shards(before), _shards(now))]
    for stage in stages:
        changes += _changes(before.get(stage, {}), now[stage])
    lay, lie = (", ".join(map(shown, request.get("folders", [])[:_FOLDERS])) for request in (before, now))
    if changes and lay and lay != lie:
        changes.insert(0, f"the inputs lie in {lie}, not in {lay}")
    more = f" and {len(changes) - _LISTED} more" if len(changes) > _LISTED else ""
    return "; ".join(changes[:_LISTED]) + more


def other_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether files that were asked for then are not now, so that the results are of another data set.

    Of other folders, files of the same names are others where not one of them is as it was: each night has its own.
    """
    if {shard["file"] for shard in _shards(before)} - {shard["file"] for shard in _shards(now)}:
        return True
    is_moved = not set(now["folders"]) & set(before.get("folders", now["folders"]))
    return is_moved and not set(_as_they_are(before)) & set(_as_they_are(now))


def other_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the model or its rows were chosen otherwise then, of the same files: so that one may choose as before."""
    return _as_they_are(before) == _as_they_are(now) and _chosen(before) != _chosen(now)


def _shards(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(request.get("inputs", {}).get("shards", []))  # which an earlier version may have kept elsewhere


def _as_they_are(request: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """By which the files of a request are known again, wherever they lie."""
    return [tuple(map(shard.get, ("file", "n_bytes", "changed"))) for shard in _shards(request)]


def _chosen(request: Mapping[str, Any]) -> list[Any]:
    stages = (request.get(stage, {}) for stage in ("scan", "training"))
    # Versions are not chosen: who has them can hardly go back to others.
    chosen = [{name: value for name, value in stage.items() if name not in ("versions", "format")} for stage in stages]
    return [*chosen, [shard["dataset"] for shard in _shards(request)]]


def _changed_files(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    old, new = ([shard["file"] for shard in shards] for shards in (before, now))
    if old == new:
        for name, was, is_now in zip(new, before, now, strict=True):
            if changes := "; ".join(_changes(was, is_now)):
                yield f"input {shown(name)} ({changes})"
        return
    olds = set(old)
    news = set(new)
    yield from (f"input {shown(name)} is gone" for name in old if name not in news)
    yield from (f"input {shown(name)} is new" for name in new if name not in olds)
    if sorted(old) == sorted(new):
        yield "the inputs come in another order"


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in {**now, **before}:  # in the order of today's names, then those that are no more
        was = before.get(name)
        is_now = now.get(name)
        if was != is_now and name == CONTENTS:
            yield "its contents changed although its modification time did not"
        elif was != is_now:
            today, was = current_name(name, was)
            _, is_now = current_name(name, is_now)
            words = _time if name == "changed" else shown
            yield f"{today} {words(was)} -> {words(is_now)}"


def _time(nanoseconds: object) -> str:
    if not isinstance(nanoseconds, int):
        return shown(nanoseconds)
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds)}.{rest:09d}"
