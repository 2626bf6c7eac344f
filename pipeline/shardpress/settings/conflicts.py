"""Conflicts of settings with each other, with the rows, and with the model of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from shardpress.base.errors import ConfigError, Problem
from shardpress.settings.config import SETTINGS, Config, Setting
from shardpress.settings.kinds import as_typed
from shardpress.settings.resolve import Settings

_OMIT_ONE = "Omit one of them"
# Settings that the rows of an append need in addition to those that affect only the features. The model has all others.
_INHERITED = (
    "dataset",
    "orientation",
    "match_columns",
    "labels",
    "missing_label",
    "missing_value",
    "on_bad_data",
    "max_bad",
)


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


# -- appends -------------------------------------------------------------------------------------------------------


def conflicts_with_finished(config: Config, finished: Config) -> Iterator[Problem]:
    """Yield a problem for each setting of an append that would change the results of the finished run."""
    before = finished.flat()
    for name, value in config.flat().items():
        if _changes_results(SETTINGS[name], value, before):
            words = f"{as_typed(value)}, expected {as_typed(before[name])} as in the finished run"
            yield Problem((name,), words, f"Omit {{{name}}}, or choose another {{output}} with {{model}}")


def _changes_results(setting: Setting, value: object, before: Mapping[str, object]) -> bool:
    # The number of replicas is reduced to what the rows allow. Extras and errors can be added to all rows.
    if value in (setting.default, before[setting.name]) or setting.name in ("replicas", "include", "row_error"):
        return False
    if setting.name == "orientation":
        return value != (before["orientation"] or "rows")
    if setting.name == "missing_label":
        return before["target"] is not None
    return setting.affects in ("scan", "model", "features")


def with_finished(config: Config, finished: Config) -> Config:
    """Return the settings of an append, with those of the finished run on which its rows depend."""
    before = finished.flat()
    inherited: dict[str, object] = {}
    for name, value in config.flat().items():
        setting = SETTINGS[name]
        if value == setting.default and (setting.affects == "features" or name in _INHERITED):
            inherited[name] = before[name]
    inherited["include"] = tuple(dict.fromkeys([*finished.inputs.include, *config.inputs.include]))
    return config.changed(**inherited, fit_on=None)  # the new rows are only encoded
