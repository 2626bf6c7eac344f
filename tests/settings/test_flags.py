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


def test_sources_add_up(file):
    found = settings(*file("epochs: 3\nseed: 4"), "--n-features", "5", SHARDPRESS_SEED="6", OTHER_SEED="7")
    assert (found.training.epochs, found.network.n_features, found.training.seed) == (3, 5, 6)


def test_a_flag_of_several_values_can_be_repeated():
    assert settings("--input", "a", "b", "--input", "c").inputs.input == ("a", "b", "c")


def test_an_empty_list_is_allowed_if_it_is_the_default(file):
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


# -- values ------------------------------------------------------------------------------------------------------


def test_limits_are_numbers_or_percentages():
    limits = {"0": "0", "25": "25", " 5 ": "5", "1%": "1%", "0.5 %": "0.5%", ".5%": ".5%", "100.0%": "100.0%"}
    assert {text: settings("--max-bad", text).bad_data.max_bad for text in limits} == limits


def test_invalid_limits_are_refused_with_an_example():
    numbers = ("-1", "1.5", "1e3", "inf", "9" * 5000)
    for text in ("", "150%", "100.001%", "-1%", "%", "1%%", "1.%", "nan%", "some", *numbers):
        with case(text), refused(78, "MAX_BAD", "0.1%"):
            settings(**variable("max_bad", text))


def test_a_missing_value_is_exact(file):
    """Missing 64-bit integers are often marked by their largest or smallest value, which no float64 equals."""
    values = {
        **{"-9999": -9999, "-999.9": -999.9, "1e3": 1000, "1e300": int(1e300), "none": None},
        **{"9223372036854775807": 2**63 - 1, "18446744073709551615": 2**64 - 1},
    }
    for text, value in values.items():
        for found in (settings("--missing-value", text), settings(*file(f"missing_value: '{text}'"))):
            assert found.bad_data.missing_value == value, text


BAD_VALUES = [
    ("epochs", "ten", "number"),
    ("epochs", "1.5", "number"),
    ("corruption", "much", "number"),
    ("memory_budget", "lots", "bytes"),
    ("optimizer", "sgd", "momentum, nesterov, adam, rmsprop"),
    ("on_bad_data", "ignore", "raise, skip"),
    ("on_drift", "drop", "clip, pass, raise"),
    ("max_bad", "150%", "percentage"),
    ("missing_value", "NA", "number"),
    ("hidden", "wide", "512,256"),
    ("hidden", "512,", "512,256"),
    ("activation", "nonsense", "relu, leaky-relu"),
    ("nested", "perhaps", "yes or no"),
]


def test_the_error_about_a_value_names_its_source_and_setting(file):
    for name, value, phrase in BAD_VALUES:
        with case(name, value):
            with refused(64, f"--{name.replace('_', '-')}: {value!r}", phrase):
                settings(*flags(name, value))
            with refused(78, f"environment: SHARDPRESS_{name.upper()}: {value!r}", phrase):
                settings(**variable(name, value))
            with refused(78, f"settings.yaml: key {name}: {value!r}", phrase):
                settings(*file(f"{name}: {value}"))


def test_the_error_about_a_number_names_its_limits(file):
    for name, value, phrase in (
        ("epochs", "0", "0, expected a whole number, at least 1"),
        ("clip_quantile", "0.5", "0.5, expected a finite number, at least 0 and below 0.5"),
        ("memory_budget", "1KiB", "at least 16MiB"),
    ):
        with case(name), refused(78, f"key {name}: ", phrase):
            settings(*file(f"{name}: {value}"))


WRONG_SHAPES = [
    ("epochs: [1, 2]", "value"),
    ("epochs: {a: 1}", "value"),
    ("patience:", "number"),
    ("hidden: [a]", "'a'"),
    ("hidden: [[5]]", "'[5]'"),
    ("hidden: {5: 6}", "value"),
    ("quiet: perhaps", "true or false"),
    ("input: []", "value"),
    ("input:", "value"),
    ("input: 3", "value"),
    ("input: [[a.h5]]", "['a.h5']"),
    ("include: [{a: b}]", "{'a': 'b'}"),
    ("input: [~]", "path"),
    ("output: 2024_01", "202401"),
    ("dataset: yes", "True"),
    ("include: [1.50]", "1.5"),
    ('output: "a\\0b"', "'a\\x00b'"),
    ('dataset: "X\\0"', "'X\\x00'"),
]


