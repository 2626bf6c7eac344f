"""Tests of the audit, which fails tests that do more than their marks allow."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.audit import marks_enforced


def item(*marks: str, markexpr: str = "not process") -> Any:
    """Return the attributes of a test that the audit reads."""
    return SimpleNamespace(
        config=SimpleNamespace(getoption={"markexpr": markexpr}.get),
        iter_markers=lambda: [SimpleNamespace(name=name) for name in marks],
    )


def test_a_test_without_the_mark_starts_no_process() -> None:
    with marks_enforced(item()), pytest.raises(AssertionError, match=r"pytest\.mark\.process"):
        subprocess.run(["true"], check=True)


def test_a_test_without_the_mark_does_not_load_theano(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "theano", raising=False)
    with marks_enforced(item("process")), pytest.raises(AssertionError, match=r"pytest\.mark\.compiler"):
        __import__("theano")


@pytest.mark.process
def test_marked_tests_and_sessions_without_marks_start_processes() -> None:
    for allowed in (item("process"), item("compiler"), item(markexpr="")):
        with marks_enforced(allowed):
            subprocess.run(["true"], check=True)
