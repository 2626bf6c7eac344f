"""A child that is asked, with a time limit: a driver may hang or crash whoever calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["asked", "tell"]

_ROOT = str(Path(__file__).resolve().parents[2])


def tell(**found: Any) -> None:
    """In the child: what it has found so far, which counts whatever becomes of it."""
    print("\n" + json.dumps(found), flush=True)  # a library may have left its own line unfinished


def asked(module: str, seconds: float, flags: str = "") -> dict[str, Any]:
    """What the ``main`` of a module has told, and under ``failed`` what became of it, if it was not ``done``.

    Parameters
    ----------
    module : str
        In this folder.
    seconds : float
        That it may take.
    flags : str
        For the end of THEANO_FLAGS, where they win.
    """
    program = f"import sys; sys.path.insert(0, {_ROOT!r}); from pipeline.doctor.{module} import main; main()"
    theanos = ",".join(filter(None, [os.environ.get("THEANO_FLAGS"), flags]))
    environment = {**os.environ, "THEANO_FLAGS": theanos} if theanos else {**os.environ}
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        return {**_told(late.stdout or b""), "failed": f"no answer within {seconds:.0f} s"}
    found = _told(done.stdout)
    if not found.pop("done", False):  # one that crashes behind that has told all that was asked
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        found["failed"] = f"the process that tried it ended with {done.returncode}: {last}"
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
