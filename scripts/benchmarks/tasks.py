"""Encoding tasks like the tasks of a run. Workers import them from this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.benchmarks.harness import fresh, script
from shardpress.cluster.executor import compute
from shardpress.encoding.encode import EncodeTask
from shardpress.encoding.parts import PartSize, plan_parts
from shardpress.encoding.worker import EncodeSettings
from shardpress.output.journal import PartRecord
from shardpress.output.lock import locked
from shardpress.result.finished import INDEX, load_model
from shardpress.result.records import Entry, Part, Range
from shardpress.run.encoding_stage import EncodingStage, write_model
from shardpress.run.prepare import prepare
from shardpress.run.task import Fit
from shardpress.settings.config import Config

FINGERPRINT = "0" * 64

Task = tuple[Callable[[EncodeTask], Any], EncodeTask]


def trained_model(folder: Path, shards: Path) -> Path:
    """Train a model on synthetic shards unless it exists, and return its directory."""
    # Rows do not depend on the number of shards.
    target = folder / f"model{shards.name[shards.name.rindex('-') :]}"
    if not (target / INDEX).exists():
        script("extract.py", "--quiet", "--overwrite", "--epochs", 1, "--input", shards, "--output", target)
    return target


def encoding_tasks(
    folder: Path, shards: Path, function: Callable[[EncodeTask], Any], n_parts: int | None = None
) -> list[Task]:
    """Return the encoding tasks of a run, or `n_parts` tasks as for a first shard with that number of parts."""
    model_folder = trained_model(folder, shards)
    output = fresh(folder / "encoded")
    task = prepare(Config.of(input=(str(shards),), output=str(output), model=str(model_folder)))
    settings = encode_settings(Fit(task, None, load_model(model_folder)), output)
    inputs = task.inputs.shards
    if n_parts is not None:
        shape = (n_parts * settings.part_rows, *inputs[0].shape[1:])
        inputs = (replace(inputs[0], shape=shape),)
    by_id = {f"{i:016x}": shard for i, shard in enumerate(inputs)}
    size = PartSize(settings.part_rows, 1, settings.block_rows)
    return [(function, EncodeTask(pieces, settings)) for pieces in plan_parts(by_id, [], size)]


def encode_settings(fit: Fit, output: Path) -> EncodeSettings:
    """Store a model in an output directory, and return the settings of tasks that load it."""
    with locked(output) as journal:
        entry = write_model(journal, fit.model)
    settings = EncodingStage(fit).settings(fit.task.budget.part_rows, output)
    return replace(settings, model=entry)


def compute_and_commit(
    folder: Path,
    tasks: list[Task],
    executor: Executor,
    n_at_once: int,
    done: Callable[[Part], object] = lambda part: None,
) -> None:
    """Run encoding tasks and commit their parts, as a run does."""
    with locked(fresh(folder / "committed")) as journal:

        def commit(parts: Sequence[Part]) -> None:
            for part in parts:
                journal.add(PartRecord(FINGERPRINT, part), waits=False)
                done(part)

        compute(tasks, executor, n_at_once, commit)


def empty_part(task: EncodeTask) -> list[Part]:
    """Do no work, but with an argument and a result as large as in an encoding task."""
    (piece,) = task.pieces
    source = piece.source
    entry = Entry(f"parts/{task.name}-{piece.shard}{source.start:016x}.h5", 4 * len(source), "0" * 64)
    rows = Range(0, piece.shard, source.start, source.stop, rows="0" * 32, extras="0" * 32)
    return [Part(entry, len(source), [rows])]
