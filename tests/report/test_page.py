"""Tests of the report page: one small file that loads nothing, describes each picture, and escapes all text."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from shardpress.report.judgment import judge
from shardpress.report.page.build import html_of, page_of, text_of
from shardpress.report.page.document import Figure, Item, Table
from shardpress.report.page.quality import quality
from shardpress.report.page.run import time_spent
from shardpress.report.page.svg import COMPARED, FEATURES, LABELS
from shardpress.report.page.verdict import action_needed
from shardpress.report.words import cut, path
from tests.support.logged import mentions
from tests.support.pages import Parsed, largest

BACKGROUNDS = ("#ffffff", "#14181d")
DIGEST = "0a" * 32
NO_WARNINGS = {"n": 0, "first": []}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return json.loads(json.dumps(largest(tmp_path_factory.mktemp("largest"))))


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return html_of(page_of(report), DIGEST)


@pytest.fixture(scope="module")
def parsed(html: str) -> Parsed:
    return Parsed(html)


def items_of(report: dict[str, Any]) -> list[Item]:
    return [item for section in page_of(report).sections for item in section.items]


def test_page_is_small_makes_no_request_and_runs_no_script(html: str, parsed: Parsed) -> None:
    assert len(html.encode()) <= 160_000
    tags = {tag for tag, *_ in parsed.elements}
    assert tags & {"script", "link", "img", "iframe", "object", "base", "form"} == set()
    for tag, attributes, _, _ in parsed.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href", "srcset", "action"):
                assert (value or "").startswith("data:image/png;base64,")
    ((_, style),) = parsed.named("style")
    assert re.search(r"url\(|@import|expression", style) is None


def test_pictures_have_unique_names_and_descriptions(parsed: Parsed) -> None:
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
    drawn = ("path", "rect", "polyline", "image", "circle")
    assert all("svg" in around for tag, _, around, _ in parsed.elements if tag in drawn)


def test_tables_and_headings_are_well_formed(report: dict[str, Any], parsed: Parsed) -> None:
    tables = parsed.named("table")
    assert len(tables) == len(parsed.named("caption")) == len(parsed.named("thead"))
    assert all(text for _, text in parsed.named("caption"))
    assert all(attributes.get("scope") in ("row", "col") and text for attributes, text in parsed.named("th"))
    headings = [tag for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[:2] == ["h1", "h2"]
    assert set(headings) == {"h1", "h2"}
    # Tables that repeat figures are folded.
    folded = [around for tag, _, around, _ in parsed.elements if tag == "table" and "details" in around]
    items = items_of(report)
    assert len(folded) == sum(isinstance(item, Figure) for item in items) > 0
    assert len(tables) == len(folded) + sum(isinstance(item, Table) for item in items)


def test_attention_section_comes_first_and_is_bounded(report: dict[str, Any]) -> None:
    page = page_of(report)
    first, second, *_ = page.sections
    assert (first.title, second.title) == (action_needed(report).title, quality(report).title)
    captions = [item.caption for item in first.items if isinstance(item, Table)]
    assert [re.findall(r"[\d,]+", caption) for caption in captions] == [
        ["10", "1,000,000,000"],  # bad rows
        ["10", "1,000,000"],  # bad shards
        ["10", "10,000"],  # drift by column
        ["10", "1,000,000"],  # drift by shard
    ]
    assert " 999 " in page.verdict


def test_attention_section_lists_each_problem_once(report: dict[str, Any]) -> None:
    """A few rows outside the range cause no warning, but are listed in a table."""
    good = {"judgment": {**report["judgment"], "is_good": True}, "warnings": NO_WARNINGS, "bad": {}, "taken_over": []}
    (nothing,) = action_needed(report | good | {"drift": None}).items
    assert nothing not in action_needed(report | good).items
    shortened = "Trained 17 of 20 epochs to end by 06:00."
    summary = report["summary"] | {"gave_up": shortened}
    text = text_of(page_of(report | {"summary": summary, "taken_over": ["scan-of-17-shards"]}))
    assert [text.count(words) for words in (shortened, "scan-of-17-shards")] == [1, 1]


def test_text_contains_the_numbers_of_every_picture(report: dict[str, Any]) -> None:
    text = text_of(page_of(report))
    for item in items_of(report):
        if isinstance(item, Figure):
            assert item.table.caption in " ".join(text.split())
    assert all(line.isprintable() for line in text.splitlines())


def test_colours_have_contrast_on_light_and_dark_backgrounds() -> None:
    for colour in (FEATURES, COMPARED, *LABELS):
        for background in BACKGROUNDS:
            assert contrast(colour, background) >= 3, (colour, background)  # WCAG 2.2, 1.4.11


def contrast(*colours: str) -> float:
    """Return the contrast as defined by WCAG 2.2."""
    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_page_says_what_each_stage_waited_for(report: dict[str, Any]) -> None:
    stage = {"seconds": 10.0, "processor_seconds": 12.0, "n_cores": 2, "n_rows": 40, "n_bytes": 640}
    shares = {"device": 0.0, "processor": 0.15, "disk": 0.845, "other": 0.005}
    stages = {"scan": {**stage, "bound_by": shares}, "training": {**stage, "bound_by": {}}, "encoding": stage}
    page = html_of(page_of({**report, "stages": stages}), DIGEST)
    assert page.count("disk 84 %, processor 15 %<") == 1  # the bottleneck of the other stages is unknown
    assert page.count(">60 %<") == 3


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
    table = section.items[-1]
    assert isinstance(table, Table)
    assert table.columns[2:] == ("tasks", "scan", "encoding")
    assert table.rows == (
        ("idle on node-1", "cuda0", "0", "-", "-"),
        ("slow on node-1", "-", "5", "-", "100"),
        ("fast on node-1", "cuda0", "10", "100", "200"),
    )
    assert " 10 slowest of 1,000" in text_of(page_of(report))


def test_long_paths_keep_their_end_and_are_escaped() -> None:
    long = "/folder" * 50 + "/\u202eshard-17.h5"
    assert path(long).endswith("\\u202eshard-17.h5")
    assert len(path(long)) == 80
    assert path("a.h5") == "a.h5"
    assert cut("x" * 400).endswith("…")


def test_title_contains_full_path_host_and_date(report: dict[str, Any]) -> None:
    found = {**report, "directory": "/data/runs/a/features", "host": "node-7", "made": "2026-11-27 18:30:00+01:00"}
    page = page_of(found)
    parsed = Parsed(html_of(page, DIGEST))
    assert mentions(parsed.named("title")[0][1], "/data/runs/a/features", "node-7", "2026-11-27")
    assert mentions(parsed.named("h1")[0][1], "/data/runs/a/features")
    assert mentions(text_of(page), "node-7", "2026-11-27")


def test_numbers_are_never_broken(report: dict[str, Any], parsed: Parsed) -> None:
    ((_, style),) = parsed.named("style")
    rules = re.findall(r"([^{}]*\bn\b[^{}]*)\{([^}]*white-space[^}]*)\}", style)
    assert [words.strip() for _, words in rules] == ["white-space: nowrap;"]
    summary = {"n_inputs": 9, "n_features": 4, "cost": 0.5, "components": 0.7, "mean": 1.0}
    page = page_of({**report, "judgment": asdict(judge(summary, None, {}))})
    assert " %" in page.verdict
    assert " %" not in html_of(page, DIGEST).split("verdict")[-1][:400]
