"""Settings: four sources, one order, and every mistake named with what was expected."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction

import pytest

from pipeline.errors import ConfigError
from pipeline.settings import config as config_module
from pipeline.settings.config import Config, allowed, parse, parse_bytes, problems
from tests.support.helpers import refused

# For each setting, as words: what the file, the environment and the flag say; and then the three as values.
SAMPLES = {
    "input": (("a.h5",), ("b.h5", "c.h5"), ("d.h5", "e.h5")),
    "follow": (("a",), ("b", "c"), ("d", "e")),
    "dataset": ("a", "b", "c"),
    "carry": (("a",), ("b/c", "d"), ("e", "f")),
    "output": ("a", "b", "c"),
    "model": ("a", "b", "c"),
    "n_features": (1, 2, 3),
    "orientation": ("rows", "columns", "rows"),
    "epochs": (1, 2, 3),
    "batch_size": (1, 2, 3),
    "optimizer": ("momentum", "nesterov", "rmsprop"),
    "learning_rate": (0.1, 0.25, 0.5),
    "schedule": ("constant", "linear", "constant"),
    "biases": ("zero", "mean", "zero"),
    "momentum": (0.1, 0.25, 0.5),
    "seed": (1, 2, 3),
    "validation_fraction": (0.1, 0.25, 0.5),
    "patience": (1, 2, 3),
    "block_rows": (1, 2, 3),
    "threads": (1, 2, 3),
    "memory_budget": (2**24, 2**25, 2**26),
    "device_memory_budget": (1, 2, 3),
    "shuffle_window": (1, 2, 3),
    "on_bad_data": ("skip", "raise", "quarantine"),
    "max_bad_rows": ("5", "0.5%", "7"),
    "max_bad_shards": ("5", "0.5%", "7"),
    "missing_value": (-1.0, -2.0, -3.0),
    "out_of_range": ("clip", "raise", "clip"),
    "checkpoint_minutes": (1.0, 2.0, 3.0),
    "verify": ("sizes", "digests", "sizes"),
    "restart": (True, False, True),
    "require_device": (True, False, True),
    "overwrite": (True, False, True),
    "single_file": (True, False, True),
    "quiet": (True, False, True),
    "verbose": (True, False, True),
}


def flags(name, value):
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-")]
    return [flag, *map(str, value if isinstance(value, tuple) else [value])]


def variable(name, value):
    return {f"SHARDPRESS_{name.upper()}": ":".join(value) if isinstance(value, tuple) else str(value)}


@pytest.fixture
def file(tmp_path):
    """Write a configuration file and give the flags that name it."""

    def write(text):
        (tmp_path / "settings.yaml").write_text(text)
        return ["--config", str(tmp_path / "settings.yaml")]

    return write


def settings(*arguments, **environment):
    return parse(arguments, environment, "")


# -- precedence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [setting.name for setting in fields(Config)])
def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(file, name):
    in_file, in_environment, in_flag = SAMPLES[name]
    line = f"{name}: {list(in_file) if isinstance(in_file, tuple) else in_file}"
    given, variables = file(line), variable(name, in_environment)
    default = Config()
    assert settings() == default
    assert settings(*given) == replace(default, **{name: in_file})
    assert settings(*given, **variables) == replace(default, **{name: in_environment})
    assert settings(*given, *flags(name, in_flag), **variables) == replace(default, **{name: in_flag})


def test_sources_add_up(file):
    found = settings(*file("epochs: 3\nseed: 4"), "--n-features", "5", SHARDPRESS_SEED="6", OTHER_SEED="7")
    assert (found.epochs, found.n_features, found.seed) == (3, 5, 6)


def test_a_flag_of_several_values_may_stand_several_times():
    assert settings("--input", "a", "b", "--input", "c").input == ("a", "b", "c")


@pytest.mark.parametrize("line", ["follow: []", "follow:", "follow: ''"])
def test_none_of_several_values_may_be_asked_for_where_that_is_the_default(file, line):
    assert settings(*file(line)) == settings(SHARDPRESS_FOLLOW="") == Config()


def test_the_file_may_be_named_in_the_environment(file):
    assert settings(SHARDPRESS_CONFIG=file("epochs: 3")[1]).epochs == 3


@pytest.mark.parametrize("name", ["dataset", "model", "n_features", "learning_rate", "block_rows", "threads"])
@pytest.mark.parametrize("word", ["none", "auto"])
def test_what_is_found_out_by_itself_can_be_asked_for_by_name(file, name, word):
    assert getattr(settings(*flags(name, word), **variable(name, 1)), name) is None
    assert getattr(settings(*file(f"{name}: null")), name) is None


def test_the_defaults_have_no_problems():
    assert problems(Config()) == []


# -- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("1048576", 2**20),
        ("0", 0),
        ("512B", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1KB", 1000),
        ("500MB", 500 * 10**6),
        ("500 MiB", 500 * 2**20),
        (" 4GiB ", 2**32),
        ("4G", 2**32),
        ("4gb", 4 * 10**9),
        ("1.5G", 3 * 2**29),
        (".5K", 512),
        ("2TiB", 2**41),
    ],
)
def test_bytes_are_read_with_their_units(text, n_bytes):
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "-1", "1iB", "4XB", "1e3", "4 Gi B", "nan", "1.G.", "1,5G", "9" * 400])
def test_what_is_no_number_of_bytes_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="expected bytes with a unit, like 4GiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("0", "0"), ("25", "25"), (" 5 ", "5"), ("1%", "1%"), ("0.5 %", "0.5%"), (".5%", ".5%"), ("100.0%", "100.0%")],
)
def test_limits_are_numbers_or_percentages(text, limit):
    for name in ("max_bad_rows", "max_bad_shards"):
        assert getattr(settings(*flags(name, text)), name) == limit


@pytest.mark.parametrize(
    "text", ["", "150%", "100.001%", "-1", "-1%", "1.5", "1e3", "%", "1%%", "1.%", "nan%", "inf", "some", "9" * 5000]
)
def test_what_is_no_limit_is_refused_with_an_example(text):
    with refused(78, "MAX_BAD_ROWS", "expected a whole number, or a percentage like 0.1%"):
        settings(**variable("max_bad_rows", text))


def test_a_percentage_is_counted_exactly_and_rounded_down():
    for total in (0, 1, 99, 100, 101, 10**18 + 1):
        for tenths in range(0, 1001, 7):
            assert allowed(f"{tenths / 10}%", total) == Fraction(tenths, 1000) * total // 1
    assert [allowed("25", total) for total in (0, 24, 10**6)] == [25, 25, 25]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-9999", -9999),
        ("-999.9", -999.9),
        ("1e3", 1000),
        ("9223372036854775807", 2**63 - 1),
        ("18446744073709551615", 2**64 - 1),
        ("1e300", int(1e300)),
        ("none", None),
    ],
)
def test_a_missing_value_is_kept_to_the_last_digit(file, text, value):
    """Integers of 64 bits are often marked by their largest or smallest value, which no float64 is."""
    for found in (settings("--missing-value", text), settings(*file(f"missing_value: '{text}'"))):
        assert found.missing_value == value


BAD_VALUES = [
    ("epochs", "ten", "'ten', expected a whole number"),
    ("epochs", "1.5", "'1.5', expected a whole number"),
    ("momentum", "much", "'much', expected a number"),
    ("memory_budget", "lots", "'lots', expected bytes with a unit"),
    ("optimizer", "sgd", "'sgd', expected one of momentum, nesterov, adam, rmsprop"),
    ("on_bad_data", "ignore", "'ignore', expected one of raise, skip, quarantine"),
    ("out_of_range", "drop", "'drop', expected one of allow, clip, raise"),
    ("max_bad_rows", "150%", "'150%', expected a whole number, or a percentage"),
    ("missing_value", "NA", "'NA', expected a number"),
]


@pytest.mark.parametrize(("name", "value", "phrase"), BAD_VALUES)
def test_a_value_that_cannot_be_read_is_refused_by_source_name_and_kind(file, name, value, phrase):
    with refused(64, f"--{name.replace('_', '-')}: {phrase}"):
        settings(*flags(name, value))
    with refused(78, f"environment: SHARDPRESS_{name.upper()}: {phrase}"):
        settings(**variable(name, value))
    with refused(78, f"settings.yaml: key {name}: {phrase}"):
        settings(*file(f"{name}: {value}"))


@pytest.mark.parametrize(
    ("line", "phrase"),
    [
        ("epochs: [1, 2]", "expected one value"),
        ("epochs: {a: 1}", "expected one value"),
        ("epochs:", "expected a whole number"),
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
    ],
)
def test_a_value_of_the_wrong_shape_is_refused(file, line, phrase):
    with refused(78, f"key {line.split(':')[0]}: ", phrase):
        settings(*file(line))


@pytest.mark.parametrize(
    ("arguments", "phrases"),
    [
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
    ],
)
def test_u1_a_flag_that_is_not_known_is_refused_with_the_nearest(arguments, phrases):
    with refused(64, *phrases):
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


@pytest.mark.parametrize("value", ["ten", "0"])
def test_a_value_that_cannot_work_ends_as_one_that_cannot_be_read(file, value):
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
        "--out-of-range {allow,clip,raise}",
        "--epochs N",
        "--memory-budget BYTES",
    ):
        assert phrase in said
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["options:", *(f"{title}:" for title in config_module._STAGES)]


def test_every_setting_belongs_to_one_stage():
    listed = [name for names in config_module._STAGES.values() for name in names]
    assert sorted(listed) == sorted(setting.name for setting in fields(Config))


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null"])
def test_an_empty_file_changes_nothing(file, text):
    assert settings(*file(text)) == Config()


@pytest.mark.parametrize("text", ["- epochs", "epochs", "3"])
def test_a_file_without_keys_is_refused_with_an_example(file, text):
    with refused(78, "settings.yaml", "expected lines like `epochs: 20`"):
        settings(*file(text))


@pytest.mark.parametrize(
    "text",
    ["a: [", "\t- x", "a: b: c", "epochs: 2001-99-99", "seed: " + "9" * 5000, "[" * 3000, "a: \x01"],
    ids=["open", "tab", "nested", "date", "digits", "deep", "control"],
)
def test_what_is_not_yaml_is_refused_by_name(file, text):
    with refused(78, "settings.yaml", "not YAML"):
        settings(*file(text))


def test_a_file_that_is_not_text_is_refused_by_name(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    with refused(78, "x.yaml", "not YAML"):
        settings("--config", str(tmp_path / "x.yaml"))


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with refused(78, "nowhere.yaml", "No such file", "expected a YAML file"):
        settings("--config", str(tmp_path / "nowhere.yaml"))
    with refused(78, str(tmp_path), "Is a directory"):
        settings("--config", str(tmp_path))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_a_file_never_runs_code(file, tmp_path, tag):
    with refused(78, "not YAML", "python/object"):
        settings(*file(f"output: {tag} [{tmp_path}/made]"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "text",
    [
        "epochs: !!map [1, 2]",
        "epochs: !!map ab",
        "epochs: !!timestamp never",
        "quiet: !!bool perhaps",
        "momentum: !!float ''",
        "seed: !!int ''",
        "seed: !ours 3",
        "seed: ! 3",
        "epochs: !<%1b[31m> 3",
        "!!omap [a: 1]",
    ],
)
def test_a_tag_is_refused_whatever_it_asks_for(file, text):
    """S17. PyYAML answers tags on values that do not fit them with errors of any kind."""
    with refused(78, "not YAML", "a tag (", "expected plain values"):
        settings(*file(text))


@pytest.mark.parametrize(
    "text",
    [
        "epochs: 3\nepochs: 3",
        "epochs: 3\nseed: 1\n'epochs': 4",
        "1: 2\n'1': 3",
        "epochs: {a: 1, b: {c: 1, c: 2}}",
        "input: [{a: 1, a: 2}]",
        "epochs: 3\n<<: {epochs: 4}",
        '"\\e[31m": 1\n"\\e[31m": 2',
    ],
)
def test_a_key_that_stands_twice_is_refused_at_any_depth(file, text):
    """S17."""
    with refused(78, "not YAML", "stands twice"):
        settings(*file(text))


@pytest.mark.parametrize("text", ["? [a]\n: 1", "{[a]: 1}", "seed: {{a: 1}: 2}", "<<: 3", "<<: [1]", "seed: ="])
def test_keys_and_values_that_are_none_are_refused(file, text):
    with refused(78, "not YAML"):
        settings(*file(text))


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "validation_fraction", "missing_value"])
@pytest.mark.parametrize("word", [".nan", ".inf", "-.inf", "nan", "inf"])
def test_numbers_that_are_none_are_refused(file, name, word):
    """S17, U2."""
    assert [words for words in problems(settings(*file(f"{name}: {word}"))) if words.startswith(f"{name}: ")]


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
IN_LITTLE = """
import re, sys
from pathlib import Path
from pipeline.settings.config import parse
from pipeline.errors import ConfigError
import yaml
n_calls = 0
def count(frame, event, argument):
    global n_calls
    n_calls += event.endswith("call")
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
sys.setprofile(count)
try:
    parse(["--config", sys.argv[1]], {}, "")
