"""Settings: four sources, one order, and every mistake named with what was expected."""

import json

import pytest

from pipeline.errors import ConfigError
from pipeline.settings import flags as module
from pipeline.settings.config import SETTINGS, Config, problems
from pipeline.settings.flags import parse
from tests.support.cases import case
from tests.support.helpers import refused

# For each setting, as words: what the file, the environment and the flag say; and then the three as values.
SAMPLES = {
    "input": (("a.h5",), ("b.h5", "c.h5"), ("d.h5", "e.h5")),
    "follow": (("a",), ("b", "c"), ("d", "e")),
    "dataset": ("a", "b", "c"),
    "orientation": ("rows", "columns", "rows"),
    "match_columns": ("name", "ignore", "order"),
    "carry": (("a",), ("b/c", "d"), ("e", "f")),
    "output": ("a", "b", "c"),
    "model": ("a", "b", "c"),
    "n_features": (1, 2, 3),
    "hidden": ((5,), (6, 7), ()),
    "activation": ("leaky-relu", "relu", "leaky-relu"),
    "code_activation": ("linear", "sigmoid", "linear"),
    "decoder_gain": (True, False, True),
    "start": ("components", "random", "components"),
    "epochs": (1, 2, 3),
    "batch_size": (1, 2, 3),
    "optimizer": ("momentum", "nesterov", "rmsprop"),
    "learning_rate": (0.1, 0.25, 0.5),
    "schedule": ("constant", "linear", "constant"),
    "biases": ("zero", "mean", "zero"),
    "momentum": (0.1, 0.25, 0.5),
    "corruption": (0.1, 0.25, 0.5),
    "weight_decay": (0.1, 0.25, 0.5),
    "replicas": (1, 2, 8),
    "seed": (1, 2, 3),
    "validation_fraction": (0.1, 0.25, 0.5),
    "patience": (1, 2, 3),
    "baseline": (False, True, False),
    "block_rows": (1, 2, 3),
    "threads": (1, 2, 3),
    "memory_budget": (2**24, 2**25, 2**26),
    "device_memory_budget": (1, 2, 3),
    "shuffle_window": (1, 2, 3),
    "on_bad_data": ("skip", "raise", "quarantine"),
    "max_bad_rows": ("5", "0.5%", "7"),
    "max_bad_shards": ("5", "0.5%", "7"),
    "missing_value": (-1.0, -2.0, -3.0),
    "impute": ("mean", "median", "mean"),
    "clip_quantile": (0.1, 0.25, 0.4),
    "on_drift": ("clip", "raise", "clip"),
    "storage_dtype": ("float16", "float32", "float16"),
    "compression": ("gzip", "none", "lzf"),
    "max_feature_error": (0.1, 0.01, 0.001),
    "workers": (1, 2, 3),
    "devices": (("cuda0",), ("opencl0:0", "cpu"), ("all",)),
    "scheduler": ("a", "b", "c"),
    "scheduler_file": ("a", "b", "c"),
    "insecure_cluster": (True, False, True),
    "mixed_processors": (True, False, True),
    "dashboard": (True, False, True),
    "checkpoint_minutes": (1.0, 2.0, 3.0),
    "finish_by": ("06:00", "07:30", "2030-01-31 06:00"),
    "max_hours": (0.5, 8.0, 2.0),
    "verify": ("sizes", "digests", "sizes"),
    "restart": (True, False, True),
    "require_device": (True, False, True),
    "overwrite": (True, False, True),
    "single_file": (True, False, True),
    "quiet": (True, False, True),
    "verbose": (True, False, True),
}


NEEDED = {  # what one makes no sense without
    **{name: {"scheduler": "a"} for name in ("insecure_cluster", "mixed_processors")},
    "dashboard": {"workers": 1},
}
LISTS = ("hidden", "devices")  # of which commas part the values in one word


