"""Facts about a run, which tests change in a few fields."""

from __future__ import annotations

from typing import Any

from shardpress.result.facts import (
    BadDataFacts,
    BadFiles,
    BadRows,
    ClusterFacts,
    InputFacts,
    Judgment,
    Memory,
    ReportFacts,
    RowCheck,
    ScanFacts,
    StorageFacts,
    Summary,
    WarningFacts,
)
from shardpress.result.records import Keys, Request, RunFacts

SUMMARY = Summary(
    output="out",
    n_rows=900,
    n_inputs=20,
    n_features=8,
    n_bad=0,
    n_parts=1,
    device="cpu",
    cost=0.2,
    seconds={"scan": 1.0},
    n_bad_shards=0,
    n_outside=0,
    components=0.8,
    mean=1.0,
    outlier=None,
    compiling=0.0,
    gave_up="",
    kept_start="",
    n_components=8,
    appended=None,
    verdict=None,
)
REPORT = ReportFacts(
    host="node",
    directory="/out",
    device={},
    inputs=InputFacts(1, 900, 3600, "X", "<f4", [900, 20], "20", [], ["/in/0.h5"]),
    stages={},
    cluster=ClusterFacts("threads", []),
    memory=Memory(2**20),
    taken_over=[],
    warnings=WarningFacts(0, []),
    bad=BadDataFacts(BadFiles(0, []), BadRows(0, []), 0),
    last=None,
    sample=None,
    judgment=Judgment(is_good=True, error="", outlier="", classifier="", explained="", suggestion=""),
    scan=ScanFacts("range"),
    drift=None,
)


def run_facts(**fields: Any) -> RunFacts:
    """Return facts about a run without warnings, with other values of some fields."""
    defaults: dict[str, Any] = {
        "config": {},
        "request": Request([], {}, {}, {}),
        "keys": Keys("model", "features"),
        "made": "2000-01-01 00:00:00+00:00",
        "command": "shardpress run",
        "device": "cpu",
        "versions": {},
        "storage": StorageFacts("float32", "none", 0.0, 3600),
        "bad_shards": [],
        "summary": SUMMARY,
        "verification": RowCheck(),
        "report": REPORT,
    }
    return RunFacts(**{**defaults, **fields})