except ConfigError as error:
    sys.setprofile(None)
    print(error.exit_code, len(str(error)), n_calls, peak() - before)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_work_and_memory(file, name):
    """S17. Measured in a process of its own, in calls of functions (a scanner in Python makes 8 million) and KiB."""
    command = [sys.executable, "-c", IN_LITTLE, file(BOMBS[name])[1]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, n_letters, n_calls, memory = map(int, done.stdout.split())
    assert (code, n_letters < 20_000, n_calls < 2**21, memory < 2**16) == (78, True, True, True), done.stdout


def test_a_list_of_inputs_may_be_as_long_as_the_file(file):
    paths = [f"shards/{i:05d}.h5" for i in range(13_000)]
    assert settings(*file("input: " + "".join(f"\n- {path}" for path in paths))).input == tuple(paths)


# -- what does not work together -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("n_features", [None, 1, 9], [0, -1]),
        ("epochs", [1, 2], [0, -1]),
        ("batch_size", [None, 1, 100], [0, -1]),
        ("learning_rate", [None, 1e-9, 1e9], [0.0, -1.0, float("inf"), float("nan")]),
        ("momentum", [0.0, 0.999], [-0.1, 1.0, float("nan")]),
        ("seed", [0, 2**70], [-1]),
        ("validation_fraction", [0.0, 0.99], [-0.1, 1.0, float("nan")]),
        ("patience", [0, 1], [-1]),
        ("block_rows", [None, 1], [0]),
        ("threads", [None, 1], [0]),
        ("memory_budget", [2**24], [2**24 - 1, 0]),
        ("device_memory_budget", [0], [-1]),
        ("shuffle_window", [1], [0]),
        ("checkpoint_minutes", [0.0, 0.5, 1e6], [-1.0, float("inf"), float("nan")]),
        ("missing_value", [None, 0, -9999, 10**300], [float("inf"), float("-inf"), float("nan")]),
    ],
)
def test_each_setting_has_its_range(name, good, bad):
    for value in good:
        assert problems(replace(Config(), **{name: value})) == []
    for value in bad:
        (complaint,) = problems(replace(Config(), **{name: value}))
        assert complaint.startswith(f"{name}: {value}, expected ")