def flags(name, value):
    flag = "--" + name.replace("_", "-")
    if name in ("decoder_gain", "baseline"):
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


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(file):
    assert settings() == Config()
    assert sorted(SAMPLES) == sorted(SETTINGS)
    for name, (in_file, in_environment, in_flag) in SAMPLES.items():
        with case(name):
            needed = NEEDED.get(name, {})
            default = Config().changed(**needed)
            lines = [f"{other}: {value}" for other, value in needed.items()]
            lines.append(f"{name}: {list(in_file) if isinstance(in_file, tuple) else in_file}")
            given = file("\n".join(lines))
            variables = variable(name, in_environment)
            assert settings(*given) == default.changed(**{name: in_file})
            assert settings(*given, **variables) == default.changed(**{name: in_environment})
            assert settings(*given, *flags(name, in_flag), **variables) == default.changed(**{name: in_flag})


def test_sources_add_up(file):
    found = settings(*file("epochs: 3\nseed: 4"), "--n-features", "5", SHARDPRESS_SEED="6", OTHER_SEED="7")
    assert (found.training.epochs, found.network.n_features, found.training.seed) == (3, 5, 6)


def test_a_flag_of_several_values_may_stand_several_times():
    assert settings("--input", "a", "b", "--input", "c").inputs.input == ("a", "b", "c")


def test_none_of_several_values_may_be_asked_for_where_that_is_the_default(file):
    for line in ("follow: []", "follow:", "follow: ''"):
        assert settings(*file(line)) == settings(SHARDPRESS_FOLLOW="") == Config(), line


def test_the_file_may_be_named_in_the_environment(file):
    assert settings(SHARDPRESS_CONFIG=file("epochs: 3")[1]).training.epochs == 3


def test_what_is_found_out_by_itself_can_be_asked_for_by_name(file):
    for name in ("dataset", "model", "n_features", "epochs", "learning_rate", "block_rows", "threads"):
        for word in ("none", "auto"):
            assert settings(*flags(name, word), **variable(name, 1)).flat()[name] is None, (name, word)
        assert settings(*file(f"{name}: null")).flat()[name] is None, name


def test_hidden_layers_are_left_open_by_other_words_than_none(file):
    for given in (["--hidden", "auto"], file("hidden:"), file("hidden: ''")):
        assert settings(*given).network.hidden is None, given
    for given in (["--hidden", "none"], file("hidden: none"), file("hidden: []")):
        assert settings(*given).network.hidden == (), given
    assert settings(*file("hidden: 512")).network.hidden == (512,)
    assert settings(*file("hidden: 512, 256")).network.hidden == (512, 256)
    assert settings("--hidden", "512,256").network.hidden == (512, 256)


def test_a_gain_is_asked_for_by_its_name_or_by_an_answer():
    answers = {"yes": True, "no": False, "true": True}
    assert {word: settings("--decoder-gain", word).network.decoder_gain for word in answers} == answers
    assert settings("--decoder-gain", "--seed", "3").network.decoder_gain


# -- values ------------------------------------------------------------------------------------------------------


def test_limits_are_numbers_or_percentages():
    limits = {"0": "0", "25": "25", " 5 ": "5", "1%": "1%", "0.5 %": "0.5%", ".5%": ".5%", "100.0%": "100.0%"}
    for name in ("max_bad_rows", "max_bad_shards"):
        assert {text: settings(*flags(name, text)).flat()[name] for text in limits} == limits


def test_what_is_no_limit_is_refused_with_an_example():
    numbers = ("-1", "1.5", "1e3", "inf", "9" * 5000)
    for text in ("", "150%", "100.001%", "-1%", "%", "1%%", "1.%", "nan%", "some", *numbers):
        with case(text), refused(78, "MAX_BAD_ROWS", "expected a whole number, or a percentage like 0.1%"):
            settings(**variable("max_bad_rows", text))


def test_a_missing_value_is_kept_to_the_last_digit(file):
    """Integers of 64 bits are often marked by their largest or smallest value, which no float64 is."""
    values = {
        **{"-9999": -9999, "-999.9": -999.9, "1e3": 1000, "1e300": int(1e300), "none": None},
        **{"9223372036854775807": 2**63 - 1, "18446744073709551615": 2**64 - 1},
    }
    for text, value in values.items():
        for found in (settings("--missing-value", text), settings(*file(f"missing_value: '{text}'"))):
            assert found.bad_data.missing_value == value, text


