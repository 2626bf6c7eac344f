"""When a run is to be over, by its settings and by the clock on the wall."""

from __future__ import annotations

from datetime import datetime, timedelta

from pipeline.settings.config import TimingSettings

__all__ = ["deadline_of", "in_words"]


def deadline_of(timing: TimingSettings, start: float) -> float | None:
    """When a run that has started then is to be over, in seconds since 1970; None where it may take its time."""
    ends = [] if timing.max_hours is None else [start + 3600 * timing.max_hours]
    if timing.finish_by is not None:
        ends.append(_next(timing.finish_by, datetime.fromtimestamp(start)))
    return min(ends, default=None)


def _next(told: str, now: datetime) -> float:
    """A time of day comes today or tomorrow, by the clock on the wall."""
    if "-" in told:
        return datetime.fromisoformat(told).timestamp()
    at = datetime.combine(now.date(), datetime.fromisoformat(f"2000-01-01T{told}").time())
    return (at if at > now else at + timedelta(days=1)).timestamp()


def in_words(ends_by: float) -> str:
    """A time as people say it, with its day if that is not today."""
    at = datetime.fromtimestamp(ends_by)
    return f"{at:%H:%M}" if at.date() == datetime.now().date() else f"{at:%Y-%m-%d %H:%M}"
