"""Tests of the report page: one small file that loads nothing, describes each picture, and escapes all text."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from shardpress.report.judgment import judge
from shardpress.report.page.build import html_of, is_current, page_bytes, page_of, text_of
from shardpress.report.page.document import Figure, Table
from shardpress.report.page.quality import quality
from shardpress.report.page.run import time_spent
from shardpress.report.page.svg import COMPARED, FEATURES, LABELS
from shardpress.report.page.verdict import action_needed, verdict
from shardpress.report.words import cut, path
from shardpress.result import Result
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import Parsed, largest

BACKGROUNDS = ("#ffffff", "#14181d")
DIGEST = "0a" * 32
NO_WARNINGS = {"n": 0, "first": []}
SUMMARY = {
    **{"n_rows": 10, "n_inputs": 9, "n_features": 4, "seconds": {"scan": 1.0}, "device": "cpu"},
    **{"cost": 0.5, "components": 0.7, "mean": 1.0},
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return json.loads(json.dumps(largest(tmp_path_factory.mktemp("largest"))))


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return html_of(page_of(report), DIGEST)


def test_page_size_is_bounded(html: str) -> None:
    assert len(html.encode()) <= 160_000


def test_page_makes_no_request_and_runs_no_script(html: str) -> None:
    parsed = Parsed(html)
    tags = {tag for tag, *_ in parsed.elements}
    assert tags & {"script", "link", "img", "iframe", "object", "base", "form"} == set()
    for tag, attributes, _, _ in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                assert (value or "").startswith("data:image/png;base64,")
    (_, style), *others = parsed.named("style")
    assert others == []
    assert re.search(r"url\(|@import|expression", style) is None


def test_pictures_have_unique_names_and_descriptions(html: str) -> None:
    parsed = Parsed(html)
    ids = [attributes["id"] for _, attributes, _, _ in parsed.elements if "id" in attributes]
    assert [name for name, n in Counter(ids).items() if n > 1] == []
    pictures = parsed.named("svg")
    assert len(pictures) >= 8
    words = {
        attributes["id"]: text for tag in ("title", "desc") for attributes, text in parsed.named(tag) if attributes
    }
    for attributes, _ in pictures:
        assert attributes["role"] == "img"
        title, description = (words[name] for name in (attributes["aria-labelledby"] or "").split())
        assert title
        assert len(description) > len("123 rows")
    parents = [
        around for tag, _, around, _ in parsed.elements if tag in ("path", "rect", "polyline", "image", "circle")
    ]
    assert all("svg" in around for around in parents)


def test_tables_and_headings_are_well_formed(html: str) -> None:
    parsed = Parsed(html)
    assert len(parsed.named("table")) == len(parsed.named("caption")) == len(parsed.named("thead"))
    assert all(text for _, text in parsed.named("caption"))
    assert all(attributes.get("scope") in ("row", "col") and text for attributes, text in parsed.named("th"))
    assert [tag for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)][:2] == ["h1", "h2"]
    assert {tag for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)} == {"h1", "h2"}


def test_text_that_begins_with_a_number_is_wrapped() -> None:
    """Otherwise a table of such texts would be wider than any screen."""
    table = Table.of(
        "", "rate, columns", [("1,000,000 rows/s", "7 temperature (1,000 values)"), ("-", "8 x (2 values)")]
    )
    assert table.are_numbers == [True, False]


def test_attention_section_comes_first_and_is_bounded(report: dict[str, Any]) -> None:
    first, second, *_ = page_of(report).sections
    assert (first.title, second.title) == (action_needed(report).title, quality(report).title)
    captions = [item.caption for item in first.items if isinstance(item, Table)]
    assert [re.findall(r"[\d,]+", caption) for caption in captions] == [
        ["10", "1,000,000,000"],  # bad rows
        ["10", "1,000,000"],  # bad shards
        ["10", "10,000"],  # drift by column
        ["10", "1,000,000"],  # drift by shard
    ]
    assert " 999 " in page_of(report).verdict


def test_attention_section_is_empty_only_without_tables(report: dict[str, Any]) -> None:
    """A few rows outside the range cause no warning, but are listed in a table."""
    good = {"judgment": {**report["judgment"], "is_good": True}}
    without_warnings = report | good | {"warnings": NO_WARNINGS, "bad": {}, "taken_over": []}
    (nothing,) = page_of(without_warnings | {"drift": None}).sections[0].items
    assert isinstance(nothing, str)
    assert nothing not in page_of(without_warnings).sections[0].items


def test_shortened_training_and_reused_stages_are_listed_once(report: dict[str, Any]) -> None:
    shortened = "Trained 17 of 20 epochs to end by 06:00."
    summary = report["summary"] | {"gave_up": shortened}
    text = text_of(page_of(report | {"summary": summary, "taken_over": ["scan-of-17-shards"]}))
    assert [text.count(words) for words in (shortened, "scan-of-17-shards")] == [1, 1]


def test_text_contains_the_numbers_of_every_picture(report: dict[str, Any]) -> None:
    page = page_of(report)
    text = text_of(page)
    figures = [item for section in page.sections for item in section.items if isinstance(item, Figure)]
    for figure in figures:
        assert figure.table.caption in " ".join(text.split())
    assert all(line.isprintable() for line in text.splitlines())


def test_colours_have_contrast_on_light_and_dark_backgrounds() -> None:
    low_contrast = [
        (one, other) for one in (FEATURES, COMPARED, *LABELS) for other in BACKGROUNDS if contrast(one, other) < 3
    ]  # WCAG 2.2, 1.4.11
    assert low_contrast == []


def contrast(*colours: str) -> float:
    """Return the contrast as defined by WCAG 2.2."""
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_failure_to_build_the_page_is_reported_in_it(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    result = Mock(spec=Result, digest=DIGEST)
    result.report.return_value = {"summary": {"n_rows": "<b>"}}
    path = tmp_path / "report.html"
    path.write_bytes(page_bytes(result))
    assert "report --json" in path.read_text()
    assert "report.html" in caplog.text
    assert is_current(path, DIGEST)  # otherwise each run would build it again
    Parsed(path.read_text())


def test_page_of_another_index_is_recognized(html: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert not is_current(path, DIGEST)
    path.write_text(html)
    assert is_current(path, DIGEST)
    assert not is_current(path, "0b" * 32)


def test_page_says_what_each_stage_waited_for(report: dict[str, Any]) -> None:
    stage = {"seconds": 10.0, "processor_seconds": 12.0, "n_cores": 2, "n_rows": 40, "n_bytes": 640}
    shares = {"device": 0.0, "processor": 0.15, "disk": 0.845, "other": 0.005}
    stages = {"scan": {**stage, "bound_by": shares}, "training": {**stage, "bound_by": {}}, "encoding": stage}
    page = html_of(page_of({**report, "stages": stages}), DIGEST)
    assert page.count("disk 84 %, processor 15 %<") == 1  # the bottleneck of the other stages is unknown
    assert page.count(">60 %<") == 3
    Parsed(page)


def test_workers_are_listed_slowest_first(report: dict[str, Any]) -> None:
    """A worker that died has no device, and a worker that joined late has no scan time."""
    worker = {"host": "node-1", "pid": 7, "device": "cuda0"}
    done = {"n_tasks": 5, "n_rows": 1000, "seconds": 10.0}
    workers = [
        {**worker, "name": "fast", "stages": {"encoding": {**done, "n_rows": 2000}, "scan": done}},
        {**worker, "name": "slow", "device": None, "stages": {"encoding": done}},
        {**worker, "name": "idle", "stages": {}},
    ]
    section = time_spent({**report, "cluster": {"kind": "workers", "workers": workers}})
    assert section is not None
    (table,) = [item for item in section.items if isinstance(item, Table) and "node-1" in str(item.rows)]
    assert table.columns[2:] == ("tasks", "scan", "encoding")
    assert [row[0].split()[0] for row in table.rows] == ["idle", "slow", "fast"]
    assert table.rows[1:] == (
        ("slow on node-1", "-", "5", "-", "100"),
        ("fast on node-1", "cuda0", "10", "100", "200"),
    )
    assert " 10 slowest of 1,000" in text_of(page_of(report))
    assert " driver's " in text_of(page_of(report))
    local_page = text_of(page_of({**report, "cluster": {"kind": "threads", "workers": []}}))
    assert " slowest of 1,000" not in local_page
    assert " driver's " not in local_page


def test_long_paths_keep_their_end_and_are_escaped() -> None:
    long = "/folder" * 50 + "/\u202eshard-17.h5"
    assert path(long).endswith("\\u202eshard-17.h5")
    assert len(path(long)) == 80
    assert path("a.h5") == "a.h5"
    assert cut("x" * 400).endswith("…")


def test_page_without_a_sample_says_why(report: dict[str, Any]) -> None:
    without = {**report, "sample": None}
    (reason,) = [item for item in quality(without).items if isinstance(item, str) and item not in quality(report).items]
    page = html_of(page_of(without), DIGEST)
    assert reason in page
    Parsed(page)


@each(
    "error, components, mean, numbers",
    [
        (0.0077, 0.0104, 0.0873, ["26 % better", "4 principal components"]),
        (0.0120, 0.0104, 0.0873, ["15 % worse", "4 principal components"]),
        (0.0103, 0.0104, 0.0873, ["4 principal components"]),
        (8e-6, 3e-6, 0.123, ["4 principal components"]),
        (0.01, None, None, ["0.01"]),
        (None, None, None, ["4 features", "3.0 s"]),
    ],
)
def test_verdict_compares_the_error_with_components(
    error: float | None, components: float | None, mean: float | None, numbers: list[str]
) -> None:
    summary = {"n_rows": 10, "n_inputs": 9, "n_features": 4, "seconds": {"scan": 1.0, "training": 2.0}}
    errors = {"cost": error, "components": components, "mean": mean}
    judgment = asdict(judge({**summary, **errors}, None, {}))
    found = verdict({"summary": {**summary, **errors}, "judgment": judgment, "warnings": NO_WARNINGS})
    assert [number for number in numbers if number not in found] == []
    assert ("%" in found) == ("%" in numbers[0])
    assert ("components" in found) == (components is not None)


def test_tables_that_repeat_figures_are_folded(report: dict[str, Any], html: str) -> None:
    page = page_of(report)
    items = [item for section in page.sections for item in section.items]
    folded = [around for tag, _, around, _ in Parsed(html).elements if tag == "table" and "details" in around]
    assert len(folded) == sum(isinstance(item, Figure) for item in items) > 0
    assert len(Parsed(html).named("table")) == len(folded) + sum(isinstance(item, Table) for item in items)


def test_title_contains_full_path_host_and_date(report: dict[str, Any]) -> None:
    found = {**report, "directory": "/data/runs/a/features", "host": "node-7", "made": "2026-11-27 18:30:00+01:00"}
    page = html_of(page_of(found), DIGEST)
    ((_, title),) = Parsed(page).named("title")[:1]
    ((_, heading),) = Parsed(page).named("h1")
    assert mentions(title, "/data/runs/a/features", "node-7", "2026-11-27")
    assert mentions(heading, "/data/runs/a/features")
    assert mentions(text_of(page_of(found)), "node-7", "2026-11-27")


def test_numbers_are_never_broken(report: dict[str, Any], html: str) -> None:
    (_, style), *_ = Parsed(html).named("style")
    rules = re.findall(r"([^{}]*\bn\b[^{}]*)\{([^}]*white-space[^}]*)\}", style)
    assert [words.strip() for _, words in rules] == ["white-space: nowrap;"]
    page = page_of({**report, "judgment": asdict(judge(SUMMARY, None, {}))})
    assert " %" in page.verdict
    assert " %" not in html_of(page, DIGEST).split("verdict")[-1][:400]
