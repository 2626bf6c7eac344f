"""How the night went: what changed since the last run, where the time went, what to type next, settings and digests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pipeline.report.page.document import Command, Item, Section, Table
from pipeline.report.page.pictures import bars
from pipeline.report.page.words import count, cut, duration, number, path, percent, size
from pipeline.settings.config import Config

__all__ = ["change", "settings", "steps", "time_spent"]

_OF_ONE_NIGHT = ("overwrite", "restart", "quiet", "verbose")  # what is said of a run, and not of its results
_HEADS = "stage, time, rows, bytes, cores busy, waited for"
_SHOWN = 0.01  # of the time
_SLOWEST = 10  # workers; report.json has all
_STAGES = ["scan", "training", "encoding"]  # that workers take part in
_MOST = 40  # lines of a table whose length a run decides


def change(report: Mapping[str, Any]) -> Section | None:
    """What changed against the last run in this output; None without one."""
    last = report.get("last")
    if not last:
        return None
    before, now = last["summary"], report["summary"]
    numbers = {
        "rows": ("n_rows", count),
        "columns": ("n_inputs", count),
        "features": ("n_features", count),
        "bad rows": ("n_bad", count),
        "rows outside the model's range": ("n_outside", count),
        "mean squared error": ("cost", number),
        "that of principal components": ("components", number),
    }
    rows = [
        (name, *(spelled(side[key]) if side.get(key) is not None else "-" for side in (before, now)))
        for name, (key, spelled) in numbers.items()
    ]
    rows.append(("time", *(duration(sum(side["seconds"].values())) for side in (before, now))))
    items: list[Item] = [
        Table.of(f"The run of {cut(last.get('made', 'before'), 30)}, and this one", ", then, now", rows)
    ]
    was, is_now = last.get("config", {}), report["config"]
    names = [name for name in is_now if was.get(name) != is_now[name] and name not in _OF_ONE_NIGHT]
    differ = [(name, _value(was.get(name)), _value(is_now[name])) for name in names]
    if differ:
        items.append(Table.of("Settings that differ", "setting, then, now", differ[:_MOST]))
    return Section("What changed since the last run here", tuple(items))


def time_spent(report: Mapping[str, Any]) -> Section:
    """Where the night went."""
    seconds, stages = report["summary"]["seconds"], report.get("stages", {})
    items: list[Item] = []
    if seconds:
        items.append(bars("Time by stage", seconds, duration))
    cluster = report.get("cluster") or {}
    if rows := [*_stages(stages), *_epochs(report)]:
        alone = "; what cores did and waited for is the driver's share" if cluster.get("workers") else ""
        items.append(Table.of(f"Rates{alone}", _HEADS, rows))
        items += _peak(report)
    items += _workers(cluster)
    for sitting in report.get("sittings", []):
        title = f"The sitting before, that ended {cut(sitting['made'], 30)}"
        items.append(Table.of(title, _HEADS, [*_stages(sitting["stages"])]))
    return Section("Where the night went", tuple(items))


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, stage in stages.items():
        rates = _rates(stage["n_rows"], stage["n_bytes"], stage["seconds"])
        yield (name, duration(stage["seconds"]), *rates, _busy(stage), _bound(stage))


def _peak(report: Mapping[str, Any]) -> Iterator[str]:
    if peak := report.get("memory", {}).get("peak_bytes"):
        yield f"The process took {size(peak)} of memory at most."


def _workers(cluster: Mapping[str, Any]) -> Iterator[Table]:
    """Who has done how much, those first that were slowest: they are what a night waits for."""
    if not (workers := cluster.get("workers")):
        return
    stages = sorted({name for worker in workers for name in worker["stages"]}, key=_STAGES.index)
    last = stages[-1] if stages else ""
    rows = [
        (
            *(cut(words, 40) for words in (f"{worker['name']} on {worker['host']}", worker["device"] or "-")),
            *_done(worker["stages"], stages),
        )
        for worker in sorted(workers, key=lambda worker: _pace(worker["stages"].get(last)))
    ]
    which = "" if len(rows) <= _SLOWEST else f": the {_SLOWEST} slowest of {count(len(rows))}"
    heads = ", ".join(["worker, device, tasks", *stages])
    yield Table.of(f"Workers, and their rows a second{which}", heads, rows[:_SLOWEST])


def _done(done: Mapping[str, Mapping[str, Any]], stages: Sequence[str]) -> Iterator[str]:
    yield count(sum(one["n_tasks"] for one in done.values()))
    for name in stages:
        yield count(_pace(done[name])) if name in done else "-"


def _pace(done: Mapping[str, Any] | None) -> float:
    """Rows a second."""
    return done["n_rows"] / max(done["seconds"], 1e-9) if done else 0.0


def _epochs(report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """The epochs alone, of all sittings: without what compiles and without what looks at their result."""
    history, inputs = report.get("training", {}).get("history"), report.get("inputs")
    if not history or not inputs:
        return
    share = len(history) * (1 - report["config"]["validation_fraction"])
    seconds = sum(epoch["seconds"] for epoch in history)
    rates = _rates(share * inputs["n_rows"], share * inputs["n_bytes"], seconds)
    words = "1 epoch" if len(history) == 1 else f"{count(len(history))} epochs"
    yield (words, duration(seconds), *rates, "-", "-")


def _rates(n_rows: float, n_bytes: float, seconds: float) -> tuple[str, str]:
    if not n_rows or seconds <= 0:
        return "-", "-"
    return f"{count(n_rows / seconds)} rows/s", f"{size(n_bytes / seconds)}/s"


def _busy(stage: Mapping[str, Any]) -> str:
    """How much of the processor's cores a stage has used."""
    share = min(1.0, stage["processor_seconds"] / max(stage["seconds"] * stage["n_cores"], 1e-9))
    return percent(share)


