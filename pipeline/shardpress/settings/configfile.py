"""Settings from a configuration file, in YAML. Few runs have one, and PyYAML takes time to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from shardpress.base.errors import ConfigError, printable

_SafeLoader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


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


def read_configuration(path: str) -> dict[str, object]:
    """Return the values of a YAML file by their keys; an empty dict for an empty file."""
    where = f"config={printable(path)}"
    try:
        values = yaml.load(Path(path).read_bytes(), _Loader)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}, expected a YAML file") from error
    except Exception as error:  # PyYAML raises many kinds of errors for values that do not match their tags
        raise ConfigError(f"{where}: not YAML: {printable(' '.join(str(error).split()))}") from error
    if not isinstance(values, dict | None):
        raise ConfigError(f"{where}: contains a {type(values).__name__}, expected lines such as `epochs: 20`")
    return {str(key): value for key, value in (values or {}).items()}
