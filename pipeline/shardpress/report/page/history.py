"""The sections about the run: changes since the last run, generations, times, settings and digests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shardpress.base.text import exact_duration, size
from shardpress.model.about import Epoch, TrainingFacts
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.summary import Report
from shardpress.report.words import MINUTES, cut, files_in_words, number, path, percent
from shardpress.result.facts import InputFacts, OneRun, StageFacts, StorageFacts, WorkerFacts
from shardpress.result.records import MapFacts, ModelFacts, RunFacts
from shardpress.settings.config import Config

_MIN_SHARE = 0.01  # smaller shares of a stage's time are not listed
_MAX_WORKERS = 10  # report --json lists all workers
_STAGES = ["scan", "training", "encoding"]  # stages that run on workers
_MAX_ROWS = 40  # rows of a table whose length depends on the run
_MAX_VALUES = 5  # values of a setting that is a list
_ENCODER = 12  # characters of a fingerprint


# -- earlier runs --------------------------------------------------------------------------------------------------


def history(facts: RunFacts) -> Section | None:
    """Return the section about all runs in the output directory, or None if there is only one."""
    if len(facts.runs) == 1:
        return None
    rows = [_run(run) for run in reversed(facts.runs[-_MAX_ROWS:])]
    columns = "run, time, features, rows, bad rows, mean squared error, duration"
    items = [Table.of("Runs in this directory, the last one first", columns, rows)]
    changed = [(name, cut(before, 200), cut(now, 200)) for name, (before, now) in facts.last.changed.items()]
    if changed:
        items.append(Table.of("Changed settings", "setting, previous run, this run", changed[:_MAX_ROWS]))
    return Section("Earlier runs", tuple(items))


def _run(run: OneRun) -> tuple[object, ...]:
    features = {"trained": "of a new model", "given": "of a given model", "kept": "of the same model"}[run.source]
    if run.append is not None:
        features = f"{files_in_words(run.append)} files appended"
    duration = exact_duration(sum(run.seconds.values()))
    return run.number, cut(run.made[:MINUTES]), features, run.n_rows, run.n_bad, run.cost, duration


def generations(facts: ModelFacts) -> Section | None:
    """Return the section about generations and the maps to their features, or None if there is only one."""
    if facts.generation == 1 and not facts.maps:
        return None
    kept = ", ".join(f"{earlier.generation:,}" for earlier in facts.generations) or "none"
    first = f"These are the features of generation {facts.generation:,}. Earlier ones that are kept: {kept}."
    if not facts.maps:
        nothing = "No map leads to the features of another generation, so classifiers must be trained again."
        return Section("Generations", (first, nothing))
    explanation = (
        "open_features(..., as_of=N) maps the features to those of generation N, for classifiers that were trained on "
        "them. R2 is the share of the variance of a feature that the map explains on held-out rows. The accuracies are "
        "those of a linear classifier that was trained on the other features. A map over several generations is "
        "composed, and has no numbers of its own."
    )
    columns = "generation, encoder, mean R2, lowest R2, accuracy before, accuracy of mapped features"
    table = Table.of("Maps", columns, [_map(to_earlier) for to_earlier in facts.maps[:_MAX_ROWS]])
    return Section("Generations", (first, explanation, table))


def _map(facts: MapFacts) -> tuple[object, ...]:
    r2 = [value for value in facts.r2 if value is not None]
    classifier = facts.classifier
    return (
        facts.generation,
        cut(facts.model[:_ENCODER]),
        sum(r2) / len(r2) if r2 else None,
        min(r2, default=None),
        None if classifier is None else percent(classifier.accuracy),
        None if classifier is None else percent(classifier.mapped),
    )


# -- times ---------------------------------------------------------------------------------------------------------


def time_spent(facts: RunFacts, training: TrainingFacts | None) -> Section:
    """Return the section about the times of stages and of workers."""
    details = facts.details
    workers = details.cluster.workers
    items: list[Item] = []
    rows = [_stage(name, stage) for name, stage in details.stages.items()]
    if training is not None and training.history:
        rows.append(_epochs(training.history, facts.rows.inputs, facts.rows.config["validation_fraction"]))
    if rows:
        title = "Throughput by stage"
        if workers:
            title = "Throughput by stage; CPU use and waiting are the driver's share"
        items.append(Table.of(title, "stage, time, rows, bytes, CPU use, waiting for", rows))
    items.append(f"Peak memory of the process: {size(details.memory.peak_bytes)}.")
    if workers:
        items.append(_workers(workers))
    return Section("Run time", tuple(items))


def _stage(name: str, stage: StageFacts) -> tuple[object, ...]:
    """Return the time and rates of a stage, its share of the processor's cores, and what it has waited for."""
    available = max(stage.seconds * stage.n_cores, 1e-9)
    busy = percent(min(1.0, stage.processor_seconds / available))
    most_first = sorted(stage.bound_by.items(), key=lambda cause: -cause[1])
    waiting = ", ".join(f"{cause} {percent(share)}" for cause, share in most_first if share >= _MIN_SHARE) or None
    return name, *_rates(stage.n_rows, stage.n_bytes, stage.seconds), busy, waiting


