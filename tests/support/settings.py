"""Complete settings for tests that open no inputs."""

from __future__ import annotations

from typing import Any

from shardpress.settings.config import Config
from shardpress.settings.resolve import Settings, resolve


def settings_of(**values: Any) -> Settings:
    """Return settings with these values. All others are the defaults for many rows of a thousand columns."""
    # Otherwise some values, such as the number of replicas, would be adapted to the number of rows.
    return resolve(Config.of(**values), 10**6, 1000).changed(**values)
