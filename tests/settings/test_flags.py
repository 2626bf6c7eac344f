"""Tests of settings from four sources, which override each other, and of printed settings, which are read back."""

import json
import random
import re

import pytest

from shardpress.settings import flags as module
from shardpress.settings.config import SETTINGS, Config, problems
from shardpress.settings.flags import parse
from shardpress.settings.kinds import SWITCH, YES_OR_NO
from shardpress.settings.presets import values_of_preset
from shardpress.settings.printed import as_yaml
from tests.support.cases import case
from tests.support.helpers import refused

NUMBERS = [1, 2, 8, 0, 16, 2**20, 2**31, 10**9, 0.1, 0.25, 0.4, 0.001, 1e-5, 1e-300, 0.1 + 0.2, 0.5, 1.0, 5.0, 1e22]
VALUES = {  # by the placeholders of values, or by the names of settings
    "N,N": [(5,), (), (512, 256)],
    "N|N%": ["5", "0.5%", "0", "100%"],
    "TIME": ["06:00", "+8h", "2030-01-31 06:00"],
    "X": NUMBERS,
    "N": [n for n in NUMBERS if isinstance(n, int)],
    "NAME,NAME": [("cuda0",), ("opencl0:0", "cpu"), ("all",)],
    "CONDITION": ["a == b", "c/d < 1e5", "on in off,2024_01"],
    "BYTES": [2**24, 2**25, 2**24 + 1, 10**9],
    "missing_value": [-1.0, -9999, 2**63 + 1, 0.5, -1e-7, 10**300],
    "text": ["a", "b/c", "d"],
    "list": [("a",), ("b/c", "d"), ("e", "f")],
}


REQUIRED_VALUES = {  # for each setting, the settings that it requires
    **{name: {"scheduler": "a"} for name in ("insecure_cluster", "mixed_processors")},
    "missing_indicator": {"impute": "mean"},
    "target_weight": {"target": "y"},
    **{name: {"append": True} for name in ("drop_missing", "on_append_drift")},
    "keep_generations": {"retrain": True},
}
WITH_FLAG = [name for name, setting in SETTINGS.items() if setting.has_flag]
LISTS = ("hidden", "devices")  # commas separate the values in one word


def values_of(setting):
    """Return valid values of a setting."""
    kind = setting.kind
    if kind in (SWITCH, YES_OR_NO):
        return [True, False]
    if kind.metavar.startswith("{"):
        return kind.metavar.strip("{}").split(",")
    if isinstance(setting.default, tuple) and setting.name not in LISTS:
        return VALUES["list"]
    candidates = VALUES.get(setting.name) or VALUES.get(kind.metavar, VALUES["text"])
    return [value for value in candidates if is_valid(setting, value)]


def is_valid(setting, value):
    needed = REQUIRED_VALUES.get(setting.name, {})
    try:
        return setting.checked(value) == value and not problems(Config().changed(**needed, **{setting.name: value}))
    except ValueError:
        return False


def flags(name, value):
    flag = "--" + name.replace("_", "-")
    if name in ("nested", "missing_indicator"):
        return [flag] if value is True else [flag, word(name, value)]
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-")]
    return [flag, *(map(str, value) if isinstance(value, tuple) and name not in LISTS else [word(name, value)])]


def variable(name, value):
    return {f"SHARDPRESS_{name.upper()}": word(name, value)}


def word(name, value):
    if isinstance(value, tuple) and name in LISTS:
        return ",".join(map(str, value)) or "none"
    return ":".join(value) if isinstance(value, tuple) else str(value)


def settings(*arguments, **environment):
    return parse(arguments, environment, "")


# -- precedence --------------------------------------------------------------------------------------------------


