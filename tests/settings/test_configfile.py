"""Tests of the configuration file: only plain YAML values, read with bounded memory and work."""

from shardpress.settings.config import Config
from tests.settings.test_flags import settings
from tests.support.cases import case
from tests.support.helpers import refused


def test_a_file_that_cannot_be_read_is_refused_by_name(file, tmp_path):
    assert settings(*file("# nothing")) == Config()
    with refused(78, "settings.yaml", "`epochs: 20`"):
        settings(*file("- epochs"))
    for text in ["a: [", "epochs: 2001-99-99", "[" * 3000, "a: \x01", "? [a]\n: 1", "<<: 3"]:
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
        "epochs: !!timestamp never",
        "quiet: !!bool perhaps",
        "seed: !ours 3",
        "epochs: !<%1b[31m> 3",
        "!!omap [a: 1]",
    ]:
        with case(text), refused(78, "YAML", "tag ("):
            settings(*file(text))
    assert not (tmp_path / "made").exists()


def test_repeated_keys_are_refused_at_any_depth(file):
    for text in [
        "epochs: 3\nepochs: 3",
        "1: 2\n'1': 3",
        "epochs: {a: 1, b: {c: 1, c: 2}}",
        "input: [{a: 1, a: 2}]",
        "epochs: 3\n<<: {epochs: 4}",
    ]:
        with case(text), refused(78, "YAML", "twice"):
            settings(*file(text))


BOMBS = {
    "aliases": "b0: &b0 [x, x]\n" + "".join(f"b{i + 1}: &b{i + 1} [*b{i}, *b{i}]\n" for i in range(40)),
    "merged": "a: &a {x: 1}\nb:\n  <<: [*a, *a]",
    "endless": "a: &a [*a]",
    "brackets": "[" * 250000,
    "questions": "? " * 10**5,
    "steps": "".join(" " * i + "a:\n" for i in range(700)),
    "keys": "".join(f"k{i}: 1\n" for i in range(25000)),
    "commas": "a: [" + "1," * 120000 + "]",
    "long": "#" * 10**6,
}


def test_a_bomb_is_refused(file):
    for name, text in BOMBS.items():
        with case(name), refused(78, "settings.yaml"):
            settings(*file(text))


def test_a_list_of_inputs_can_be_as_long_as_the_file(file):
    paths = [f"shards/{i:05d}.h5" for i in range(13_000)]
    assert settings(*file("input: " + "".join(f"\n- {path}" for path in paths))).inputs.input == tuple(paths)
