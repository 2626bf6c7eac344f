"""The sections about the run: changes since the last run, times, settings and digests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.words import count, cut, number, path, percent
from shardpress.settings.config import Config
from shardpress.text import exact_duration, size

_NOT_OF_RESULTS = ("overwrite", "restart", "quiet", "verbose")  # settings that do not affect results
_HEADS = "stage, time, rows, bytes, CPU use, waiting for"
_MIN_SHARE = 0.01  # smaller shares of a stage's time are not listed
_MAX_WORKERS = 10  # report --json lists all workers
_STAGES = ["scan", "training", "encoding"]  # stages that run on workers
_MAX_ROWS = 40  # rows of a table whose length depends on the run
_MAX_VALUES = 5  # values of a setting that is a list

_SUMMARY = {
    "rows": ("n_rows", count),
    "columns": ("n_inputs", count),
    "features": ("n_features", count),
    "bad rows": ("n_bad", count),
    "rows outside the model's range": ("n_outside", count),
    "mean squared error": ("cost", number),
    "mean squared error of principal components": ("components", number),
}
"""Names of the lines that compare two runs, with the key in the summary and the function that formats the value."""


# -- the last run --------------------------------------------------------------------------------------------------


def change(report: Mapping[str, Any]) -> Section | None:
    """Return the section that compares this run with the last run, or None if the report describes no last run."""
    last = report.get("last")
    if not last:
        return None
    title = f"Results of the previous run ({cut(last.get('made', 'date unknown'), 30)}) and of this run"
    items = [Table.of(title, "quantity, previous run, this run", _changed_numbers(last["summary"], report["summary"]))]
    rows = _changed_settings(last.get("config", {}), report["config"])
    if rows:
        items.append(Table.of("Changed settings", "setting, previous run, this run", rows[:_MAX_ROWS]))
    return Section("Comparison with the previous run", tuple(items))


def _changed_numbers(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for name, (key, to_text) in _SUMMARY.items():
        rows.append((name, _text_or_dash(before.get(key), to_text), _text_or_dash(now.get(key), to_text)))
    rows.append(("time", _total_time(before), _total_time(now)))
    return rows


def _text_or_dash(value: Any, to_text: Callable[[Any], str]) -> str:
    if value is None:
        return "-"
    return to_text(value)


def _total_time(summary: Mapping[str, Any]) -> str:
    return exact_duration(sum(summary["seconds"].values()))


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    changed = [name for name in now if before.get(name) != now[name] and name not in _NOT_OF_RESULTS]
    return [(name, _value(before.get(name)), _value(now[name])) for name in changed]


# -- times ---------------------------------------------------------------------------------------------------------


def time_spent(report: Mapping[str, Any]) -> Section:
    """Return the section about the times of stages and of workers."""
    cluster = report.get("cluster") or {}
    items: list[Item] = []
    rows = [*_stages(report.get("stages", {})), *_epochs(report)]
    if rows:
        title = "Throughput by stage"
        if cluster.get("workers"):
            title = "Throughput by stage; CPU use and waiting are the driver's share"
        items.append(Table.of(title, _HEADS, rows))
    peak = report.get("memory", {}).get("peak_bytes")
    if peak:
        items.append(f"Peak memory of the process: {size(peak)}.")
    items += _workers(cluster)
    return Section("Run time", tuple(items))


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, stage in stages.items():
        rates = _rates(stage["n_rows"], stage["n_bytes"], stage["seconds"])
        yield name, exact_duration(stage["seconds"]), *rates, _busy(stage), _waited_for(stage)


def _epochs(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
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
    rates = _rates(n_passes * inputs["n_rows"], n_passes * inputs["n_bytes"], seconds)
    name = "1 epoch" if n_epochs == 1 else f"{count(n_epochs)} epochs"
    yield name, exact_duration(seconds), *rates, "-", "-"


def _rates(n_rows: float, n_bytes: float, seconds: float) -> tuple[str, str]:
    if not n_rows or seconds <= 0:
        return "-", "-"
    return f"{count(n_rows / seconds)} rows/s", f"{size(n_bytes / seconds)}/s"


def _busy(stage: Mapping[str, Any]) -> str:
    """Return the share of the processor's cores that a stage has used."""
    available = max(stage["seconds"] * stage["n_cores"], 1e-9)
    return percent(min(1.0, stage["processor_seconds"] / available))


def _waited_for(stage: Mapping[str, Any]) -> str:
    """Return the shares of a stage's time that it spent waiting for the device, the processor or the disk."""
    shares = stage.get("bound_by") or {}  # unknown for short stages
    most_first = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in most_first if share >= _MIN_SHARE) or "-"


