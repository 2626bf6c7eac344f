"""Conflicts of settings with each other, with the rows, and with the model of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from shardpress.base.errors import ConfigError, Problem
from shardpress.settings.config import SETTINGS, Config
from shardpress.settings.resolve import Settings


def refuse(problems: Iterable[Problem]) -> None:
    """Raise `ConfigError` with all problems, if there are any."""
    all_problems = tuple(problems)
    if all_problems:
        raise ConfigError(*all_problems)


def conflicts(config: Config) -> Iterator[Problem]:
    """Yield a problem for each setting that contradicts another one, or has a value between its limits."""
    corruption = config.training.corruption
    if corruption is not None and 0 < corruption < 0.004:
        yield Problem(("corruption",), f"{corruption}, expected 0, or from 0.004 to 0.998")
    values = config.flat()
    for name, setting in SETTINGS.items():
        for other in setting.excludes:
            if all(values[one] not in (SETTINGS[one].default, "none") for one in (name, other)):
                yield Problem((name, other), "both are set, expected at most one of them")
        is_needed = setting.requires and values[name] != setting.default
        if is_needed and not any(values[other] for other in setting.requires):
            others = " or ".join(f"{{{other}}}" for other in setting.requires)
            yield Problem((name,), "has no effect without another setting", f"Set {others}, or omit {{{name}}}")
    network = config.network
    if network.nested and network.code_activation not in (None, "linear"):
        yield Problem(
            ("code_activation", "nested"), f"nested features are linear, found {network.code_activation}", _OMIT_ONE
        )
    if network.output_layer == "hidden" and network.nested:
        yield Problem(("output_layer", "nested"), "only the features of the code are nested, found hidden", _OMIT_ONE)
    if network.output_layer == "hidden" and network.hidden == ():
        yield Problem(("output_layer", "hidden"), "there is no hidden layer, expected one", _OMIT_ONE)


_OMIT_ONE = "Omit one of them"


def conflicts_with_rows(settings: Settings, n_rows: int, n_inputs: int) -> Iterator[Problem]:
    """Yield a problem for each setting that does not suit training on this number of rows and columns."""
    n_features = settings.network.n_features
    batch_size = settings.training.batch_size
    if n_features >= n_inputs:
        yield Problem(("n_features",), f"{n_features}, expected 1 to {n_inputs - 1} for these rows")
    if settings.network.output_layer == "hidden" and not settings.network.hidden:
        words = f"hidden, expected code, since {n_rows} rows are too few for a hidden layer"
        yield Problem(("output_layer",), words, "Omit it, or set {hidden}")
    if batch_size > n_rows:
        yield Problem(("batch_size",), f"{batch_size}, expected 1 to {n_rows} for these rows")
