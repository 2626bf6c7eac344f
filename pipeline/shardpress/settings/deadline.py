"""The deadline of a run, in local time."""

from __future__ import annotations

from datetime import datetime, timedelta

from shardpress.settings.config import TimingSettings

__all__ = ["deadline_of", "in_words"]


def deadline_of(timing: TimingSettings, start: float) -> float | None:
    """Return when a run that started at `start` must end, in seconds since 1970; None if there is no limit."""
    ends = []
    if timing.max_hours is not None:
        ends.append(start + 3600 * timing.max_hours)
    if timing.finish_by is not None:
        ends.append(_next(timing.finish_by, datetime.fromtimestamp(start)))
    return min(ends, default=None)


def _next(time: str, now: datetime) -> float:
    """Return the next moment, in local time, with the given time of day, or the given date and time."""
    if "-" in time:
        return datetime.fromisoformat(time).timestamp()
    time_of_day = datetime.fromisoformat(f"2000-01-01T{time}").time()
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
