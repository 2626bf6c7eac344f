"""Tests of the configuration file: only plain YAML values, read with bounded memory and work."""

import subprocess
import sys
from itertools import product

import pytest

from shardpress.settings.config import Config
from shardpress.settings.flags import parse
from tests.support.cases import case
from tests.support.helpers import refused


def settings(*arguments, **environment):
    return parse(arguments, environment, "")


def test_an_empty_file_changes_nothing_and_one_without_keys_is_refused(file):
    for text in ["", "# nothing\n", "---\n", "null"]:
        with case(text):
            assert settings(*file(text)) == Config()
    for text in ["- epochs", "epochs", "3"]:
        with case(text), refused(78, "settings.yaml", "`epochs: 20`"):
            settings(*file(text))


def test_a_file_that_cannot_be_read_is_refused_by_name(file, tmp_path):
    for text in ["a: [", "\t- x", "a: b: c", "epochs: 2001-99-99", "[" * 3000, "a: \x01", "? [a]\n: 1", "<<: 3"]:
        with case(text), refused(78, "settings.yaml", "YAML"):
            settings(*file(text))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "x.yaml", tmp_path / "nowhere.yaml", tmp_path):
        with case(path), refused(78, str(path)):
            settings("--config", str(path))


def test_tags_are_refused_and_run_no_code(file, tmp_path):
    """PyYAML raises various errors for tags whose values do not match."""
    for text in [
        f"output: !!python/object/apply:os.mkdir [{tmp_path}/made]",
        f"output: !!python/object/new:os.mkdir [{tmp_path}/made]",
        "epochs: !!map [1, 2]",
        "epochs: !!timestamp never",
        "quiet: !!bool perhaps",
        "seed: !!int ''",
        "seed: !ours 3",
        "seed: ! 3",
        "epochs: !<%1b[31m> 3",
        "!!omap [a: 1]",
    ]:
        with case(text), refused(78, "YAML", "tag ("):
            settings(*file(text))
    assert not (tmp_path / "made").exists()


def test_repeated_keys_are_refused_at_any_depth(file):
    for text in [
        "epochs: 3\nepochs: 3",
        "epochs: 3\nseed: 1\n'epochs': 4",
        "1: 2\n'1': 3",
        "epochs: {a: 1, b: {c: 1, c: 2}}",
        "input: [{a: 1, a: 2}]",
        "epochs: 3\n<<: {epochs: 4}",
        '"\\e[31m": 1\n"\\e[31m": 2',
    ]:
        with case(text), refused(78, "YAML", "twice"):
            settings(*file(text))


BOMBS = {
    "aliases": "b0: &b0 [x, x]\n" + "".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(40)),
    "merged": "a: &a {x: 1}\nb:\n  <<: [*a, *a]",
    "endless": "a: &a [*a]",
    "brackets": "[" * 250000,
    "braces": "{a: " * 60000,
    "questions": "? " * 10**5,
    "dashes": "- " * 10**5,
    "steps": "".join(" " * i + "a:\n" for i in range(700)),
    "nested": "a: " + "[" * 16 + "]" * 16,
    "keys": "".join(f"k{i}: 1\n" for i in range(25000)),
    "same keys": "a: 1\n" * 50000,
    "commas": "a: [" + "1," * 120000 + "]",
    "long": "#" * 10**8,
}
MEASURE = """
import re, sys
from pathlib import Path
from shardpress.settings.flags import parse
from shardpress.errors import ConfigError
import yaml
n_calls = 0
def count(frame, event, argument):
    global n_calls
    n_calls += event.endswith("call")
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
for path in sys.argv[1:]:
    before = peak()
    n_calls = 0
    sys.setprofile(count)
    try:
        parse(["--config", path], {}, "")
    except ConfigError as error:
        sys.setprofile(None)
        print(error.exit_code, len(str(error)), n_calls, peak() - before)
"""


@pytest.mark.process
def test_a_bomb_is_refused_with_little_work_and_memory(tmp_path):
    """A child process measures function calls (a scanner in Python makes 8 million) and memory in KiB."""
    for name, text in BOMBS.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", MEASURE, *(tmp_path / name for name in BOMBS)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name, line in zip(BOMBS, result.stdout.splitlines(), strict=True):
        code, n_letters, n_calls, memory = map(int, line.split())
        assert (code, n_letters < 20_000, n_calls < 2**21, memory < 2**16) == (78, True, True, True), (name, line)


def test_a_list_of_inputs_can_be_as_long_as_the_file(file):
    paths = [f"shards/{i:05d}.h5" for i in range(13_000)]
    assert settings(*file("input: " + "".join(f"\n- {path}" for path in paths))).inputs.input == tuple(paths)


def test_nan_and_infinity_are_refused(file):
    for name, word in product(
        ["learning_rate", "validation_fraction", "missing_value"], [".nan", ".inf", "-.inf", "nan", "inf"]
    ):
        with case(name, word), refused(78, f"key {name}: ", "finite"):
            settings(*file(f"{name}: {word}"))
