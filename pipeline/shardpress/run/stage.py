"""The protocol of the stages of a run, and the function that runs a stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from shardpress.run.context import RunContext
from shardpress.run.resume import EarlierResults

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Stage(Protocol[Result]):
    """One stage of a run, created with the results of the stages before it.

    `load_or_make` runs a stage. `shardpress plan` calls `key`, `load` and `memory_bytes`, and the stages' methods
    ``sample`` and ``estimate``, whose arguments differ.
    """

    @property
    def name(self) -> str:
        """Name of the stage in logs and reports."""
        ...

    def key(self) -> str:
        """Return the fingerprint of everything that determines the result."""
        ...

    def load(self, earlier: EarlierResults) -> Result | None:
        """Return the complete result of an earlier run with the same key, or None. Nothing new is written."""
        ...

    def make(self, context: RunContext) -> Result:
        """Compute the result, or the missing part of it, and commit it."""
        ...

    def describe(self, result: Result) -> str:
        """Return a description of a loaded result, for the report's list of reused results."""
        ...

    def check(self, result: Result) -> None:
        """Log warnings about a result; raise an error if the settings do not allow it."""
        ...

    def facts(self, result: Result) -> Mapping[str, Any]:
        """Return facts about a result for the report."""
        ...

    def memory_bytes(self, resident: bool) -> int:
        """Return the maximum number of bytes that rows, features and networks take during the stage.

        Parameters
        ----------
        resident : bool
            Whether training keeps all rows in the host's memory.
        """
        ...


def load_or_make(stage: Stage[Result], context: RunContext) -> Result:
    """Return the result of a stage: from an earlier run if possible, otherwise computed now."""
    result = stage.load(context.earlier)
    if result is None:
        result = stage.make(context)
    else:
        log.info("%s: reusing the result of an earlier run", stage.name)
        context.state.reused[stage.name] = stage.describe(result)
    # The check comes after the commit, so that a run with more tolerant settings can reuse the result.
    stage.check(result)
    context.state.end_stage(stage.name)
    return result
