"""The states of a run between its inputs and its features: what is left to do, and what has been fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from msgspec import structs

from shardpress.hdf5.shard import Shard
from shardpress.model.encoder import Model
from shardpress.result.finished import Result
from shardpress.result.records import Part, Request
from shardpress.run.budget import Budget
from shardpress.run.difference import Base, Change, Wanted, compacted, difference, keeping, resulting_shards
from shardpress.run.inputs import Inputs
from shardpress.scan.ranges import Scan, n_fitted_rows
from shardpress.settings.kinds import n_allowed
from shardpress.settings.resolve import Settings, largest_network
from shardpress.shards.conversion import Conversion
from shardpress.training.targets import Targets
from shardpress_kernels.network import Network


@dataclass(frozen=True)
class Task:
    """The work of a run, given its inputs, its settings and the content of the output directory."""

    inputs: Inputs
    settings: Settings
    fitted: np.ndarray | None  # mask (n_rows,) of the rows that ``--fit-on`` selects; None for all rows
    conversion: Conversion  # without an offset, which belongs to a model
    targets: Targets | None  # what a head learns to predict (``--target``)
    budget: Budget
    wanted: Wanted
    model: Model | None  # that of ``--model``, or of the result if it stays; None if the run trains one
    result: Result | None  # in the output directory
    base: Base | None  # what the inputs are compared with: the result
    change: Change

    @property
    def source(self) -> Literal["trained", "given", "kept"]:
        """Source of the model: this run trains it, ``--model`` gives it, or that of the result stays."""
        if self.model is None:
            return "trained"
        return "given" if self.base is None or self.change.trains else "kept"

    @property
    def kept(self) -> Result | None:
        """The result in the output directory, if its model stays."""
        return self.result if self.source == "kept" else None

    @property
    def request(self) -> Request:
        return self.wanted.request

    @cached_property
    def positions(self) -> dict[str, int]:
        """Positions of the shards by the ids that ranges name."""
        return {shard.id: i for i, shard in enumerate(self.request.shards)}

    @cached_property
    def by_id(self) -> dict[str, Shard]:
        """The shards by the ids that ranges name, in the order of the rows."""
        return dict(zip(self.positions, self.inputs.shards, strict=True))

    def ids_of(self, positions: Iterable[int]) -> list[str]:
        return [self.request.shards[i].id for i in positions]

    @property
    def appends(self) -> bool:
        """Whether the run changes the rows of a result, and keeps its model."""
        change = self.change
        return self.source == "kept" and bool(change.new or change.gone or change.replaced)

    @property
    def encoded(self) -> list[int]:
        """Positions of the shards with rows that have to be encoded."""
        n_kept: Counter[str] = Counter()
        for part in (*self.change.kept, *self.change.copied):
            for rows in part.ranges:
                n_kept[rows.shard] += rows.n_rows
        return [i for i, (shard_id, shard) in enumerate(self.by_id.items()) if n_kept[shard_id] < shard.n_rows]

    @property
    def scanned(self) -> Sequence[int]:
        """Positions of the shards that are scanned: all of them before a training, otherwise those that are encoded."""
        return range(len(self.inputs.shards)) if self.source == "trained" else self.encoded

    @property
    def is_scanned(self) -> bool:
        """Whether the rows are scanned: to train a model, and to count bad rows before a part is written."""
        return self.source == "trained" or (self.allows_bad_data and bool(self.encoded))

    @property
    def n_fitted(self) -> int:
        """Number of rows, including bad ones, that the scan and the training use."""
        return n_fitted_rows(self.inputs.shards, self.fitted)

    def not_fitted(self) -> np.ndarray:
        """Return the sorted numbers (int64) of the rows that the scan and the training do not use."""
        if self.fitted is None:
            return np.empty(0, dtype=np.int64)
        return np.flatnonzero(~self.fitted)

    def as_trained(self, scan: Scan) -> Scan:
        """Return a scan in which the rows that the training must not use count as bad rows."""
        return replace(scan, bad_rows=np.union1d(scan.bad_rows, self.not_fitted()))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the largest network in memory."""
        return self.max_network.n_inputs * self.conversion.dtype(self.inputs.shards).itemsize

    @property
    def max_network(self) -> Network:
        """The network of a given model, or the largest network that the run could train: see `largest_network`."""
        if self.model is not None:
            return self.model.network
        head = None if self.targets is None else self.targets.head
        return largest_network(self.settings, self.inputs.n_inputs, head)

    @property
    def allows_bad_data(self) -> bool:
        """Whether bad rows and shards are left out instead of ending the run."""
        return self.settings.bad_data.on_bad_data != "raise"

    @property
    def has_other_rows(self) -> bool:
        """Whether the run may encode rows that the model was not trained on."""
        return self.source != "trained" or self.fitted is not None

    @property
    def limited(self) -> Sequence[int]:
        """Positions of the shards to which the limit of bad rows refers: those that an append adds, otherwise all."""
        if self.settings.results.append:
            return sorted([*self.change.new, *self.change.replaced])
        return range(len(self.inputs.shards))

    @property
    def max_bad_rows(self) -> int:
        """Number of bad rows that are allowed in the shards `limited`."""
        n_rows = sum(self.inputs.shards[i].n_rows for i in self.limited)
        return n_allowed(self.settings.bad_data.max_bad, n_rows) if self.allows_bad_data else 0

    @property
    def max_bad_shards(self) -> int:
        """Number of bad shards that are allowed, including those that were left out already.

        If a number of rows is allowed, it is the largest number of shards with these rows.
        """
        return n_allowed(self.settings.bad_data.max_bad, self.inputs.n_files) if self.allows_bad_data else 0

    def compared_with(self, base: Base | None, result: Result | None) -> Task:
        """Return the task in an output directory with this result."""
        change = difference(base, self.wanted)
        if base is None or result is None:
            return replace(self, result=None, base=None, change=change)
        request = structs.replace(self.request, shards=resulting_shards(base, self.wanted, change))
        wanted = replace(self.wanted, request=request)
        model = self.model
        if model is None and not change.trains:
            model = result.model
        return replace(self, result=result, base=base, change=change, wanted=wanted, model=model)

    def keeping(self, parts: Iterable[Part]) -> Task:
        """Return the task in which these parts of the result stay, unless most of their rows do not."""
        if self.base is None:
            return self
        change = keeping(self.change, self.base, parts)
        n_missing = self.inputs.n_rows - sum(part.n_live for part in change.kept)
        return replace(self, change=compacted(change, n_missing, self.budget.part_rows))

    def request_after(self, scan: Scan) -> Request:
        """Return the request with the digests of the rows of the scanned shards."""
        shards = list(self.request.shards)
        for i, digest in zip(self.scanned, scan.digests, strict=True):
            shards[i] = structs.replace(shards[i], rows=digest)
        return structs.replace(self.request, shards=shards)


@dataclass(frozen=True)
class Fit:
    """A task with its model, which is trained, given or kept."""

    task: Task
    scan: Scan | None  # None if the rows were not scanned
    model: Model

    @cached_property
    def request(self) -> Request:
        """The request, with the digests of the rows that were scanned."""
        return self.task.request if self.scan is None else self.task.request_after(self.scan)

    @property
    def conversion(self) -> Conversion:
        return replace(self.task.conversion, offset=self.model.offset)

    @cached_property
    def unreadable(self) -> dict[str, str]:
        """Why shards cannot be read, by their ids, as far as the scan has found out."""
        if self.scan is None:
            return {}
        scanned = self.task.ids_of(self.task.scanned)
        return {scanned[i]: reason for i, reason in self.scan.unreadable.items()}
