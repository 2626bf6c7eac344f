"""A child process that looks at something, with a time limit: a driver may hang or crash the process that calls it."""

from __future__ import annotations

import json
import os
from subprocess import PIPE
from typing import Any

from pipeline.childprocess import ChildProcess

__all__ = ["asked", "tell"]


def tell(**found: Any) -> None:
    """In the child: report what it has found so far, which is kept even if it crashes later."""
    print("\n" + json.dumps(found), flush=True)  # a library may have left its own line unfinished


def asked(module: str, seconds: float, flags: str = "") -> dict[str, Any]:
    """Return what the ``main`` of a module reports; ``failed`` says what went wrong if it was not ``done``.

    Parameters
    ----------
    module : str
        Its full name.
    seconds : float
        Time limit.
    flags : str
        Appended to THEANO_FLAGS, where later ones win.
    """
    theanos = ",".join(filter(None, [os.environ.get("THEANO_FLAGS"), flags]))
    environment = {**os.environ, "THEANO_FLAGS": theanos} if theanos else {**os.environ}
    child = ChildProcess(module, environment=environment, stdout=PIPE, stderr=PIPE)
    stdout, stderr, is_in_time = child.answer(seconds)
    found = _told(stdout)
    if not is_in_time:
        return {**found, "failed": f"no answer within {seconds:.0f} s"}
    if not found.pop("done", False):  # if it crashes after that, it has reported everything
        last = (stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        found["failed"] = f"the process that tried it ended with {child.returncode}: {last}"
    return found


def _told(output: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # of somebody else
            continue
        if isinstance(told, dict):
            found |= told
    return found
