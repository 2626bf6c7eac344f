"""Tests of settings from four sources: the order of precedence, and errors that name the expected values."""

import json
import re

import pytest

from shardpress.errors import ConfigError
from shardpress.settings import flags as module
from shardpress.settings.config import SETTINGS, Config, problems
from shardpress.settings.flags import parse
from tests.support.cases import case
from tests.support.helpers import refused

# For each setting, as text: its value in the file, the environment and the flag; then the three values.
SAMPLES = {
    "input": (("a.h5",), ("b.h5", "c.h5"), ("d.h5", "e.h5")),
    "dataset": ("a", "b", "c"),
    "orientation": ("rows", "columns", "rows"),
    "match_columns": ("name", "ignore", "order"),
    "include": (("a",), ("b/c", "d"), ("e", "f")),
    "labels": ("a", "b/c", "d"),
    "fit_on": ("a == b", "c/d < 1", "e in f,g"),
    "output": ("a", "b", "c"),
    "model": ("a", "b", "c"),
    "n_features": (1, 2, 3),
    "hidden": ((5,), (6, 7), ()),
    "activation": ("leaky-relu", "relu", "leaky-relu"),
    "code_activation": ("linear", "sigmoid", "linear"),
    "nested": (True, False, True),
    "output_layer": ("hidden", "code", "hidden"),
    "epochs": (1, 2, 3),
    "batch_size": (1, 2, 3),
    "optimizer": ("momentum", "nesterov", "rmsprop"),
    "learning_rate": (0.1, 0.25, 0.5),
    "corruption": (0.1, 0.25, 0.5),
    "target": ("a", "b/c", "d"),
    "target_weight": (0.1, 0.25, 0.5),
    "replicas": (1, 2, 8),
    "seed": (1, 2, 3),
    "validation_fraction": (0.1, 0.25, 0.5),
    "patience": (1, 2, 3),
    "threads": (1, 2, 3),
    "memory_budget": (2**24, 2**25, 2**26),
    "device_memory_budget": (1, 2, 3),
    "on_bad_data": ("skip", "raise", "skip"),
    "max_bad": ("5", "0.5%", "7"),
    "missing_value": (-1.0, -2.0, -3.0),
    "impute": ("mean", "median", "mean"),
    "missing_indicator": (True, False, True),
    "row_scale": ("total", "median", "norm"),
    "transform": ("log1p", "log1p", "log1p"),
    "scale": ("std", "common", "none"),
    "clip_quantile": (0.1, 0.25, 0.4),
    "on_drift": ("clip", "raise", "clip"),
    "storage_dtype": ("float16", "float32", "float16"),
    "compression": ("gzip", "none", "lzf"),
    "row_error": (True, False, True),
    "workers": (1, 2, 3),
    "devices": (("cuda0",), ("opencl0:0", "cpu"), ("all",)),
    "scheduler": ("tls://a:1", "b", "c"),
    "insecure_cluster": (True, False, True),
    "mixed_processors": (True, False, True),
    "finish_by": ("06:00", "+8h", "2030-01-31 06:00"),
    "verify": ("sizes", "digests", "sizes"),
    "restart": (True, False, True),
    "require_device": (True, False, True),
    "overwrite": (True, False, True),
    "append": (True, False, True),
    "drop_missing": (True, False, True),
    "on_append_drift": ("fail", "warn", "fail"),
    "retrain": (True, False, True),
    "keep_generations": (1, 3, 4),
    "quiet": (True, False, True),
    "verbose": (True, False, True),
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
    assert sorted([*SAMPLES, "preset"]) == sorted(WITH_FLAG)  # see test_presets.py
    for name, (in_file, in_environment, in_flag) in SAMPLES.items():
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


def test_the_environment_can_name_the_file(file):
    assert settings(SHARDPRESS_CONFIG=file("epochs: 3")[1]).training.epochs == 3
    assert settings(*file("epochs: 4"), SHARDPRESS_CONFIG="elsewhere.yaml").training.epochs == 4


def test_automatic_values_can_be_requested_by_name(file):
    for name in ("dataset", "model", "n_features", "epochs", "learning_rate", "batch_size", "threads"):
        for word in ("none", "auto"):
            assert settings(*flags(name, word), **variable(name, 1)).flat()[name] is None, (name, word)
        assert settings(*file(f"{name}: null")).flat()[name] is None, name


def test_hidden_layers_distinguish_none_and_automatic(file):
    for sources in (["--hidden", "auto"], file("hidden:"), file("hidden: ''")):
        assert settings(*sources).network.hidden is None, sources
    for sources in (["--hidden", "none"], file("hidden: none"), file("hidden: []")):
        assert settings(*sources).network.hidden == (), sources
    assert settings(*file("hidden: 512")).network.hidden == (512,)
    assert settings(*file("hidden: 512, 256")).network.hidden == (512, 256)
    assert settings("--hidden", "512,256").network.hidden == (512, 256)


def test_nested_features_are_requested_by_the_flag_or_by_yes():
    answers = {"yes": True, "no": False, "true": True}
    assert {word: settings("--nested", word).network.nested for word in answers} == answers
    assert settings("--nested", "--seed", "3").network.nested


def test_a_tilde_is_expanded_in_every_path(file, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("input", "output", "model", "scheduler"):
        with case(name):
            value = ("~/x", "a~b/~") if name == "input" else "~/x"
            expected = (f"{home}/x", "a~b/~") if name == "input" else f"{home}/x"
            line = f"{name}: {json.dumps(value)}"
            for found in (settings(*flags(name, value)), settings(**variable(name, value)), settings(*file(line))):
                assert found.flat()[name] == expected
    (home / "settings.yaml").write_text("seed: 7")
    for found in (settings("--config=~/settings.yaml"), settings(SHARDPRESS_CONFIG="~/settings.yaml")):
        assert found.training.seed == 7
    with refused(64, "--output: '~missing-user/x', "):
        settings("--output", "~missing-user/x")


# -- values ------------------------------------------------------------------------------------------------------


BAD_VALUES = [
    ("epochs", "ten", "number"),
    ("epochs", "0", "at least 1"),
    ("corruption", "much", "number"),
    ("clip_quantile", "0.5", "below 0.5"),
    ("memory_budget", "lots", "bytes"),
    ("memory_budget", "1024", "at least 16MiB"),
    ("optimizer", "sgd", "momentum, nesterov, adam, rmsprop"),
    ("max_bad", "150%", "percentage"),
    ("max_bad", "1.5", "0.1%"),
    ("missing_value", "NA", "number"),
    ("hidden", "512,", "512,256"),
    ("nested", "perhaps", "yes or no"),
    ("finish_by", "soon", "'soon'"),
    ("finish_by", "25:00", "'25:00'"),
    ("finish_by", "+1e9h", "'+1e9h'"),
]


def test_the_error_about_a_value_names_its_source_and_setting(file):
    for name, value, phrase in BAD_VALUES:
        with case(name, value):
            with refused(64, f"--{name.replace('_', '-')}: ", value, phrase):
                settings(*flags(name, value))
            with refused(78, f"environment: SHARDPRESS_{name.upper()}: ", value, phrase):
                settings(**variable(name, value))
            with refused(78, f"settings.yaml: key {name}: ", value, phrase):
                settings(*file(f"{name}: '{value}'"))


WRONG_SHAPES = [  # lines of a file
    "epochs: [1, 2]",
    "epochs: {a: 1}",
    "patience:",
    "hidden: [a]",
    "hidden: [[5]]",
    "hidden: {5: 6}",
    "quiet: perhaps",
    "input: []",
    "input:",
    "input: 3",
    "input: [[a.h5]]",
    "include: [{a: b}]",
    "input: [~]",
    "output: 2024_01",
    "dataset: yes",
    "include: [1.50]",
    'dataset: "X\\0"',
]


def test_a_value_of_the_wrong_shape_is_refused(file):
    for line in WRONG_SHAPES:
        with case(line), refused(78, f"settings.yaml: key {line.split(':')[0]}: "):
            settings(*file(line))


def test_limits_are_numbers_or_percentages():
    limits = {"0": "0", "25": "25", " 5 ": "5", "1%": "1%", "0.5 %": "0.5%", ".5%": ".5%", "100.0%": "100.0%"}
    assert {text: settings("--max-bad", text).bad_data.max_bad for text in limits} == limits


def test_a_missing_value_is_exact(file):
    """Missing 64-bit integers are often marked by their largest or smallest value, which no float64 equals."""
    values = {
        **{"-9999": -9999, "-999.9": -999.9, "1e3": 1000, "1e300": int(1e300), "none": None},
        **{"9223372036854775807": 2**63 - 1, "18446744073709551615": 2**64 - 1},
    }
    for text, value in values.items():
        for found in (settings("--missing-value", text), settings(*file(f"missing_value: '{text}'"))):
            assert found.bad_data.missing_value == value, text


UNKNOWN_FLAGS = [
    (["--epoch", "3"], ["--epoch", "--epochs?", "--help"]),
    (["--n_features=3"], ["--n_features", "--n-features?"]),
    (["--zzzzzz"], ["--zzzzzz. ", "--help"]),
    (["data.h5"], ["data.h5", "--input data.h5?"]),
    (["--device", "cuda"], ["THEANO_FLAGS=device=cuda."]),
    (["--device"], ["THEANO_FLAGS=device="]),
    (["--", "-"], ["argument -"]),
    (["--epochs"], ["--epochs", "argument"]),
    (["--quiet=yes"], ["--quiet", "yes"]),
    (["--bad\nflag"], ["--bad\\nflag"]),
]


def test_an_unknown_name_is_refused_with_a_suggestion(file):
    for arguments, phrases in UNKNOWN_FLAGS:
        with case(arguments), refused(64, *phrases):
            settings(*arguments)
    with pytest.raises(ConfigError, match=r"key config\b[^?]*$"):  # the obvious suggestion
        settings(*file("config: other.yaml"))
    with refused(78, "settings.yaml: key n_feature ", "n_features?"):
        settings(*file("n_feature: 3"))
    with refused(78, "SHARDPRESS_EPOCH ", "SHARDPRESS_EPOCHS?"):
        settings(SHARDPRESS_EPOCH="3")


def test_all_errors_of_a_source_are_listed_at_once(file):
    with refused(78, "key epoch ", "seed: 'x'", "corruption: 'y'"):
        settings(*file("epoch: 3\nseed: x\ncorruption: y\npatience: 3"))
    with refused(64, "--seed: 'x'", "--corruption: 'y'"):
        settings("--seed", "x", "--corruption", "y")
    with refused(78, "SHARDPRESS_SEED: 'x'", "SHARDPRESS_CORRUPTION: 'y'", "SHARDPRESS_EPOCH "):
        settings(SHARDPRESS_SEED="x", SHARDPRESS_CORRUPTION="y", SHARDPRESS_EPOCH="3")


def test_invalid_flags_are_usage_errors(file):
    for name, value in (("epochs", "ten"), ("epochs", "0"), ("corruption", "0.001")):
        with case(name, value), refused(64, f"{name}: ", value):
            settings(f"--{name}", value)
    (complaint,) = problems(settings(*file("corruption: 0.001")))
    assert complaint.startswith("corruption: 0.001, "), "the run refuses it"


def printed(capsys, *arguments):
    """Return the page that a flag prints."""
    with pytest.raises(SystemExit) as ended:
        settings(*arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def flags_on(page):
    """Return the names of the settings on a page."""
    listed = re.findall(r"^  --([a-z][a-z-]*)", page, re.M)
    return sorted({name.replace("-", "_") for name in listed} & SETTINGS.keys())


def test_help_fits_on_two_screens_and_lists_common_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = printed(capsys, "--help")
    assert len(page.splitlines()) <= 2 * 50
    assert flags_on(page) == sorted(module._COMMON)
    assert 20 <= len(set(module._COMMON)) <= 30
    assert "--help-all" in page


def test_help_all_lists_values_of_all_settings_by_stage(capsys):
    output = printed(capsys, "--epochs", "3", "--help-all")
    assert flags_on(output) == sorted(WITH_FLAG)
    assert "VALUE" not in output
    for phrase in (
        "--verify {digests,sizes}",
        "--on-drift {clip,pass,raise}",
        "--epochs N",
        "--memory-budget BYTES",
    ):
        assert phrase in output
    titles = [line for line in output.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", *(f"{title}:" for title in module._STAGES)]
