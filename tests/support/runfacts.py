"""Facts about a run, which tests change in a few fields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from shardpress.result.facts import (
    Append,
    BadDataFacts,
    BadFiles,
    BadRows,
    ClusterFacts,
    InputFacts,
    Judgment,
    Memory,
    OneRun,
    RowCheck,
    RunDetails,
    ScanFacts,
    StorageFacts,
    Summary,
    WarningFacts,
)
from shardpress.result.records import ModelFacts, Request, RowsFacts, RunFacts

SUMMARY = Summary(
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
JUDGMENT = Judgment(is_good=True, error="", outlier="", classifier="", explained="", suggestion="")
NOTHING_BAD = BadDataFacts(BadFiles(0, []), BadRows(0, []), 0)
NO_WARNINGS = WarningFacts(0, [])
_MODEL = ModelFacts(key="model", run=1, source="trained", scan=ScanFacts("range"))
_ROWS = RowsFacts(
    config={},
    request=Request([], {}, {}, {}),
    key="features",
    storage=StorageFacts("float32", "none", 0.0, 3600),
    bad_shards=[],
    inputs=InputFacts(1, 900, 3600, "X", "<f4", [900, 20], "20", [], ["/in/0.h5"]),
    bad=NOTHING_BAD,
    drift=None,
    sample=None,
    sample_run=1,
    verification=RowCheck(),
    verification_run=1,
)
_RUN = OneRun(
    number=1,
    made="2000-01-01 00:00:00+00:00",
    command="shardpress run",
    device="cpu",
    versions={},
    seconds={"scan": 1.0},
    compiling=0.0,
    generation=1,
    source="trained",
    n_rows=900,
    n_bad=0,
    cost=0.2,
    changed={},
)
_DETAILS = RunDetails(
    host="node",
    directory="/out",
    device={},
    stages={},
    cluster=ClusterFacts("threads", []),
    memory=Memory(2**20),
    taken_over=[],
    warnings=NO_WARNINGS,
)


def run_facts(appends: Sequence[Append] = (), **fields: Any) -> RunFacts:
    """Return facts about a run without warnings, and appends, with other values of some fields of any of them."""
    runs = [_RUN]
    for append in appends:
        runs.append(structs.replace(_RUN, number=len(runs) + 1, source="kept", append=append))
    return changed_facts(RunFacts(_MODEL, _ROWS, runs, _DETAILS), **fields)


def changed_facts(facts: RunFacts, **fields: Any) -> RunFacts:
    """Return facts with other values of some fields of the model, the rows, the last run and its details."""
    *earlier, last = facts.runs
    return RunFacts(
        _changed(facts.model, fields),
        _changed(facts.rows, fields),
        [*earlier, _changed(last, fields)],
        _changed(facts.details, fields),
    )


def _changed(struct: Any, fields: dict[str, Any]) -> Any:
    names = type(struct).__struct_fields__
    return structs.replace(struct, **{name: value for name, value in fields.items() if name in names})