def test_all_problems_are_told_at_once():
    found = problems(replace(Config(), n_features=-1, batch_size=0, quiet=True, verbose=True))
    assert found == [
        "n_features: -1, expected 1 or more",
        "batch_size: 0, expected 1 or more",
        "quiet and verbose: both, expected at most one of them",
    ]
    wrong = {"epochs": 0, "batch_size": -1, "learning_rate": float("nan"), "momentum": 1.0, "seed": -1, "patience": -1}
    assert [words.split(":")[0] for words in problems(replace(Config(), **wrong))] == list(wrong)


def test_what_contradicts_itself_is_refused():
    for pair in (("overwrite", "restart"), ("quiet", "verbose")):
        (complaint,) = problems(replace(Config(), **dict.fromkeys(pair, True)))
        assert complaint == f"{' and '.join(pair)}: both, expected at most one of them"


def test_without_the_data_only_what_can_be_known_is_refused():
    assert problems(replace(Config(), n_features=10**6, batch_size=10**9)) == []
    assert problems(replace(Config(), n_features=0)) == ["n_features: 0, expected 1 or more"]


@pytest.mark.parametrize("name", ["input", "follow", "output", "model"])
def test_a_tilde_is_the_home_directory_wherever_a_path_is_set(file, tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    several = name in ("input", "follow")
    expected = (f"{tmp_path}/home/x", "a~b/~") if several else f"{tmp_path}/home/x"
    given = ("~/x", "a~b/~") if several else "~/x"
    line = f"{name}: {json.dumps(given)}"
    for found in (settings(*flags(name, given)), settings(**variable(name, given)), settings(*file(line))):
        assert getattr(found, name) == expected


def test_a_tilde_is_the_home_directory_of_the_configuration_file_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "settings.yaml").write_text("seed: 7")
    assert settings("--config=~/settings.yaml", "--output=~/x").output == f"{tmp_path}/x"
    assert settings("--config=~/settings.yaml").seed == settings(SHARDPRESS_CONFIG="~/settings.yaml").seed == 7


@pytest.mark.parametrize("name", ["input", "output", "model"])
def test_a_directory_called_tilde_is_never_made(name):
    with refused(64, f"--{name}: '~nobody-of-this-name/x', expected a user whose home is known"):
        settings(f"--{name}", "~nobody-of-this-name/x")
    assert getattr(settings(f"--{name}", "./~x"), name) in ("./~x", ("./~x",))
    assert problems(Config(output="~/x")) == ["output: ~/x, expected a path whose ~ is expanded"]
