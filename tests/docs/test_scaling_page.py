"""Tests of docs/scaling.md: its commands use existing options, and its Python code compiles."""

from __future__ import annotations

import re
import shlex

from distributed.cli import dask_scheduler, dask_worker

from shardpress.settings.flags import _parser_of_settings
from tests.support.cases import case
from tests.support.interpreters import REPOSITORY

PAGE = (REPOSITORY / "docs/scaling.md").read_text()
SHELL = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S)
INDENTED = re.findall(r"^    (\S.*?)(?: {4}.*)?$", PAGE, re.M)
OPTIONS = {
    "dask scheduler": {option for each in dask_scheduler.main.params for option in each.opts},
    "dask worker": {option for each in dask_worker.main.params for option in each.opts},
    "shardpress run": set(_parser_of_settings("")._option_string_actions),
}


def commands(program: str) -> list[list[str]]:
    """Return the options in each call of a program."""
    text = "\n".join([*SHELL, *INDENTED]).replace("\\\n", " ")
    found = re.findall(rf"{program} (--[^;&|\n]*|[^;&|\n]*--[^;&|\n]*)", text)
    return [[word for word in shlex.split(each, comments=True) if word.startswith("--")] for each in found]


def test_flags_are_options_of_their_programs() -> None:
    for program, options in OPTIONS.items():
        found = commands(program)
        assert len(found) >= 2, program
        for words in found:
            with case(program, words):
                assert words
                assert set(words) <= options
    arguments = re.search(r"worker_extra_args=\[(.*?)\]", PAGE)
    assert arguments
    assert set(re.findall(r'"(--[\w-]+)"', arguments[1])) <= OPTIONS["dask worker"]


def test_started_programs_show_no_page_on_the_network() -> None:
    """Each program of Dask opens an HTTP port on every interface by default."""
    for program in ("dask scheduler", "dask worker"):
        for words in commands(program):
            assert "--dashboard-address" in words, (program, words)
    for line in re.findall(r"(?:scheduler_options|worker_extra_args)=.*", PAGE):
        assert "127.0.0.1:0" in line


def test_python_of_the_page_compiles() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert blocks
    for each in blocks:
        compile(each, "docs/scaling.md", "exec")
