"""The deadline of a run, in local time."""

from __future__ import annotations

from datetime import datetime, timedelta

from shardpress.settings.config import TrainingSettings
from shardpress.settings.kinds import hours_of


def deadline_of(training: TrainingSettings, start: float) -> float | None:
    """Return when a run that started at `start` must end, in seconds since 1970; None if there is no limit."""
    if training.finish_by is None:
        return None
    hours = hours_of(training.finish_by)
    if hours is not None:
        return start + 3600 * hours
    if "-" in training.finish_by:
        return datetime.fromisoformat(training.finish_by).timestamp()
    now = datetime.fromtimestamp(start)
    time_of_day = datetime.fromisoformat(f"2000-01-01T{training.finish_by}").time()
    moment = datetime.combine(now.date(), time_of_day)
    if moment <= now:
        moment += timedelta(days=1)
    return moment.timestamp()


def in_words(ends_by: float) -> str:
    """Return a time of day, with its date if the date is not today."""
    moment = datetime.fromtimestamp(ends_by)
    if moment.date() == datetime.now().date():
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"
