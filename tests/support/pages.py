"""Build the largest possible report, and parse a page as a browser does."""

from __future__ import annotations

import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from msgspec import structs

from shardpress.hdf5.shard import Block
from shardpress.model.about import About, BaselineErrors, Epoch, TrainingFacts
from shardpress.model.encoder import Model
from shardpress.model.labels import LabelChoice
from shardpress.model.scaler import Scaler
from shardpress.report.judgment import judge
from shardpress.report.measures import measure
from shardpress.report.overview import input_facts
from shardpress.report.page.build import html_of, page_of
from shardpress.report.sampling import PartSource, Sample, SampleSpec, draw_sample
from shardpress.report.summary import Report
from shardpress.result.facts import (
    Append,
    BadDataFacts,
    BadFile,
    BadFiles,
    BadRow,
    BadRows,
    ClusterFacts,
    ColumnDrift,
    Drift,
    SampleFacts,
    ShardDrift,
    StageFacts,
    WarningFacts,
    Work,
    WorkerFacts,
)
from shardpress.settings.config import Config
from shardpress.shards.open import open_shards
from shardpress_kernels.network import Network
from tests.support.runfacts import SUMMARY, run_facts

EMPTY = {"meta", "br", "link", "img", "hr", "input"}


def model_of(n_inputs: int, n_features: int) -> Model:
    """Return a model with random weights."""
    network = Network((n_inputs, n_features), code="linear")
    rng = np.random.default_rng(0)
    weights = {name: (rng.normal(size=shape) / n_inputs).astype(np.float32) for name, shape in network.shapes.items()}
    return Model(Scaler(np.zeros(n_inputs), np.ones(n_inputs)), network, weights)


def make_parts(folder: Path, model: Model, rows: np.ndarray, part_rows: int, **extras: Any) -> list[PartSource]:
    """Write a shard of rows with extras, and return parts of their features. Rows with NaN are bad."""
    with h5py.File(folder / "rows.h5", "w") as file:
        file["X"] = rows
        for name, values in extras.items():
            file[name] = values
    (shard,) = open_shards([str(folder / "rows.h5")])
    parts = []
    for start in range(0, len(rows), part_rows):
        block = Block(shard, start, min(start + part_rows, len(rows)))
        path = folder / f"part-{start}.h5"
        flat = rows[start : block.stop].reshape(len(block), -1)
        with h5py.File(path, "w") as file:
            file["valid"] = np.isfinite(flat).all(axis=1)
            file["features"] = model.encode(np.asarray(flat, np.float64)).astype(np.float32)
            for name, values in extras.items():
                file[name] = values[start : block.stop]
        everything = np.ones(len(block), dtype=bool)
        parts.append(PartSource(block, path, 0, everything, everything))
    return parts


def measured(model: Model, parts: list[PartSource]) -> tuple[Sample, SampleFacts]:
    """Return the sample of parts, and measurements of it."""
    spec = SampleSpec(model)
    sample = draw_sample(parts, spec)
    assert sample is not None
    return sample, measure(sample, parts, spec, LabelChoice())


def largest(folder: Path) -> Report:
    """Return a report on noisy colour images, with long names, many epochs and every kind of warning."""
    rng = np.random.default_rng(0)
    model = replace(model_of(32 * 32 * 3, 256), about=About({"nested": True}))
    n = 200
    names = [f"{i}<script>&\"' " + "x" * 200 for i in range(40)]
    parts = make_parts(
        folder, model, rng.random((n, 32, 32, 3), np.float32), n, y=np.array([names[i % 40] for i in range(n)], "S")
    )
    seconds = {"scan": 1e5, "training": 1e6, "encoding": 1e5, "report": 2.0}
    summary = structs.replace(
        SUMMARY, n_rows=10**12, n_inputs=32 * 32 * 3, n_features=256, n_components=256, n_bad=10**9, n_parts=10**6
    )
    summary = structs.replace(summary, n_outside=10**9, cost=0.02, components=0.01, mean=0.1, device="x" * 999)
    summary = structs.replace(summary, seconds=seconds)
    shard = BadFile("f<b>" * 999, "r" * 9999)
    row = BadRow("f" * 999, "X", 10**12, 9, None, "<nan>" * 99)
    config = {**Config().flat(), "input": ["/a/long/path" * 20] * 10_000}
    shares = {"device": 0.25, "processor": 0.25, "disk": 0.25, "other": 0.25}
    work = Work(10**6, 10**12, 1e5)
    worker = WorkerFacts(
        "w<b>" * 99, "h" * 999, 10**6, "cuda<0>" * 99, dict.fromkeys(("scan", "training", "encoding"), work)
    )
    column = ColumnDrift(10**5, "n<b>" * 99, 1e300, -1e-300, 1e300, 10**12, 1e300, 10**6)
    _, sample = measured(model, parts)
    facts = run_facts(
        [Append(1, 0, 0, 9, 1, None)] * 1000,
        config=config,
        made="now",
        command="extract.py " + "/a/path " * 10_000,
        versions={"python": "3.11"},
        seconds=seconds,
        changed={"input": ("i<b>" * 999, "i" * 999)},
        host="h<b>" * 99,
        directory="/d<b>" * 99,
        inputs=input_facts([parts[0].block.shard]),
        stages=dict.fromkeys(seconds, StageFacts(1e5, 1e5, 2, shares, 10**12, 10**15)),
        cluster=ClusterFacts("scheduler", [worker] * 1000, "tls:" * 99),
        taken_over=["the scan"],
        warnings=WarningFacts(999, ["w<i>" * 9999] * 50),
        bad=BadDataFacts(BadFiles(10**6, [shard] * 10), BadRows(10**9, [row] * 10), 0),
        drift=Drift(
            on_drift="pass",
            n_rows=10**12,
            n_outside=10**11,
            n_columns=10**4,
            n_shards=10**6,
            is_whole=False,
            columns=[column] * 10,
            shards=[ShardDrift("f<b>" * 999, 10**9, 10**8)] * 10,
        ),
        sample=sample,
    )
    history = [Epoch(i, 0.1 / (i + 1), 0.2, 1.0) for i in range(10_000)]
    training = TrainingFacts(0, history, 0.1, sample.units, BaselineErrors(256, 10**12, 0.01, 0.1, is_worse=True))
    return Report(facts, "0" * 64, training, None, summary, judge(summary, sample, Config()))


class Parsed(HTMLParser):
    """Elements of a page in their order, each with its attributes, its parents and the text directly in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...], list[str]]] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        words: list[str] = []
        self.elements.append((tag, dict(attributes), tuple(name for name, _ in self._open), words))
        if tag not in EMPTY:
            self._open.append((tag, words))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes), tuple(name for name, _ in self._open), []))

    def handle_endtag(self, tag: str) -> None:
        name, _ = self._open.pop()
        assert name == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self._open[-1][1].append(data)

    def named(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        """Return the attributes of each element of a tag, and the text that is directly in the element."""
        return [(attributes, "".join(words).strip()) for name, attributes, _, words in self.elements if name == tag]


def main(target: str) -> None:
    """Write the largest possible page, for `make report-check`."""
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        path.write_text(html_of(page_of(largest(Path(folder))), "0" * 64))


if __name__ == "__main__":
    main(sys.argv[1])
