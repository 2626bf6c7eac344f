"""Extras that a setting names, and the rows that ``--fit-on`` selects for the scan and the training."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from shardpress.base.errors import ConfigError, DataError, Problem, printable, quantity, short_list
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Extra, Shard, first_rows
from shardpress.run.budget import n_threads_of
from shardpress.settings.condition import Condition
from shardpress.settings.config import Config
from shardpress.shards.extras import path_from_rows
from shardpress.shards.selection import check_condition, selected_rows

log = logging.getLogger(__name__)

_MAX_NAMES = 20  # extras that a message lists


def fitted_rows(config: Config, shards: Sequence[Shard]) -> np.ndarray | None:
    """Return a mask (n_rows,) of the rows that ``--fit-on`` selects, or None without this setting.

    If bad data are skipped, no row of a shard is selected whose extra cannot be read.
    """
    if config.training.fit_on is None:
        return None
    condition = Condition.parse(config.training.fit_on)
    name = _name_of(condition, shards)
    skips = config.bad_data.on_bad_data != "raise"
    starts = first_rows(shards)
    selected = np.zeros(int(starts[-1]), dtype=bool)

    def select(number: int) -> None:
        shard = shards[number]
        extra = _extra(shard, name)
        try:
            selected[starts[number] : starts[number + 1]] = selected_rows(shard, extra, condition)
        except DataError as error:
            if not skips:
                raise
            log.warning("fit_on: no row of this shard is used: %s", error)

    n_threads = n_threads_of(config.machine)
    with threads(n_threads) as pool:
        compute([(select, number) for number in range(len(shards))], pool, n_threads)
    n_selected = int(np.count_nonzero(selected))
    if not n_selected:
        words = f"{printable(condition)}: selects none of {quantity(len(selected), 'row')}, expected two or more"
        raise ConfigError(Problem(("fit_on",), words))
    log.info("fit_on: %s: selects %d of %s", printable(condition), n_selected, quantity(len(selected), "row"))
    return selected


def name_of_extra(setting: str, path: str, shards: Sequence[Shard]) -> str:
    """Return the name of the extra that a setting names by its name in the output or by its path in the files.

    Raise `DataError` if the extra is left out, for example because its dtypes differ between files, and `ConfigError`
    if there is none.
    """
    names = [extra.name for extra in shards[0].extras]
    for shard in shards:
        for extra in shard.extras:
            if path == extra.name or path_from_rows(path, shard.group) == (extra.path or extra.name):
                return extra.name
    known = printable(short_list(sorted(names), _MAX_NAMES))
    reasons = {extra.name: extra.reason for shard in shards for extra in shard.left_out}
    if path in reasons:
        words = f"{printable(path)} is left out: {reasons[path]}. Expected one of the extras ({known})"
        raise DataError(Problem((setting,), words))
    words = f"{printable(path)}, expected one of the extras ({known})"
    raise ConfigError(Problem((setting,), words, "To use a dataset of another group, name it with {include} as well"))


def _name_of(condition: Condition, shards: Sequence[Shard]) -> str:
    """Return the name of the extra of a condition. Raise `ConfigError` if its values cannot be compared."""
    name = name_of_extra("fit_on", condition.name, shards)
    try:
        for shard in shards:
            check_condition(_extra(shard, name), condition)
    except ValueError as error:
        raise ConfigError(Problem(("fit_on",), str(error))) from None
    return name


def _extra(shard: Shard, name: str) -> Extra:
    return next(extra for extra in shard.extras if extra.name == name)
