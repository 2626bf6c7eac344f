"""Encoding tasks like those of a run, which workers import from this module."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

from pipeline.cluster.executor import compute
from pipeline.encoding import encode
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.encoding.worker import EncodeSettings
from pipeline.model import Model, load_model
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.lock import locked
from pipeline.output.records import Entry, Record
from pipeline.run.context import versions
from pipeline.run.encoding_stage import EncodingStage
from pipeline.run.prepare import Prepared, prepare
from pipeline.settings.config import Config
from scripts.benchmarks.common import fresh, script

FINGERPRINT = "0" * 64
_clock = threading.local()

Task = tuple[Callable[[EncodeTask], Any], EncodeTask]


def trained_model(folder: Path, shards: Path) -> Path:
    """Train a model on synthetic shards unless an earlier call has, and return its directory."""
    # Rows do not depend on the number of shards.
    target = folder / f"model{shards.name[shards.name.rindex('-') :]}"
    if not (target / "manifest.json").exists():
        script("extract.py", "--quiet", "--overwrite", "--epochs", 1, "--input", shards, "--output", target)
    return target


def encoding_tasks(
    folder: Path, shards: Path, function: Callable[[EncodeTask], Any], n_parts: int | None = None
) -> list[Task]:
    """Return the encoding tasks of a run, or `n_parts` of them as if its first shard were as long as that."""
    model_folder = trained_model(folder, shards)
    output = fresh(folder / "encoded")
    prepared = prepare(Config.of(input=(str(shards),), output=str(output), model=str(model_folder)))
    settings = encode_settings(prepared, load_model(model_folder), output)
    inputs = prepared.shards
    if n_parts is not None:
        shape = (n_parts * settings.part_rows, *inputs[0].shape[1:])
        inputs = (replace(inputs[0], shape=shape),)
    parts, _ = plan_parts(inputs, settings.part_rows, [])
    return [(function, EncodeTask(part, settings)) for part in parts]


def encode_settings(prepared: Prepared, model: Model, output: Path) -> EncodeSettings:
    """Store a model in an output directory, and return the settings of tasks that load it."""
    with locked(output) as ledger:
        entry = ledger.write("stages/model", ".h5", model.to_hdf5())
    attributes = {"command": "x" * 60, "config": prepared.config.flat(), "versions": versions(), "device": "cpu"}
    settings = EncodingStage(prepared, model, {}).settings(prepared.budget.part_rows, output)
    return replace(settings, model=entry, attributes=attributes)


def compute_and_commit(
    folder: Path,
    tasks: list[Task],
    executor: Executor,
    n_at_once: int,
    done: Callable[[Any], object] = lambda result: None,
    n_small: int = 1,
) -> list[Any]:
    """Run encoding tasks and commit their parts, as a run does; return the results."""
    with locked(fresh(folder / "committed")) as ledger, GroupCommit(ledger) as group:

        def commit(result: Any) -> None:
            group.add(result.record(FINGERPRINT))
            done(result)

        return compute(tasks, executor, n_at_once, commit, n_small)


def empty_part(task: EncodeTask) -> PartFacts:
    """Do nothing, with an argument and a result as large as those of an encoding task."""
    source = task.part.source
    key = task.part.key
    entry = Entry(f"parts/{key}-{source.start:032x}.h5", 4 * len(source), "0" * 64)
    where = (source.shard.path, source.shard.dataset, source.start, source.stop)
    return PartFacts(entry, len(source), 0, 0, task.part.number, *where)


@dataclass(frozen=True)
class TimedPart:
    """An encoded part, the seconds of its task, and those of them spent on ``read``, ``compute`` and ``write``."""

    facts: PartFacts
    seconds: float
    spent: dict[str, float]

    @property
    def n_rows(self) -> int:
        return self.facts.n_rows

    def record(self, fingerprint: str) -> Record:
        return self.facts.record(fingerprint)


def timed_part(task: EncodeTask) -> TimedPart:
    """Encode a part as a run does, with clocks for reading, computing and writing."""
    _install_clocks()
    _clock.spent = Counter()
    start = time.perf_counter()
    facts = encode_part(task)
    return TimedPart(facts, time.perf_counter() - start, dict(_clock.spent))


def _install_clocks() -> None:
    """Add clocks to the functions that an encoding task calls, once in each process."""
    if hasattr(encode.read, "__wrapped__"):
        return
    for name, kind in (("read", "read"), ("read_riders", "read"), ("write_result", "write")):
        setattr(encode, name, _with_clock(kind, getattr(encode, name)))
    worker_of = encode.worker_of

    def worker_with_clock(settings: Any) -> Any:
        worker = worker_of(settings)
        if not hasattr(worker.encode, "__wrapped__"):
            worker.encode = _with_clock("compute", worker.encode)
        return worker

    encode.worker_of = worker_with_clock


def _with_clock(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _clock.spent[kind] += time.perf_counter() - start

    return timed