BAD_VALUES = [
    ("epochs", "ten", "'ten', expected a whole number"),
    ("epochs", "1.5", "'1.5', expected a whole number"),
    ("momentum", "much", "'much', expected a number"),
    ("memory_budget", "lots", "'lots', expected bytes with a unit"),
    ("optimizer", "sgd", "'sgd', expected one of momentum, nesterov, adam, rmsprop"),
    ("on_bad_data", "ignore", "'ignore', expected one of raise, skip, quarantine"),
    ("on_drift", "drop", "'drop', expected one of clip, pass, raise"),
    ("max_bad_rows", "150%", "'150%', expected a whole number, or a percentage"),
    ("missing_value", "NA", "'NA', expected a number"),
    ("hidden", "wide", "'wide', expected whole numbers, like 512 or 512,256, or none"),
    ("hidden", "512,", "'512,', expected whole numbers"),
    ("activation", "nonsense", "'nonsense', expected one of relu, leaky-relu"),
    ("decoder_gain", "perhaps", "'perhaps', expected yes or no"),
]


def test_a_value_that_cannot_be_read_is_refused_by_source_name_and_kind(file):
    for name, value, phrase in BAD_VALUES:
        with case(name, value):
            with refused(64, f"--{name.replace('_', '-')}: {phrase}"):
                settings(*flags(name, value))
            with refused(78, f"environment: SHARDPRESS_{name.upper()}: {phrase}"):
                settings(**variable(name, value))
            with refused(78, f"settings.yaml: key {name}: {phrase}"):
                settings(*file(f"{name}: {value}"))


WRONG_SHAPES = [
    ("epochs: [1, 2]", "expected one value"),
    ("epochs: {a: 1}", "expected one value"),
    ("patience:", "expected a whole number"),
    ("hidden: [a]", "'a', expected whole numbers, like 512 or 512,256, or none"),
    ("hidden: [[5]]", "'[5]', expected whole numbers"),
    ("hidden: {5: 6}", "expected one value"),
    ("quiet: perhaps", "expected true or false"),
    ("input: []", "expected one value or more"),
    ("input:", "expected one value or more"),
    ("input: 3", "expected one value or more"),
    ("input: [[a.h5]]", "['a.h5'], expected one value"),
    ("carry: [{a: b}]", "{'a': 'b'}, expected one value"),
    ("input: [~]", "found nothing"),
    ("output: 2024_01", "202401 to YAML, expected a text. Put it in quotes."),
    ("dataset: yes", "True to YAML, expected a text"),
    ("carry: [1.50]", "1.5 to YAML, expected a text"),
    ('output: "a\\0b"', "'a\\x00b', expected a text without the character 0"),
    ('dataset: "X\\0"', "'X\\x00', expected a text without"),
]


def test_a_value_of_the_wrong_shape_is_refused(file):
    for line, phrase in WRONG_SHAPES:
        with case(line), refused(78, f"key {line.split(':')[0]}: ", phrase):
            settings(*file(line))


UNKNOWN_FLAGS = [
    (["--epoch", "3"], ["unknown argument --epoch", "Did you mean --epochs?", "--help"]),
    (["--n_features=3"], ["unknown argument --n_features", "Did you mean --n-features?"]),
    (["--zzzzzz"], ["unknown argument --zzzzzz. See --help"]),
    (["data.h5"], ["unknown argument data.h5", "Did you mean --input data.h5?"]),
    (["--versoin"], ["Did you mean --version?"]),
    (["--batch", "3"], ["Did you mean --batch-size?"]),
    (["--dry-run"], ["unknown argument --dry-run. See --help"]),
    (["--log-file", "x"], ["unknown argument --log-file. See --help"]),
    (["--", "-"], ["unknown argument"]),
    (["--epochs"], ["--epochs", "expected one argument"]),
    (["--input"], ["--input", "expected at least one argument"]),
    (["--quiet=yes"], ["--quiet", "yes"]),
    (["--bad\nflag"], ["--bad\\x0aflag"]),
]


