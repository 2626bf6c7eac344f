"""The section about generations: which are kept, and how well maps lead to their features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shardpress.report.page.document import Item, Section, Table
from shardpress.report.page.words import count, cut, number, percent

_MAX_ROWS = 40  # generations in a table
_ENCODER = 12  # characters of a fingerprint
_HEADS = "generation, encoder, mean R2, lowest R2, accuracy before, accuracy of mapped features"


def generations(report: Mapping[str, Any]) -> Section | None:
    """Return the section about generations, or None if there is only one."""
    found = report.get("generations")
    if not found:
        return None
    return Section("Generations", tuple(_items(found)))


def _items(found: Mapping[str, Any]) -> Iterator[Item]:
    kept = ", ".join(count(each["generation"]) for each in found["generations"]) or "none"
    yield f"These are the features of generation {count(found['generation'])}. Earlier ones that are kept: {kept}."
    if not found["maps"]:
        yield "No map leads to the features of another generation, so classifiers must be trained again."
        return
    yield (
        "open_features(..., as_of=N) maps the features to those of generation N, for classifiers that were trained on "
        "them. R2 is the share of the variance of a feature that the map explains on held-out rows. The accuracies are "
        "those of a linear classifier that was trained on the other features. A map over several generations is "
        "composed, and has no numbers of its own."
    )
    yield Table.of("Maps", _HEADS, [_row(each) for each in found["maps"][:_MAX_ROWS]])


def _row(each: Mapping[str, Any]) -> tuple[str, ...]:
    name = count(each["generation"])
    encoder = cut(each["model"][:_ENCODER])
    known = [value for value in each.get("r2", []) if value is not None]
    if not known:
        return name, encoder, "-", "-", "-", "-"
    r2 = (number(sum(known) / len(known)), number(min(known)))
    found = each.get("classifier")
    if not found:
        return name, encoder, *r2, "-", "-"
    return name, encoder, *r2, percent(found["accuracy"]), percent(found["mapped"])
