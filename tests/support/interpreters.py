"""Run code in fresh Python processes, because Theano reads its settings and opens a device once per process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from tests.support.cases import ALL_CASES

REPOSITORY = Path(__file__).resolve().parents[2]

SUPPORTED_PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Supported versions without this one: all, or the newest for which scripts/readers.sh has created an environment.
_OTHERS = [version for version in SUPPORTED_PYTHONS if version != "{}.{}".format(*sys.version_info)]
_EXISTING = [version for version in _OTHERS if (REPOSITORY / ".venv-readers" / version).exists()]
OTHER_PYTHONS = _OTHERS if ALL_CASES else (_EXISTING or _OTHERS)[-1:]

# Later test runs reuse compiled code, even if a test sets another home directory for its processes.
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

_PROGRAM = """
import json
facts = {{}}
{code}
print("\\n" + json.dumps(facts))
"""


@dataclass(frozen=True)
class EndedProcess:
    """A process that has ended."""

    facts: dict[str, Any]  # values that the code stored in ``facts``; empty if the process failed
    stderr: str
    code: int  # exit code


def search_path(root: Path = REPOSITORY) -> str:
    """Return a PYTHONPATH with which a process imports the packages and the tests of a checkout."""
    return f"{root}:{root}/pipeline:{root}/kernels"


def environment(**variables: str | Path | None) -> dict[str, str]:
    """Return the environment without the developer's Theano settings, and with `variables`. None removes a variable."""
    env = {name: value for name, value in os.environ.items() if "THEANO" not in name}
    # A home directory that does not exist has no settings file.
    env |= {"HOME": "/nonexistent", "XDG_CACHE_HOME": str(_CACHE), "PYTHONPATH": search_path()}
    if "TEST_ISA" in env:
        env["THEANORC"] = os.environ["THEANORC"]  # set by the tests themselves
    for name, value in variables.items():
        env.pop(name, None)
        if value is not None:
            env[name] = str(value)
    return env


def run_python(code: str, warnings: str = "error", check: bool = True, **variables: str | Path | None) -> EndedProcess:
    """Run `code` in a new interpreter with these variables of `environment`. `warnings` is Python's ``-W``.

    The code stores its results in a dict named ``facts``, with values that JSON can hold. Raise `AssertionError` with
    its output if the process fails, unless `check` is False.
    """
    command = [sys.executable, "-W", warnings, "-c", _PROGRAM.format(code=dedent(code))]
    result = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)
    assert result.returncode == 0 or not check, f"exit code {result.returncode}: {result.stderr}"
    facts = json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else {}
    return EndedProcess(facts, result.stderr, result.returncode)