def _bound(stage: Mapping[str, Any]) -> str:
    """What a stage has waited for, and in how much of its time: the device, the processor or the disk."""
    shares = stage.get("bound_by") or {}  # a stage of a second is too short to tell
    most_first = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in most_first if share >= _SHOWN) or "-"


def steps(report: Mapping[str, Any]) -> Section:
    """What to type next."""
    output = shlex.quote(cut(report["config"]["output"], 120))
    commands: list[Item] = []
    if (report.get("sample") or {}).get("probe"):
        commands.append(Command("Train a classifier on the features", f"shardpress classify --features {output}"))
    if report["config"].get("model") is None:
        line = f"shardpress run --model {output} --input NEW --output {output}-new"
        commands.append(Command("Encode other shards with this model", line))
    opened = (
        f"from shardpress import open_features; print(open_features({json.dumps(cut(report['config']['output']))}))"
    )
    commands.append(Command("Open the features", f"python -c {shlex.quote(opened)}"))
    return Section("The next step", tuple(commands))


def settings(report: Mapping[str, Any]) -> Section:
    """Settings, versions, digests."""
    items = [*_inputs(report), *_settings(report["config"]), *_provenance(report)]
    return Section("Settings, versions, digests", tuple(items))


def _inputs(report: Mapping[str, Any]) -> Iterator[Item]:
    if not (inputs := report.get("inputs")):
        return
    rows = [
        ("shards", count(inputs["n_shards"])),
        ("rows", count(inputs["n_rows"])),
        ("bytes of rows", size(inputs["n_bytes"])),
        ("dataset", cut(inputs["dataset"], 80)),
        ("columns", cut(inputs.get("columns", "-"), 120)),
        ("stored as", cut(inputs["dtype"], 40)),
        ("riding along", cut(", ".join(inputs["riders"]) or "nothing", 200)),
        ("files", cut(", ".join(path(file) for file in inputs["files"]), 300)),
    ]
    yield Table.of("Input", "what, value", rows)


def _settings(config: Mapping[str, Any]) -> Iterator[Item]:
    usual = {each.name: each.default for each in fields(Config)}
    other = [(name, _value(value)) for name, value in config.items() if _value(value) != _value(usual.get(name))]
    as_usual = [(name, _value(value)) for name, value in config.items() if _value(value) == _value(usual.get(name))]
    yield Table.of(
        "Settings that differ from their defaults, or follow from the inputs", "setting, value", other[:_MOST]
    )
    yield Table.of("Settings at their defaults", "setting, value", as_usual[: 2 * _MOST])


def _provenance(report: Mapping[str, Any]) -> Iterator[Item]:
    rows = [("device", cut(report["summary"]["device"], 200))]
    rows += [(name, cut(version, 40)) for name, version in list(report.get("versions", {}).items())[:_MOST]]
    rows += [(name, cut(digest, 80)) for name, digest in list(report.get("fingerprints", {}).items())[:_MOST]]
    rows += [(key, cut(report[key], 300)) for key in ("command", "made") if key in report]
    yield Table.of("Versions and digests", "what, value", rows)
    if stored := report.get("storage"):
        moved = f"; rounding moves them by {number(stored['max_error'])} at most" if stored["max_error"] else ""
        how = stored["dtype"] if stored["compression"] == "none" else f"{stored['dtype']}, {stored['compression']}"
        yield f"Stored: the features take {size(stored['n_bytes'])} as {cut(how, 40)}{moved}."
    if found := report.get("verification"):
        yield (
            f"Verified: the features of {count(found['n_rows'])} rows, read back from their files, differ from those "
            f"that float64 gives by {number(found['largest_difference'])} at most."
        )
    yield "The BLAKE3 digest of every file stands in manifest.json."


def _value(value: object) -> str:
    if isinstance(value, (list, tuple)):
        shown = ", ".join(map(str, value[:5])) or "none"
        return cut(f"{shown} and {len(value) - 5} more" if len(value) > 5 else shown, 200)
    return cut("none" if value is None else value, 200)
