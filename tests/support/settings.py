"""Complete settings for tests that do not open any inputs."""

from __future__ import annotations

from typing import Any

from pipeline.settings.config import Config
from pipeline.settings.resolve import Settings, resolve

__all__ = ["settings_of"]


def settings_of(**values: Any) -> Settings:
    """Return settings with these values; the others are those of many rows of a thousand columns."""
    # Some values, such as the number of replicas, would otherwise be adapted to the rows.
    return resolve(Config.of(**values), 10**6, 1000).changed(**values)