def _epochs(history: Sequence[Epoch], inputs: InputFacts, validation_fraction: float) -> tuple[object, ...]:
    """Return a line about all epochs, including the epochs before the run was resumed.

    The time does not include compilation and the evaluation of the result.
    """
    n_epochs = len(history)
    n_passes = n_epochs * (1 - validation_fraction)
    seconds = sum(epoch.seconds for epoch in history)
    name = "1 epoch" if n_epochs == 1 else f"{n_epochs:,} epochs"
    return name, *_rates(n_passes * inputs.n_rows, n_passes * inputs.n_bytes, seconds), None, None


def _rates(n_rows: float, n_bytes: float, seconds: float) -> tuple[str, str | None, str | None]:
    """Return a time, and the rows and bytes per second."""
    duration = exact_duration(seconds)
    if not n_rows or seconds <= 0:
        return duration, None, None
    return duration, f"{n_rows / seconds:,.0f} rows/s", f"{size(n_bytes / seconds)}/s"


def _workers(workers: Sequence[WorkerFacts]) -> Table:
    """Return a table of workers. The slowest workers come first, because the run waits for them."""
    stages = sorted({name for worker in workers for name in worker.stages}, key=_STAGES.index)
    last_stage = (stages or [""])[-1]
    slowest_first = sorted(workers, key=lambda worker: _pace(worker, last_stage) or 0)
    rows = []
    for worker in slowest_first[:_MAX_WORKERS]:
        name = cut(f"{worker.name} on {worker.host}", 40)
        n_tasks = sum(work.n_tasks for work in worker.stages.values())
        paces = [_pace(worker, stage) for stage in stages]
        rows.append((name, cut(worker.device or "-", 40), n_tasks, *paces))
    title = "Workers and their rows per second"
    if len(workers) > _MAX_WORKERS:
        title = f"{title}: the {_MAX_WORKERS} slowest of {len(workers):,}"
    return Table.of(title, ", ".join(["worker, device, tasks", *stages]), rows)


def _pace(worker: WorkerFacts, stage: str) -> int | None:
    """Return rows per second of a worker, or None if it has not taken part in a stage."""
    work = worker.stages.get(stage)
    return None if work is None else round(work.n_rows / max(work.seconds, 1e-9))


# -- settings and digests ------------------------------------------------------------------------------------------


def settings(report: Report) -> Section:
    """Return the section about inputs, settings, versions and digests."""
    return Section("Settings", tuple(_settings(report)))


def _settings(report: Report) -> Iterator[Item]:
    facts = report.facts
    yield _inputs(facts.rows.inputs)
    defaults = {name: _value(value) for name, value in Config().flat().items()}
    values = [(name, _value(value)) for name, value in facts.rows.config.items()]
    changed = [(name, value) for name, value in values if value != defaults.get(name, _value(None))]
    title = "Settings that differ from their defaults or are derived from the input; report --json lists all"
    yield Table.of(title, "setting, value", changed[:_MAX_ROWS])
    yield Table.of("Versions and fingerprints", "name, value", _versions_and_digests(report))
    yield _storage(facts.rows.storage)
    verification = facts.rows.verification
    yield (
        f"Verification: the features of {verification.n_rows:,} rows were read back and recomputed in float64. They "
        f"differ by at most {number(verification.largest_difference)}{_by(facts)}."
    )
    yield "index.h5 contains the BLAKE3 digest of every part."


def _by(facts: RunFacts) -> str:
    """Return the run that verified the features, unless it was the last one."""
    number_of_run = facts.rows.verification_run
    return "" if number_of_run == facts.last.number else f" (run {number_of_run})"


def _inputs(inputs: InputFacts) -> Table:
    rows = [
        ("shards", inputs.n_shards),
        ("rows", inputs.n_rows),
        ("size of the rows", size(inputs.n_bytes)),
        ("dataset", cut(inputs.dataset, 80)),
        ("columns", cut(inputs.columns, 120)),
        ("dtype", cut(inputs.dtype, 40)),
        ("extras", cut(", ".join(inputs.extras) or "none", 200)),
        *(("file", path(file)) for file in inputs.files),
    ]
    if inputs.n_shards > len(inputs.files):
        rows.append(("more shards", inputs.n_shards - len(inputs.files)))
    return Table.of("Input", "quantity, value", rows)


def _value(value: object) -> str:
    if value is None:
        return "none"
    if not isinstance(value, (list, tuple)):
        return cut(value, 200)
    values = ", ".join(map(str, value[:_MAX_VALUES])) or "none"
    if len(value) > _MAX_VALUES:
        values = f"{values} and {len(value) - _MAX_VALUES} more"
    return cut(values, 200)


def _versions_and_digests(report: Report) -> list[tuple[str, str]]:
    facts = report.facts
    return [
        ("device", cut(facts.last.device, 200)),
        *((name, cut(version, 40)) for name, version in facts.last.versions.items()),
        ("features", cut(facts.rows.key, 80)),
        ("model", cut(report.encoder, 80)),
        ("command", cut(facts.last.command)),
        ("made", cut(facts.last.made)),
    ]


def _storage(stored: StorageFacts) -> str:
    form = stored.dtype
    if stored.compression != "none":
        form = f"{form}, {stored.compression}"
    rounding = ""
    if stored.max_error:
        rounding = f"; rounding changes them by at most {number(stored.max_error)}"
    return f"Storage: the features take {size(stored.n_bytes)} as {cut(form, 40)}{rounding}."
