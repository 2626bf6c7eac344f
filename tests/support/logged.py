"""Match the messages of a run. Only this module matches the words of messages about earlier results."""

from __future__ import annotations

import re

COMPLETE = "Already complete"
"""Beginning of the summary if an earlier run finished everything."""
STARTED_NOTHING = "Nothing was started"
"""Beginning of the last line of a run that failed before its first stage."""


def mentions(text: str, *facts: object) -> bool:
    """Return whether a line of a text has these facts in this order, each as a whole word or number."""
    words = (rf"(?<![\w.]){re.escape(str(fact))}(?!\w|\.\d)" for fact in facts)
    return re.search(".*".join(words), text) is not None


def reuses(log: str, stage: str) -> bool:
    """Return whether a run reused the scan or the training of an earlier run."""
    return f"{stage}: reusing the result of an earlier run" in log


def reuses_anything(log: str) -> bool:
    """Return whether a run reused or resumed a stage of an earlier run."""
    return "an earlier run" in log


def resumed_step(log: str) -> int | None:
    """Return the step after which the training resumed, or None if the training did not resume."""
    found = re.search(r"training: resuming after step (\d+) of an earlier run", log)
    return int(found[1]) if found else None


def resumes_encoding(log: str) -> bool:
    """Return whether a run kept parts that an earlier run encoded."""
    return "encoding: resuming; an earlier run has encoded" in log
