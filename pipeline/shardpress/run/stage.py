"""The protocol of the stages of a run, and the function that runs a stage."""

from __future__ import annotations

import logging
from typing import Protocol, TypeVar

from shardpress.run.context import RunContext
from shardpress.run.resume import EarlierResults

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class _Stage(Protocol[Result]):
    """One stage of a run, created with the results of the stages before it."""

    @property
    def name(self) -> str: ...

    def load(self, earlier: EarlierResults) -> Result | None:
        """Return the complete result of an earlier run with the same key, or None. Nothing new is written."""
        ...

    def make(self, context: RunContext) -> Result:
        """Compute the result, or the missing part of it, and name its files in the journal."""
        ...

    def check(self, result: Result) -> None:
        """Log warnings about a result; raise an error if the settings do not allow it."""
        ...


def load_or_make(stage: _Stage[Result], context: RunContext) -> Result:
    """Return the result of a stage: from an earlier run if possible, otherwise computed now."""
    result = stage.load(context.earlier)
    if result is None:
        result = stage.make(context)
    else:
        log.info("%s: reusing the result of an earlier run", stage.name)
        context.state.reused[stage.name] = f"the {stage.name}"
    # The check comes after `make`, so that a run with more tolerant settings can reuse the result.
    stage.check(result)
    context.state.end_stage(stage.name)
    return result