def test_u1_a_flag_that_is_not_known_is_refused_with_the_nearest():
    for arguments, phrases in UNKNOWN_FLAGS:
        with case(arguments), refused(64, *phrases):
            settings(*arguments)


def test_u1_a_key_or_variable_that_is_not_known_is_refused_with_the_nearest(file):
    with pytest.raises(ConfigError, match=r"key config is unknown\.$"):  # which would suggest itself
        settings(*file("config: other.yaml"))
    with refused(78, "settings.yaml: key n_feature is unknown. Did you mean n_features?"):
        settings(*file("n_feature: 3"))
    with refused(78, "SHARDPRESS_EPOCH is unknown. Did you mean SHARDPRESS_EPOCHS?"):
        settings(SHARDPRESS_EPOCH="3")


def test_all_complaints_about_a_file_come_at_once(file):
    with refused(78, "epoch is unknown", "seed: 'x'", "momentum: 'y'"):
        settings(*file("epoch: 3\nseed: x\nmomentum: y\npatience: 3"))


def test_all_complaints_about_flags_come_at_once():
    with refused(64, "--seed: 'x'", "--momentum: 'y'"):
        settings("--seed", "x", "--momentum", "y")


def test_all_complaints_about_the_environment_come_at_once():
    with refused(78, "SHARDPRESS_SEED: 'x'", "SHARDPRESS_MOMENTUM: 'y'", "SHARDPRESS_EPOCH is unknown"):
        settings(SHARDPRESS_SEED="x", SHARDPRESS_MOMENTUM="y", SHARDPRESS_EPOCH="3")


def test_a_value_that_cannot_work_ends_as_one_that_cannot_be_read(file):
    for value in ("ten", "0"):
        with case(value):
            with refused(64, f"epochs: {value!r}, expected" if value == "ten" else "epochs: 0, expected 1 or more"):
                settings("--epochs", value)
            if value == "0":
                for given in (settings(*file("epochs: 0")), settings(SHARDPRESS_EPOCHS="0")):
                    assert problems(given) == ["epochs: 0, expected 1 or more"], "which the run refuses with 78"


def test_help_says_what_each_setting_takes_and_to_what_stage_it_belongs(capsys):
    with pytest.raises(SystemExit):
        settings("--help")
    said = capsys.readouterr().out
    assert "VALUE" not in said
    for phrase in (
        "--verify {digests,sizes}",
        "--on-drift {clip,pass,raise}",
        "--epochs N",
        "--memory-budget BYTES",
    ):
        assert phrase in said
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", *(f"{title}:" for title in module._STAGES)]


def test_every_setting_belongs_to_one_stage():
    listed = [name for names in module._STAGES.values() for name in names]
    assert sorted(listed) == sorted(SETTINGS)


def test_a_tilde_is_the_home_directory_wherever_a_path_is_set(file, tmp_path, monkeypatch):
    for name in ("input", "follow", "output", "model"):
        with case(name):
            monkeypatch.setenv("HOME", str(tmp_path / "home"))
            several = name in ("input", "follow")
            expected = (f"{tmp_path}/home/x", "a~b/~") if several else f"{tmp_path}/home/x"
            given = ("~/x", "a~b/~") if several else "~/x"
            line = f"{name}: {json.dumps(given)}"
            for found in (settings(*flags(name, given)), settings(**variable(name, given)), settings(*file(line))):
                assert found.flat()[name] == expected


def test_a_tilde_is_the_home_directory_of_the_configuration_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.yaml").write_text("seed: 7")
    assert settings("--config=~/settings.yaml", "--output=~/x").results.output == f"{tmp_path}/x"
    assert settings("--config=~/settings.yaml").training.seed == 7
    assert settings(SHARDPRESS_CONFIG="~/settings.yaml").training.seed == 7


def test_a_directory_called_tilde_is_never_made():
    for name in ("input", "output", "model"):
        with case(name):
            with refused(64, f"--{name}: '~nobody-of-this-name/x', expected a user whose home is known"):
                settings(f"--{name}", "~nobody-of-this-name/x")
            assert settings(f"--{name}", "./~x").flat()[name] in ("./~x", ("./~x",))