def test_a_value_of_the_wrong_shape_is_refused(file):
    for line, phrase in WRONG_SHAPES:
        with case(line), refused(78, f"key {line.split(':')[0]}: ", phrase):
            settings(*file(line))


UNKNOWN_FLAGS = [
    (["--epoch", "3"], ["--epoch", "--epochs?", "--help"]),
    (["--n_features=3"], ["--n_features", "--n-features?"]),
    (["--zzzzzz"], ["--zzzzzz. ", "--help"]),
    (["data.h5"], ["data.h5", "--input data.h5?"]),
    (["--hepl"], ["--help?"]),
    (["--device", "cuda"], ["THEANO_FLAGS=device=cuda."]),
    (["--device=opencl0:0"], ["THEANO_FLAGS=device=opencl0:0."]),
    (["--device"], ["THEANO_FLAGS=device="]),
    (["--batch", "3"], ["--batch-size?"]),
    (["--dry-run"], ["--dry-run. ", "--help"]),
    (["--log-file", "x"], ["--log-file. ", "--help"]),
    (["--", "-"], ["argument -"]),
    (["--epochs"], ["--epochs", "argument"]),
    (["--input"], ["--input", "argument"]),
    (["--quiet=yes"], ["--quiet", "yes"]),
    (["--bad\nflag"], ["--bad\\nflag"]),
]


def test_an_unknown_flag_is_refused_with_a_suggestion():
    for arguments, phrases in UNKNOWN_FLAGS:
        with case(arguments), refused(64, *phrases):
            settings(*arguments)


def test_an_unknown_key_or_variable_is_refused_with_a_suggestion(file):
    with pytest.raises(ConfigError, match=r"key config\b[^?]*$"):  # the obvious suggestion
        settings(*file("config: other.yaml"))
    with refused(78, "settings.yaml: key n_feature ", "n_features?"):
        settings(*file("n_feature: 3"))
    with refused(78, "SHARDPRESS_EPOCH ", "SHARDPRESS_EPOCHS?"):
        settings(SHARDPRESS_EPOCH="3")


def test_all_errors_of_a_file_are_listed_at_once(file):
    with refused(78, "key epoch ", "seed: 'x'", "corruption: 'y'"):
        settings(*file("epoch: 3\nseed: x\ncorruption: y\npatience: 3"))


def test_all_errors_of_flags_are_listed_at_once():
    with refused(64, "--seed: 'x'", "--corruption: 'y'"):
        settings("--seed", "x", "--corruption", "y")


def test_all_errors_of_the_environment_are_listed_at_once():
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


def test_every_setting_belongs_to_one_stage():
    all_names = [name for names in module._STAGES.values() for name in names]
    assert sorted(all_names) == sorted(WITH_FLAG)


def test_a_tilde_is_expanded_in_every_path(file, tmp_path, monkeypatch):
    for name in ("input", "output", "model", "scheduler"):
        with case(name):
            monkeypatch.setenv("HOME", str(tmp_path / "home"))
            takes_several = name == "input"
            expected = (f"{tmp_path}/home/x", "a~b/~") if takes_several else f"{tmp_path}/home/x"
            sources = ("~/x", "a~b/~") if takes_several else "~/x"
            line = f"{name}: {json.dumps(sources)}"
            for found in (settings(*flags(name, sources)), settings(**variable(name, sources)), settings(*file(line))):
                assert found.flat()[name] == expected


def test_a_tilde_is_expanded_in_the_path_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.yaml").write_text("seed: 7")
    assert settings("--config=~/settings.yaml", "--output=~/x").results.output == f"{tmp_path}/x"
    assert settings("--config=~/settings.yaml").training.seed == 7
    assert settings(SHARDPRESS_CONFIG="~/settings.yaml").training.seed == 7


def test_a_tilde_of_an_unknown_user_is_refused():
    for name in ("input", "output", "model"):
        with case(name):
            with refused(64, f"--{name}: '~missing-user/x', "):
                settings(f"--{name}", "~missing-user/x")
            assert settings(f"--{name}", "./~x").flat()[name] in ("./~x", ("./~x",))


@pytest.mark.parametrize("text", ["8h", "+8", "+h", "+0h", "+-1h", "+nanh", "+1e9h", "25:00", "soon"])
def test_invalid_times_are_refused(text):
    with refused(64, "--finish-by", repr(text)):
        settings("--finish-by", text)
