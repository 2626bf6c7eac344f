"""The sections about the run: changes since the last run, generations, times, settings and digests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardpress.base.text import exact_duration, size
from shardpress.report.page.document import Item, Section, Table
from shardpress.report.words import cut, number, path, percent
from shardpress.settings.config import Config

_NOT_OF_RESULTS = ("overwrite", "restart", "quiet", "verbose")  # settings that do not affect results
_MIN_SHARE = 0.01  # smaller shares of a stage's time are not listed
_MAX_WORKERS = 10  # report --json lists all workers
_STAGES = ["scan", "training", "encoding"]  # stages that run on workers
_MAX_ROWS = 40  # rows of a table whose length depends on the run
_MAX_VALUES = 5  # values of a setting that is a list
_ENCODER = 12  # characters of a fingerprint

_SUMMARY = {
    "rows": "n_rows",
    "columns": "n_inputs",
    "features": "n_features",
    "bad rows": "n_bad",
    "rows outside the model's range": "n_outside",
    "mean squared error": "cost",
    "mean squared error of principal components": "components",
}
"""Names of the lines that compare two runs, with the key in the summary."""


# -- earlier runs --------------------------------------------------------------------------------------------------


def change(report: Mapping[str, Any]) -> Section | None:
    """Return the section that compares this run with the last run, or None if the report describes no last run."""
    last = report.get("last")
    if not last:
        return None
    summaries = (last["summary"], report["summary"])
    rows = [(name, *(summary.get(key) for summary in summaries)) for name, key in _SUMMARY.items()]
    rows.append(("time", *(exact_duration(sum(summary["seconds"].values())) for summary in summaries)))
    title = f"Results of the previous run ({cut(last.get('made', 'date unknown'), 30)}) and of this run"
    items = [Table.of(title, "quantity, previous run, this run", rows)]
    before = last.get("config", {})
    now = report["config"]
    changed = [name for name in now if before.get(name) != now[name] and name not in _NOT_OF_RESULTS]
    if changed:
        settings = [(name, _value(before.get(name)), _value(now[name])) for name in changed[:_MAX_ROWS]]
        items.append(Table.of("Changed settings", "setting, previous run, this run", settings))
    return Section("Comparison with the previous run", tuple(items))


def generations(report: Mapping[str, Any]) -> Section | None:
    """Return the section about generations and the maps to their features, or None if there is only one."""
    found = report.get("generations")
    if not found:
        return None
    kept = ", ".join(f"{each['generation']:,}" for each in found["generations"]) or "none"
    first = f"These are the features of generation {found['generation']:,}. Earlier ones that are kept: {kept}."
    if not found["maps"]:
        nothing = "No map leads to the features of another generation, so classifiers must be trained again."
        return Section("Generations", (first, nothing))
    explanation = (
        "open_features(..., as_of=N) maps the features to those of generation N, for classifiers that were trained on "
        "them. R2 is the share of the variance of a feature that the map explains on held-out rows. The accuracies are "
        "those of a linear classifier that was trained on the other features. A map over several generations is "
        "composed, and has no numbers of its own."
    )
    columns = "generation, encoder, mean R2, lowest R2, accuracy before, accuracy of mapped features"
    table = Table.of("Maps", columns, [_map(each) for each in found["maps"][:_MAX_ROWS]])
    return Section("Generations", (first, explanation, table))


def _map(each: Mapping[str, Any]) -> tuple[object, ...]:
    r2 = [value for value in each.get("r2", []) if value is not None]
    found = each.get("classifier")
    return (
        each["generation"],
        cut(each["model"][:_ENCODER]),
        sum(r2) / len(r2) if r2 else None,
        min(r2, default=None),
        percent(found["accuracy"]) if found else None,
        percent(found["mapped"]) if found else None,
    )


# -- times ---------------------------------------------------------------------------------------------------------


def time_spent(report: Mapping[str, Any]) -> Section:
    """Return the section about the times of stages and of workers."""
    workers = (report.get("cluster") or {}).get("workers")
    items: list[Item] = []
    rows = [_stage(name, stage) for name, stage in report.get("stages", {}).items()]
    rows += _epochs(report)
    if rows:
        title = "Throughput by stage"
        if workers:
            title = "Throughput by stage; CPU use and waiting are the driver's share"
        items.append(Table.of(title, "stage, time, rows, bytes, CPU use, waiting for", rows))
    peak = report.get("memory", {}).get("peak_bytes")
    if peak:
        items.append(f"Peak memory of the process: {size(peak)}.")
    if workers:
        items.append(_workers(workers))
    return Section("Run time", tuple(items))


def _stage(name: str, stage: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the time and rates of a stage, its share of the processor's cores, and what it has waited for."""
    available = max(stage["seconds"] * stage["n_cores"], 1e-9)
    busy = percent(min(1.0, stage["processor_seconds"] / available))
    shares = stage.get("bound_by") or {}  # unknown for short stages
    most_first = sorted(shares.items(), key=lambda each: -each[1])
    waiting = ", ".join(f"{cause} {percent(share)}" for cause, share in most_first if share >= _MIN_SHARE) or None
    return name, *_rates(stage["n_rows"], stage["n_bytes"], stage["seconds"]), busy, waiting