def _workers(cluster: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of workers. The slowest workers come first, because the run waits for them."""
    workers = cluster.get("workers")
    if not workers:
        return
    stages = sorted({name for worker in workers for name in worker["stages"]}, key=_STAGES.index)
    last_stage = (stages or [""])[-1]
    slowest_first = sorted(workers, key=lambda worker: _pace(worker["stages"].get(last_stage)))
    rows = [_worker(worker, stages) for worker in slowest_first[:_MAX_WORKERS]]
    yield Table.of(_title_of_workers(len(workers)), ", ".join(["worker, device, tasks", *stages]), rows)


def _title_of_workers(n: int) -> str:
    title = "Workers and their rows per second"
    if n > _MAX_WORKERS:
        title = f"{title}: the {_MAX_WORKERS} slowest of {count(n)}"
    return title


def _worker(worker: Mapping[str, Any], stages: Sequence[str]) -> tuple[str, ...]:
    work = worker["stages"]
    n_tasks = sum(stage["n_tasks"] for stage in work.values())
    paces = [_text_or_dash(work.get(name), lambda stage: count(_pace(stage))) for name in stages]
    name = cut(f"{worker['name']} on {worker['host']}", 40)
    return name, cut(worker["device"] or "-", 40), count(n_tasks), *paces


def _pace(stage: Mapping[str, Any] | None) -> float:
    """Return rows per second of a worker."""
    if not stage:
        return 0.0
    return stage["n_rows"] / max(stage["seconds"], 1e-9)


# -- settings and digests ------------------------------------------------------------------------------------------


def settings(report: Mapping[str, Any]) -> Section:
    """Return the section about inputs, settings, versions and digests."""
    items = [*_inputs(report.get("inputs")), *_settings(report["config"]), *_provenance(report)]
    return Section("Settings", tuple(items))


def _inputs(inputs: Mapping[str, Any] | None) -> Iterator[Item]:
    if not inputs:
        return
    extras = inputs.get("extras", [])
    files = ", ".join(path(file) for file in inputs["files"])
    rows = [
        ("shards", count(inputs["n_shards"])),
        ("rows", count(inputs["n_rows"])),
        ("size of the rows", size(inputs["n_bytes"])),
        ("dataset", cut(inputs["dataset"], 80)),
        ("columns", cut(inputs.get("columns", "-"), 120)),
        ("dtype", cut(inputs["dtype"], 40)),
        ("extras", cut(", ".join(extras) or "none", 200)),
        ("files", cut(files, 300)),
    ]
    yield Table.of("Input", "quantity, value", rows)


def _settings(config: Mapping[str, Any]) -> Iterator[Item]:
    defaults = {name: _value(value) for name, value in Config().flat().items()}
    rows = [(name, _value(value)) for name, value in config.items()]
    changed = [row for row in rows if row[1] != defaults.get(row[0], _value(None))]
    title = "Settings that differ from their defaults or are derived from the input; report --json lists all"
    yield Table.of(title, "setting, value", changed[:_MAX_ROWS])


def _value(value: object) -> str:
    if value is None:
        return "none"
    if not isinstance(value, (list, tuple)):
        return cut(value, 200)
    values = ", ".join(map(str, value[:_MAX_VALUES])) or "none"
    if len(value) > _MAX_VALUES:
        values = f"{values} and {len(value) - _MAX_VALUES} more"
    return cut(values, 200)


def _provenance(report: Mapping[str, Any]) -> Iterator[Item]:
    yield Table.of("Versions and fingerprints", "name, value", _versions_and_digests(report))
    if report.get("storage"):
        yield _storage(report["storage"])
    verification = report.get("verification")
    if verification:
        yield (
            f"Verification: the features of {count(verification['n_rows'])} rows were read back and recomputed in "
            f"float64. They differ by at most {number(verification['largest_difference'])}."
        )
    yield "index.h5 contains the BLAKE3 digest of every part."


def _versions_and_digests(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        ("device", cut(report["summary"]["device"], 200)),
        *_cut_values(report.get("versions", {}), 40),
        *_cut_values(report.get("fingerprints", {}), 80),
        *_cut_values({key: report[key] for key in ("command", "made") if key in report}, 300),
    ]


def _cut_values(values: Mapping[str, object], most: int) -> list[tuple[str, str]]:
    return [(name, cut(value, most)) for name, value in list(values.items())[:_MAX_ROWS]]


def _storage(stored: Mapping[str, Any]) -> str:
    form = stored["dtype"]
    if stored["compression"] != "none":
        form = f"{form}, {stored['compression']}"
    rounding = ""
    if stored["max_error"]:
        rounding = f"; rounding changes them by at most {number(stored['max_error'])}"
    return f"Storage: the features take {size(stored['n_bytes'])} as {cut(form, 40)}{rounding}."