def test_flags_override_environment_file_and_defaults(file):
    assert settings() == Config()
    for name in WITH_FLAG:
        if name == "preset":  # see test_presets.py
            continue
        values = values_of(SETTINGS[name])
        in_file, in_environment, in_flag = (values * 3)[:3]
        with case(name):
            needed = REQUIRED_VALUES.get(name, {})
            default = Config().changed(**needed)
            lines = [f"{other}: {value}" for other, value in needed.items()]
            lines.append(f"{name}: {list(in_file) if isinstance(in_file, tuple) else in_file}")
            sources = file("\n".join(lines))
            variables = variable(name, in_environment)
            assert settings(*sources) == default.changed(**{name: in_file})
            assert settings(*sources, **variables) == default.changed(**{name: in_environment})
            assert settings(*sources, *flags(name, in_flag), **variables) == default.changed(**{name: in_flag})


def test_sources_add_up_and_lists_can_be_repeated_or_empty(file):
    found = settings(*file("epochs: 3\nseed: 4"), "--n-features", "5", SHARDPRESS_SEED="6", OTHER_SEED="7")
    assert (found.training.epochs, found.network.n_features, found.training.seed) == (3, 5, 6)
    assert settings("--input", "a", "b", "--input", "c").inputs.input == ("a", "b", "c")
    for line in ("include: []", "include:", "include: ''"):
        assert settings(*file(line)) == settings(SHARDPRESS_INCLUDE="") == Config(), line


def test_automatic_values_can_be_requested_by_name(file):
    for name in ("dataset", "n_features", "learning_rate"):
        for text in ("none", "auto"):
            assert settings(*flags(name, text), **variable(name, 1)).flat()[name] is None, (name, text)
        assert settings(*file(f"{name}: null")).flat()[name] is None, name
    for sources in (["--hidden", "auto"], file("hidden: ''")):
        assert settings(*sources).network.hidden is None, sources
    for sources in (["--hidden", "none"], file("hidden: []")):
        assert settings(*sources).network.hidden == (), sources
    assert settings(*file("hidden: 512")).network.hidden == (512,)


