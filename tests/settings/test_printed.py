"""Tests of printed settings: they are read back unchanged for all values."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress.settings.config import SETTINGS, Config, Setting, problems
from shardpress.settings.flags import _STAGES, parse
from shardpress.settings.kinds import SWITCH, YES_OR_NO
from shardpress.settings.presets import values_of_preset
from shardpress.settings.printed import as_yaml, summary_line
from tests.support.logged import mentions

# Texts that YAML would read as other types, or cannot write unquoted.
TEXTS = [
    *("x", "2024_01", "1e5", "0x10", "1_000", "yes", "on", "null", "=", "<<", "2026-11-26", "12:30:00"),
    *(
        "a: b",
        " #x",
        "- x",
        "'x'",
        '"',
        "a\nb",
        "\t",
        "{a}",
        "[b]",
        "%a",
        "@a",
        "`a",
        "*a",
        "&a",
        "!x",
        "|",
        ">",
        "? a",
    ),
    *("ü", "雪", "😀", "\x85", "\u2028", "\x07", "\ufeff", " a ", "a,b", "\\", "x" * 300, "a b " * 100),
]
WITH_FLAG = [each for each in SETTINGS.values() if each.has_flag]
NUMBERS = [0, 1, 16, 2**20, 2**31, 10**9, 0.0, 0.001, 1e-5, 1e-300, 0.1 + 0.2, 0.5, 0.25, 1.0, 5.0, 1e22]
VALUES = {  # by the placeholders of values, or by the names of settings
    "N,N": [(), (1,), (512, 256)],
    "N|N%": ["0", "25", "1%", "0.1%", "100%"],
    "TIME": ["06:00", "12:30", "2030-01-31 06:00"],
    "X": NUMBERS,
    "N": [n for n in NUMBERS if isinstance(n, int)],
    "NAME,NAME": [("all",), ("cuda0", "cuda12"), ("opencl0:0", "cpu")],
    "CONDITION": ["split == train", "n < 1e5", "on in off,2024_01"],
    "BYTES": [2**24, 2**24 + 1, 2**30, 10**9],
    "missing_value": [-9999, 2**63 + 1, 0.5, -1e-7, 10**300],
}


def some_value(setting: Setting, draw: random.Random) -> Any:
    """Return a random valid value of a setting."""
    kind = setting.kind
    if isinstance(setting.default, tuple):
        return tuple(draw.choice(TEXTS) for _ in range(draw.randint(1, 3)))
    if kind in (SWITCH, YES_OR_NO):
        return draw.random() < 0.5
    if kind.metavar.startswith("{"):
        return draw.choice(kind.metavar.strip("{}").split(","))
    values = VALUES.get(setting.name) or VALUES.get(kind.metavar, TEXTS)
    return draw.choice([value for value in values if is_valid(setting, value)])


def is_valid(setting: Setting, value: Any) -> bool:
    try:
        return bool(setting.checked(value) == value)
    except ValueError:
        return False


def with_preset(values: dict[str, Any]) -> Config:
    return Config.of(**{**values_of_preset(values.get("preset")), **values})


def test_printed_settings_can_be_read_again(file: Callable[[str], list[str]]) -> None:
    draw = random.Random(0)
    for _ in range(40):
        chosen = {each.name: some_value(each, draw) for each in WITH_FLAG if draw.random() < 0.5}
        while wrong := problems(with_preset(chosen)):  # settings that exclude each other, or that require another one
            name = wrong[0].split(":")[0].split(" and ")[0]
            chosen.pop(name if name in chosen else "preset")
        config = with_preset(chosen)
        assert parse(file(as_yaml(config, _STAGES)), {}, "") == config


def test_printed_defaults_are_comments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        parse(["--print-config", "--epochs", "5"], {"SHARDPRESS_SEED": "3"}, "")
    page = capsys.readouterr().out
    assert [line for line in page.splitlines() if line and not line.startswith("#")] == ["epochs: 5", "seed: 3"]
    assert max(map(len, page.splitlines())) <= 120
    for each in WITH_FLAG:
        assert f"\n# {each.name}:" in page or each.name in ("epochs", "seed")
        assert each.help[:30] in page


def test_a_line_lists_settings_that_differ_from_the_defaults() -> None:
    assert summary_line(Config()) == "input data/*.h5, output features"
    config = Config.of(input=("a", "b", "c", "d"), hidden=(), seed=2**20, memory_budget=2**32, quiet=True)
    assert mentions(summary_line(config), "input a, b, c", 1, "output features", "hidden none", "seed 1048576")
    assert summary_line(config).endswith(", memory_budget 4096MiB")
    assert summary_line(with_preset({"preset": "reference", "seed": 3})).endswith("features, preset reference, seed 3")
