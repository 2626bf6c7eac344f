"""A configuration file: YAML of plain values, a key only once, read in bounded memory and work.

libyaml looks at the file first, one event at a time, so that nothing is made of a file that asks for more than a
configuration needs. PyYAML's own scanner, in Python, would take seconds for what libyaml does in a tenth of one.
"""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.errors import ConfigError, shown

__all__ = ["read_configuration"]

_MOST_BYTES = 2**18
_MOST_VALUES = 2**16  # keys, values and brackets; a list of inputs may be long
_MOST_DEPTH = 16  # of lists and mappings in each other: settings need two

_SafeLoader: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


def read_configuration(path: str) -> dict[str, Any]:
    """What a file says, by its keys; nothing where it is empty.

    Raises
    ------
    ConfigError
        When it cannot be read, is too long, or is no YAML of plain values.
    """
    where = f"config={shown(path)}"
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ConfigError(f"{where}: too long, expected {_MOST_BYTES} bytes at most")
        text = data.decode()
        _check_events(yaml.parse(text, _SafeLoader))
        found = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}, expected a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers out of range are ValueErrors
        raise ConfigError(f"{where}: not YAML: {shown(' '.join(str(error).split()))}") from error
    if not isinstance(found, dict | None):
        raise ConfigError(f"{where}: a {type(found).__name__}, expected lines like `epochs: 20`")
    return {str(key): value for key, value in (found or {}).items()}


class _Loader(_SafeLoader):
    """A key that stands twice is a mistake."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        self.flatten_mapping(node)  # `<<` brings keys in
        seen: set[object] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError("a key that is no name")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {key.value} stands twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _check_events(events: Any) -> None:
    """Refuse what stands for more than is written, and more than any configuration holds, at its first event."""
    depth = n_values = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"a reference (*{event.anchor}), expected plain values")
        if isinstance(event, yaml.NodeEvent):
            if event.tag is not None:
                raise yaml.YAMLError(f"a tag ({event.tag}), expected plain values")
            n_values += 1
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            raise yaml.YAMLError(f"lists or mappings in each other, more than {_MOST_DEPTH}, expected plain values")
        if n_values > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES} keys and values, expected fewer")
