"""Tests of the report page: one small file that loads nothing, describes each picture, and escapes all text."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from shardpress.report.page.build import html_of, page_of, text_of
from shardpress.report.page.document import Figure, Page, Table
from shardpress.report.page.svg import Scale
from shardpress.report.page.verdict import action_needed
from shardpress.report.summary import Report
from shardpress.result.facts import Append, Level, Verdict, WarningFacts
from tests.support.cases import each
from tests.support.logged import mentions
from tests.support.pages import Parsed, largest
from tests.support.runfacts import NO_WARNINGS, NOTHING_BAD, changed_facts, run_facts

DIGEST = "0a" * 32


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return largest(tmp_path_factory.mktemp("largest"))


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return page_of(report)


@pytest.fixture(scope="module")
def parsed(page: Page) -> Parsed:
    return Parsed(html_of(page, DIGEST))


def test_page_is_small_makes_no_request_and_runs_no_script(page: Page, parsed: Parsed) -> None:
    assert len(html_of(page, DIGEST).encode()) <= 160_000
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


def test_tables_and_headings_are_well_formed(page: Page, parsed: Parsed) -> None:
    tables = parsed.named("table")
    assert len(tables) == len(parsed.named("caption")) == len(parsed.named("thead"))
    assert all(text for _, text in parsed.named("caption"))
    assert all(attributes.get("scope") in ("row", "col") and text for attributes, text in parsed.named("th"))
    headings = [tag for tag, *_ in parsed.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[:2] == ["h1", "h2"]
    assert set(headings) == {"h1", "h2"}
    # Tables that repeat figures are folded.
    folded = [around for tag, _, around, _ in parsed.elements if tag == "table" and "details" in around]
    items = [item for section in page.sections for item in section.items]
    assert len(folded) == sum(isinstance(item, Figure) for item in items) > 0
    assert len(tables) == len(folded) + sum(isinstance(item, Table) for item in items)
    text = " ".join(text_of(page).split())
    assert all(item.table.caption in text for item in items if isinstance(item, Figure))


def changed(report: Report, **fields: Any) -> Report:
    """Return a report with other facts."""
    return replace(report, facts=changed_facts(report.facts, **fields))


def good(report: Report) -> Report:
    return replace(report, judgment=structs.replace(report.judgment, is_good=True))


def test_attention_section_comes_first_and_has_each_problem_once(report: Report, page: Page) -> None:
    without_appends = replace(report, facts=structs.replace(report.facts, runs=report.facts.runs[:1]))
    first, second, *_ = page_of(without_appends).sections
    assert (first.title, second.title) == (action_needed(report).title, "Quality of the features")
    tables = [item for item in first.items if isinstance(item, Table)]
    assert [len(table.rows) for table in tables] == [10] * 4  # bad rows and shards, drift by column and by shard
    assert " 999 " in page.verdict
    without = changed(good(without_appends), warnings=NO_WARNINGS, bad=NOTHING_BAD, taken_over=[])
    (nothing,) = action_needed(changed(without, drift=None)).items
    assert nothing not in action_needed(without).items, "rows outside the range are listed without a warning"
    shortened = "Trained 17 of 20 epochs to end by 06:00."
    summary = structs.replace(report.summary, gave_up=shortened)
    text = text_of(page_of(changed(replace(report, summary=summary), taken_over=["scan-of-17-shards"])))
    assert [text.count(words) for words in (shortened, "scan-of-17-shards")] == [1, 1]


def test_outliers_are_at_the_ends_of_an_axis() -> None:
    values = np.append(np.random.default_rng(0).normal(size=500), [1e6, -1e6])
    scale = Scale.over(values, 0, 100)
    assert np.ptp([scale(value) for value in values[:-2]]) > 30
    assert (scale(1e6), scale(-1e6)) == (100, 0)


@each(
    "verdicts, n_warnings, status, has_sentence",
    [
        (("keep", "keep"), 0, "OK", False),
        (("watch", None), 0, "Watch the new rows", True),
        (("keep", "watch"), 1, "Watch the new rows", True),
        (("keep", "watch"), 2, "Action needed", True),
        (("retrain", "watch"), 1, "Action needed", True),
        (("watch", *["keep"] * 7), 0, "OK", False),
    ],
)
def test_the_first_line_has_the_worst_verdict_of_recent_appends(
    report: Report, verdicts: tuple[Level | None, ...], n_warnings: int, status: str, has_sentence: bool
) -> None:
    """A verdict to watch is logged as a warning, but needs no action."""
    appends = [
        Append(1, 0, 0, 9, i + 1, None if level is None else Verdict(level, [], 9, 9))
        for i, level in enumerate(verdicts)
    ]
    summary = structs.replace(report.summary, appended=appends[-1], verdict=verdicts[-1])
    config = report.facts.rows.config
    facts = run_facts(appends, config=config, warnings=WarningFacts(n_warnings, []))
    page = page_of(replace(good(report), facts=facts, summary=summary))
    assert page.status == status
    worst = max(range(len(verdicts)), key=lambda i: ["keep", "watch", "retrain"].index(verdicts[i] or "keep"))
    assert mentions(page.verdict, verdicts[worst], f"append {worst + 1}") == has_sentence