def test_a_tilde_is_expanded_in_every_path(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("input", "output", "model", "scheduler"):
        with case(name):
            value = ("~/x", "a~b/~") if name == "input" else "~/x"
            expected = (f"{tmp_path}/x", "a~b/~") if name == "input" else f"{tmp_path}/x"
            line = f"{name}: {json.dumps(value)}"
            for found in (settings(*flags(name, value)), settings(**variable(name, value)), settings(*file(line))):
                assert found.flat()[name] == expected
    file("seed: 7")
    for found in (settings("--config=~/settings.yaml"), settings(SHARDPRESS_CONFIG="~/settings.yaml")):
        assert found.training.seed == 7


# -- values ------------------------------------------------------------------------------------------------------


BAD_VALUES = {
    "epochs": "ten",
    "memory_budget": "lots",
    "optimizer": "sgd",
    "max_bad": "150%",
    "hidden": "512,",
    "finish_by": "25:00",
}


def test_the_error_about_a_value_names_its_source_and_setting(file):
    for name, value in BAD_VALUES.items():
        with case(name, value):
            with refused(64, f"--{name.replace('_', '-')}: ", value):
                settings(*flags(name, value))
            with refused(78, f"environment: SHARDPRESS_{name.upper()}: ", value):
                settings(**variable(name, value))
            with refused(78, f"settings.yaml: key {name}: ", value):
                settings(*file(f"{name}: '{value}'"))


WRONG_SHAPES = [  # lines of a file
    "epochs: [1, 2]",
    "patience:",
    "hidden: [a]",
    "input: []",
    "input: [[a.h5]]",
    "output: 2024_01",
    "include: [1.50]",
    "learning_rate: .nan",
    "missing_value: -.inf",
    'dataset: "X\\0"',
]


def test_a_value_of_the_wrong_shape_is_refused(file):
    for line in WRONG_SHAPES:
        with case(line), refused(78, f"settings.yaml: key {line.split(':')[0]}: "):
            settings(*file(line))


def test_a_missing_value_is_exact(file):
    """Missing 64-bit integers are often marked by their largest or smallest value, which no float64 equals."""
    values = {"-999.9": -999.9, "1e3": 1000, "none": None, "18446744073709551615": 2**64 - 1}
    for text, value in values.items():
        for found in (settings("--missing-value", text), settings(*file(f"missing_value: '{text}'"))):
            assert found.bad_data.missing_value == value, text


UNKNOWN_FLAGS = [
    (["--epoch", "3"], ["--epoch", "--epochs?", "--help"]),
    (["--n_features=3"], ["--n_features", "--n-features?"]),
    (["data.h5"], ["data.h5", "--input data.h5?"]),
    (["--device", "cuda"], ["THEANO_FLAGS=device=cuda."]),
    (["--epochs"], ["--epochs", "argument"]),
    (["--bad\nflag"], ["--bad\\nflag"]),
]


def test_an_unknown_name_is_refused_with_a_suggestion(file):
    for arguments, phrases in UNKNOWN_FLAGS:
        with case(arguments), refused(64, *phrases):
            settings(*arguments)
    with refused(78, "settings.yaml: key n_feature ", "n_features?"):
        settings(*file("n_feature: 3"))
    with refused(78, "SHARDPRESS_EPOCH ", "SHARDPRESS_EPOCHS?"):
        settings(SHARDPRESS_EPOCH="3")


def test_invalid_flags_are_usage_errors(file):
    for name, value in (("epochs", "0"), ("finish-by", "+1e9h"), ("corruption", "0.001")):
        with case(name, value), refused(64, f"{name}: ", value):
            settings(f"--{name}", value)
    (complaint,) = problems(settings(*file("corruption: 0.001")))
    assert complaint.startswith("corruption: 0.001, "), "the run refuses it"


# -- printed settings --------------------------------------------------------------------------------------------


def page_of(capsys, *arguments, **environment):
    """Return the page that a flag prints."""
    with pytest.raises(SystemExit) as ended:
        settings(*arguments, **environment)
    assert ended.value.code == 0
    return capsys.readouterr().out


def flags_on(page):
    """Return the names of the settings on a page."""
    listed = re.findall(r"^  --([a-z][a-z-]*)", page, re.M)
    return sorted({name.replace("-", "_") for name in listed} & SETTINGS.keys())


def test_help_fits_on_two_screens_and_help_all_lists_all(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = page_of(capsys, "--help")
    assert len(page.splitlines()) <= 2 * 50
    assert 20 <= len(flags_on(page)) <= 30
    every = page_of(capsys, "--epochs", "3", "--help-all")
    assert flags_on(every) == sorted(WITH_FLAG)


# Texts that YAML would read as other types, or cannot write unquoted.
TEXTS = [
    *("x", "2024_01", "1e5", "0x10", "1_000", "yes", "on", "null", "=", "<<", "2026-11-26", "12:30:00"),
    *("a: b", " #x", "- x", "'x'", '"', "a\nb", "\t", "{a}", "[b]", "%a", "@a", "`a", "*a", "&a", "!x", "|"),
    *("ü", "雪", "😀", "\x85", "\u2028", "\x07", "\ufeff", " a ", "a,b", "\\", "x" * 300, "a b " * 100),
]


def some_value(setting, draw):
    """Return a random valid value of a setting."""
    values = values_of(setting)
    if values is VALUES["list"]:
        return tuple(draw.choice(TEXTS) for _ in range(draw.randint(1, 3)))
    return draw.choice(TEXTS if values == VALUES["text"] else values)


def with_preset(values):
    return Config.of(**{**values_of_preset(values.get("preset")), **values})


def test_printed_settings_can_be_read_again(file):
    draw = random.Random(0)
    for _ in range(15):
        chosen = {name: some_value(SETTINGS[name], draw) for name in WITH_FLAG if draw.random() < 0.5}
        while wrong := problems(with_preset(chosen)):  # settings that exclude each other, or that require another one
            name = wrong[0].split(":")[0].split(" and ")[0]
            chosen.pop(name if name in chosen else "preset")
        config = with_preset(chosen)
        assert settings(*file(as_yaml(config, module._STAGES))) == config


def test_printed_defaults_are_comments(capsys):
    page = page_of(capsys, "--print-config", "--epochs", "5", SHARDPRESS_SEED="3")
    assert [line for line in page.splitlines() if line and not line.startswith("#")] == ["epochs: 5", "seed: 3"]
    for name in WITH_FLAG:
        assert f"\n# {name}:" in page or name in ("epochs", "seed")
