"""Configuration files: YAML of plain values without duplicate keys, references or tags, read in bounded memory.

libyaml limits how deep lists and mappings can be nested. PyYAML's scanner in pure Python would take seconds for a long
file; libyaml takes a tenth of a second.
"""

from __future__ import annotations

from typing import Any

import yaml

from shardpress.base.errors import ConfigError, printable

_MAX_BYTES = 2**18
_MAX_VALUES = 2**16  # keys, values, lists and mappings; a list of inputs may be long

_SafeLoader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def read_configuration(path: str) -> dict[str, Any]:
    """Return the values of a file by their keys; an empty dict for an empty file."""
    where = f"config={printable(path)}"
    try:
        text = _read(path, where).decode()
        _check_events(text)
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers out of range are ValueErrors
        raise ConfigError(f"{where}: not YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{where}: contains a {type(values).__name__}, expected lines such as `epochs: 20`")
    return {str(key): value for key, value in (values or {}).items()}


def _read(path: str, where: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}, expected a YAML file") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{where}: is too long, expected at most {_MAX_BYTES} bytes")
    return data


class _Loader(_SafeLoader):
    """A loader that refuses duplicate keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        self.flatten_mapping(node)  # `<<` merges keys
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key is not a plain name")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value} occurs twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse what the loader does not need: references, tags, and more values than a configuration can have.

    A few nested references can expand to any number of values. A tag can make the loader fail in its own code. Each
    value takes about a kilobyte while it is loaded.
    """
    n_values = 0
    for event in yaml.parse(text, _SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"contains a reference (*{event.anchor}), expected plain values")
        if not isinstance(event, yaml.NodeEvent):
            continue
        if event.tag is not None:
            raise yaml.YAMLError(f"contains a tag ({event.tag}), expected plain values")
        n_values += 1
        if n_values > _MAX_VALUES:
            raise yaml.YAMLError(f"contains too many keys and values, expected at most {_MAX_VALUES}")
