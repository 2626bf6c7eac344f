"""Tests of settings from four sources, which override each other, and of printed settings, which are read back."""

import random

import pytest

from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.conflicts import conflicts
from shardpress.settings.flags import parse
from shardpress.settings.kinds import SWITCH, YES_OR_NO
from shardpress.settings.presets import PRESETS, values_of_preset
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


NEEDED = {"scheduler": "a", "impute": "mean", "target": "y", "append": True, "retrain": True}
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


def needed_by(setting):
    """Return a value of a setting that this one requires."""
    return {name: NEEDED[name] for name in setting.requires[:1]}


def is_valid(setting, value):
    config = Config().changed(**needed_by(setting), **{setting.name: value})
    try:
        return setting.checked(value) == value and not any(conflicts(config))
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


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a configuration file and returns the flags that name it."""

    def write(text):
        (tmp_path / "settings.yaml").write_text(text)
        return ["--config", str(tmp_path / "settings.yaml")]

    return write


# -- precedence --------------------------------------------------------------------------------------------------


def test_flags_override_environment_file_and_defaults(file):
    assert settings() == Config()
    for name in WITH_FLAG:
        if name == "preset":
            continue
        values = values_of(SETTINGS[name])
        in_file, in_environment, in_flag = (values * 3)[:3]
        with case(name):
            needed = needed_by(SETTINGS[name])
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
    for line in ("include: []", "include:", "include: ''", "n_features: null", "hidden: ''"):
        assert settings(*file(line)) == settings(SHARDPRESS_INCLUDE="", SHARDPRESS_HIDDEN="auto") == Config(), line
    assert settings("--hidden", "none").network.hidden == settings(*file("hidden: []")).network.hidden == ()


def test_a_tilde_is_expanded_in_every_path(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("output", "model", "scheduler"):
        sources = ((flags(name, "~/x"), {}), ([], variable(name, "~/x")), (file(f"{name}: ~/x"), {}))
        for arguments, variables in sources:
            assert settings(*arguments, **variables).flat()[name] == f"{tmp_path}/x", name


# -- presets -------------------------------------------------------------------------------------------------------


def test_each_preset_sets_every_setting_of_the_model():
    # Defaults can change, but presets must not.
    deciding = {setting.name for setting in SETTINGS.values() if setting.affects in ("scan", "model")}
    about_data = {"fit_on", "missing_value", "impute", "missing_indicator", "target", "target_weight"}
    of_steps = {"epochs", "batch_size", "seed", "patience"}  # patience has no effect without validation rows
    for name, values in PRESETS.items():
        assert deciding - set(values) == about_data | of_steps, name
        assert list(conflicts(Config.of(**values))) == [], name


def test_other_settings_override_a_preset(file):
    expected = Config.of(**{**values_of_preset("reference"), "preset": "reference", "n_features": 3, "scale": "auto"})
    assert settings("--preset", "reference", "--n-features", "3", "--scale", "auto") == expected
    variables = {"SHARDPRESS_N_FEATURES": "3", "SHARDPRESS_PRESET": "reference"}
    assert settings("--scale", "auto", **variables) == expected
    assert settings(*file("preset: reference"), "--preset", "none") == Config()


# -- the file ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_not_yaml_is_refused_by_name(file, tmp_path):
    assert settings(*file("# nothing")) == Config()
    with refused(78, "settings.yaml", "`epochs: 20`"):
        settings(*file("- epochs"))
    for text in ["a: [", "epochs: 2001-99-99", "[" * 3000, "a: \x01", "? [a]\n: 1", "quiet: !!bool perhaps", "a: !x 3"]:
        with case(text), refused(78, "settings.yaml", "YAML"):
            settings(*file(text))
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    for path in (tmp_path / "x.yaml", tmp_path / "nowhere.yaml", tmp_path):
        with case(path), refused(78, str(path)):
            settings("--config", str(path))


def test_a_tag_runs_no_code(file, tmp_path):
    with refused(78, "YAML"):
        settings(*file(f"output: !!python/object/apply:os.mkdir [{tmp_path}/made]"))
    assert not (tmp_path / "made").exists()


def test_repeated_keys_are_refused_at_any_depth(file):
    for text in ["epochs: 3\nepochs: 3", "1: 2\n'1': 3", "epochs: {b: {c: 1, c: 2}}", "epochs: 3\n<<: {epochs: 4}"]:
        with case(text), refused(78, "YAML", "twice"):
            settings(*file(text))


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


def test_a_value_of_the_wrong_shape_or_an_unknown_name_is_refused(file):
    for line in ("epochs: [1, 2]", "output: 2024_01", "include: [1.50]", "learning_rate: .nan", "n_feature: 3"):
        with case(line), refused(78, f"settings.yaml: key {line.split(':')[0]}"):
            settings(*file(line))
    with refused(64, "--epoch", "--epochs?"):
        settings("--epoch", "3")
    with refused(78, "SHARDPRESS_EPOCH ", "SHARDPRESS_EPOCHS?"):
        settings(SHARDPRESS_EPOCH="3")


def test_invalid_flags_are_usage_errors(file):
    for name, value in (("epochs", "0"), ("finish-by", "+1e9h"), ("corruption", "0.001")):
        with case(name, value), refused(64, f"{name}: ", value):
            settings(f"--{name}", value)
    (problem,) = conflicts(settings(*file("corruption: 0.001")))
    assert problem.where == ("corruption",), "the run refuses it"


# -- printed settings --------------------------------------------------------------------------------------------


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
        while problem := next(conflicts(with_preset(chosen)), None):
            name = problem.where[0]
            chosen.pop(name if name in chosen else "preset")
        config = with_preset(chosen)
        assert settings(*file(as_yaml(config))) == config
