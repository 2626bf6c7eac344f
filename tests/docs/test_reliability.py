"""Test of docs/reliability.md: the tests that it names exist."""

from __future__ import annotations

import re

from tests.support.interpreters import REPOSITORY


def test_the_page_names_existing_tests() -> None:
    page = (REPOSITORY / "docs/reliability.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)` `(test_\w+)`", page)
    missing = [name for file, name in named if f"def {name}(" not in (REPOSITORY / "tests" / file).read_text()]
    assert named
    assert missing == []
