"""How far a pass has come: a tqdm bar on a terminal; lines in a log, few as the pass is long, with the time left."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Self

from pipeline.runlog import BEHIND_A_BAR

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "duration"]

log = logging.getLogger(__name__)

# Percent of the whole at which a line is due: the first ones tell soon how long it is going to take.
_MARKS = (1, 2, 5, *range(10, 100, 10))
_SECONDS_BETWEEN_LINES = 5.0  # at least: of a short pass only the end is told
_LONGEST_SILENCE = 600.0
_SECONDS_BETWEEN_BARS = 0.1  # units may be steps of a few microseconds


class Progress:
    """Progress of one pass, `what`.

    Parameters
    ----------
    total : int or None
        Units in all, where that is known.
    unit : str
        In the plural.
    unit_bytes : int
        Of one unit, when the rate in MB/s is to be shown too.
    done : int
        Units that an earlier run has done: they count for no rate.
    """

    def __init__(self, what: str, total: int | None, unit: str, unit_bytes: int = 0, done: int = 0) -> None:
        self._what, self._total, self._unit, self._unit_bytes = what, total, unit, unit_bytes
        self._before = self._done = done
        self._told = -1
        self._note: object = ""
        self._start = self._last_line = self._last_bar = time.monotonic()
        self._next_mark = self._mark_after(done)
        self._bar = self._opened_bar() if _is_watched() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.close()
            self._bar = None  # so that the last line is seen
        if error is None and self._told != self._done:  # after an error, a line would look like success
            self._line(is_last=True)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def advance(self, n_units: int = 1, note: object = "") -> None:
        """Count units. What `note` says stands behind them; it is asked when it is shown, since steps may be short."""
        self._done, self._note = self._done + n_units, note
        now = time.monotonic()
        if self._bar is not None and now - self._last_bar >= _SECONDS_BETWEEN_BARS:
            self._last_bar = now
            self._draw()
        if self._is_line_due(now - self._last_line):
            self._line()

    def expect(self, total: int) -> None:
        """Another number of units in all than was thought."""
        if total != self._total:
            self._total, self._next_mark = total, min(self._next_mark, total)
            if self._bar is not None:
                self._bar.total = total

    def _is_line_due(self, silent: float) -> bool:
        if silent < _SECONDS_BETWEEN_LINES:
            return False
        # Without a total the pass is told of as often as it has become half as long again.
        is_mark = self._done >= self._next_mark if self._total is not None else silent >= self.seconds / 3
        return is_mark or silent >= _LONGEST_SILENCE

    def _mark_after(self, done: int) -> float:
        marks = (mark * (self._total or 0) / 100 for mark in _MARKS)
        return next((mark for mark in marks if mark > done), math.inf)

    def _line(self, is_last: bool = False) -> None:
        self._last_line, self._told, self._next_mark = time.monotonic(), self._done, self._mark_after(self._done)
        left = "" if is_last else self._left()
        words = [self._count(), _seconds(self.seconds), self._rate(), left, str(self._note)]
        behind = {BEHIND_A_BAR: self._bar is not None}
        log.info("%s: %s", self._what, ", ".join(filter(None, words)), extra=behind)

    def _count(self) -> str:
        if self._total is None or self._done > self._total:  # a total that was exceeded says nothing
            return f"{self._done} {self._unit}"
        share = "" if self._done == self._total else f" ({100 * self._done / max(1, self._total):.0f} %)"
        return f"{self._done}/{self._total} {self._unit}{share}"

    def _left(self) -> str:
        """The time that the rest is going to take at the pace so far."""
        n, n_left = self._done - self._before, (self._total or 0) - self._done
        return f"{duration(n_left * self.seconds / n)} left" if n > 0 and n_left > 0 else ""

    def _rate(self) -> str:
        rate = (self._done - self._before) / max(self.seconds, 1e-9)
        return f"{rate:,.0f} {self._unit}/s, {rate * self._unit_bytes / 1e6:,.0f} MB/s" if self._unit_bytes else ""

    # -- on a terminal -----------------------------------------------------------------------------------------------

    def _opened_bar(self) -> tqdm:
        from tqdm import tqdm  # which the first line of a program need not wait for

        scale = self._total is not None and self._total > 10_000  # rows in k and M; steps are counted
        form = self._form()
        return tqdm(total=self._total, desc=self._what, bar_format=form, unit_scale=scale, initial=self._before)

    def _draw(self) -> None:
        assert self._bar is not None
        self._bar.set_postfix_str(", ".join(filter(None, [self._pace(), str(self._note)])), refresh=False)
        self._bar.update(self._done - self._bar.n)

    def _form(self) -> str:
        """Tqdm's own words for a rate are "2.09s/ epochs"; ours stand behind the bar."""
        if self._total is None:
            return f"{{desc}}: {{n_fmt}} {self._unit} [{{elapsed}}{{postfix}}]"
        return f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} {self._unit} [{{elapsed}}<{{remaining}}{{postfix}}]"

    def _pace(self) -> str:
        """For a bar, which shows no seconds: of slow units, how long one takes."""
        n = self._done - self._before
        rate = n / max(self.seconds, 1e-9)
        if self._unit_bytes or not n:
            return self._rate()
        return f"{rate:,.1f} {self._unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """So much time in a glance: ``40 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 119.5 else duration(seconds)


def _is_watched() -> bool:
    """Whether somebody sees a bar move: not in a log, nor on a terminal that cannot go back on a line."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and log.isEnabledFor(logging.INFO)