def _epochs(report: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """Yield a line about all epochs, including the epochs before the run was resumed.

    The time does not include compilation and the evaluation of the result.
    """
    history = report.get("training", {}).get("history")
    inputs = report.get("inputs")
    if not history or not inputs:
        return
    n_epochs = len(history)
    n_passes = n_epochs * (1 - report["config"]["validation_fraction"])
    seconds = sum(epoch["seconds"] for epoch in history)
    name = "1 epoch" if n_epochs == 1 else f"{n_epochs:,} epochs"
    yield name, *_rates(n_passes * inputs["n_rows"], n_passes * inputs["n_bytes"], seconds), None, None


def _rates(n_rows: float, n_bytes: float, seconds: float) -> tuple[str, str | None, str | None]:
    """Return a time, and the rows and bytes per second."""
    duration = exact_duration(seconds)
    if not n_rows or seconds <= 0:
        return duration, None, None
    return duration, f"{n_rows / seconds:,.0f} rows/s", f"{size(n_bytes / seconds)}/s"


def _workers(workers: list[Mapping[str, Any]]) -> Table:
    """Return a table of workers. The slowest workers come first, because the run waits for them."""
    stages = sorted({name for worker in workers for name in worker["stages"]}, key=_STAGES.index)
    last_stage = (stages or [""])[-1]
    slowest_first = sorted(workers, key=lambda worker: _pace(worker, last_stage) or 0)
    rows = []
    for worker in slowest_first[:_MAX_WORKERS]:
        name = cut(f"{worker['name']} on {worker['host']}", 40)
        n_tasks = sum(stage["n_tasks"] for stage in worker["stages"].values())
        paces = [_pace(worker, stage) for stage in stages]
        rows.append((name, cut(worker["device"] or "-", 40), n_tasks, *paces))
    title = "Workers and their rows per second"
    if len(workers) > _MAX_WORKERS:
        title = f"{title}: the {_MAX_WORKERS} slowest of {len(workers):,}"
    return Table.of(title, ", ".join(["worker, device, tasks", *stages]), rows)


def _pace(worker: Mapping[str, Any], stage: str) -> int | None:
    """Return rows per second of a worker, or None if it has not taken part in a stage."""
    work = worker["stages"].get(stage)
    return round(work["n_rows"] / max(work["seconds"], 1e-9)) if work else None


# -- settings and digests ------------------------------------------------------------------------------------------


def settings(report: Mapping[str, Any]) -> Section:
    """Return the section about inputs, settings, versions and digests."""
    return Section("Settings", tuple(_settings(report)))


def _settings(report: Mapping[str, Any]) -> Iterator[Item]:
    inputs = report.get("inputs")
    if inputs:
        yield _inputs(inputs)
    defaults = {name: _value(value) for name, value in Config().flat().items()}
    values = [(name, _value(value)) for name, value in report["config"].items()]
    changed = [(name, value) for name, value in values if value != defaults.get(name, _value(None))]
    title = "Settings that differ from their defaults or are derived from the input; report --json lists all"
    yield Table.of(title, "setting, value", changed[:_MAX_ROWS])
    yield Table.of("Versions and fingerprints", "name, value", _versions_and_digests(report))
    stored = report.get("storage")
    if stored:
        yield _storage(stored)
    verification = report.get("verification")
    if verification:
        yield (
            f"Verification: the features of {verification['n_rows']:,} rows were read back and recomputed in "
            f"float64. They differ by at most {number(verification['largest_difference'])}."
        )
    yield "index.h5 contains the BLAKE3 digest of every part."


def _inputs(inputs: Mapping[str, Any]) -> Table:
    rows = [
        ("shards", inputs["n_shards"]),
        ("rows", inputs["n_rows"]),
        ("size of the rows", size(inputs["n_bytes"])),
        ("dataset", cut(inputs["dataset"], 80)),
        ("columns", cut(inputs.get("columns", "-"), 120)),
        ("dtype", cut(inputs["dtype"], 40)),
        ("extras", cut(", ".join(inputs.get("extras", [])) or "none", 200)),
        ("files", ", ".join(path(file) for file in inputs["files"])),
    ]
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


def _versions_and_digests(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("device", cut(report["summary"]["device"], 200))]
    for values, most in ((report.get("versions", {}), 40), (report.get("fingerprints", {}), 80)):
        found += [(name, cut(value, most)) for name, value in list(values.items())[:_MAX_ROWS]]
    return found + [(name, cut(report[name])) for name in ("command", "made") if name in report]


def _storage(stored: Mapping[str, Any]) -> str:
    form = stored["dtype"]
    if stored["compression"] != "none":
        form = f"{form}, {stored['compression']}"
    rounding = ""
    if stored["max_error"]:
        rounding = f"; rounding changes them by at most {number(stored['max_error'])}"
    return f"Storage: the features take {size(stored['n_bytes'])} as {cut(form, 40)}{rounding}."
