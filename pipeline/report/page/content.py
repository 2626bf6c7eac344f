"""A page out of a report's plain values, in the order in which a morning asks for things."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.report.page.document import Page
from pipeline.report.page.sections.night import change, settings, steps, time_spent
from pipeline.report.page.sections.quality import quality
from pipeline.report.page.sections.verdict import needs, notices, verdict
from pipeline.report.page.words import cut

__all__ = ["page_of"]


def page_of(report: Mapping[str, Any]) -> Page:
    """What report.json holds, for people; what an earlier version has not kept there is left out.

    Raises
    ------
    KeyError, TypeError, ValueError
        When it is no report.
    """
    sections = (needs(report), quality(report), change(report), time_spent(report), steps(report), settings(report))
    title = f"shardpress: {cut(Path(report['config']['output']).name, 60)}"
    found = tuple(section for section in sections if section is not None and section.items)
    return Page(title, verdict(report), notices(report)[0] > 0, found)
