"""Waiting for what other processes do: it has an end, and the log says what for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline import signals

__all__ = ["ask_all", "waited"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK = 0.1  # seconds
_TRIES = 5
_FIRST_TOLD = 3.0  # seconds
_TOLD_EVERY = 30.0  # seconds


def waited(found: Callable[[], T], what: str, seconds: float) -> T:
    """What is found at last; when the time is up, what is found then, which is false.

    Parameters
    ----------
    found : callable
        Looks for it, many times; what is true ends the wait.
    what : str
        For the log.

    Raises
    ------
    Stopped
        When a signal has come.
    """
    began = time.monotonic()
    next_told = began + _FIRST_TOLD
    while not (it := found()):
        signals.check()
        now = time.monotonic()
        if now - began > seconds:
            break
        if now > next_told:
            log.info("cluster: waiting for %s, %.0f of %.0f s", what, now - began, seconds)
            next_told = now + _TOLD_EVERY
        time.sleep(_LOOK)
    return it


def ask_all(question: Callable[[], T], is_connected: Callable[[], bool]) -> T:
    """Ask all workers something, and again when one of them is lost meanwhile: that ends the question for all of them.

    Parameters
    ----------
    question : callable
        May be asked twice of the same worker. It raises `OSError` when a worker is lost.
    is_connected : callable
        Whether the scheduler is still there: without it, the error is final.
    """
    for _ in range(_TRIES - 1):
        try:
            return question()
        except OSError as error:
            if not is_connected():
                raise
            log.debug("cluster: a worker was lost meanwhile: %s", error)
    return question()
