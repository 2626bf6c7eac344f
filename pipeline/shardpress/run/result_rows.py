"""The rows of the result that a run makes, which are read again to measure, judge and compare their features."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from shardpress.base.errors import DataError, NoInput, NotPermitted
from shardpress.encoding.partfile import stored_categories, stored_masks
from shardpress.hdf5.shard import Block, UnreadableShard, first_rows
from shardpress.model.labels import LabelChoice
from shardpress.report.commonrows import EncodedRows
from shardpress.report.overview import sample_facts
from shardpress.report.sampling import PartSource, SampleSpec
from shardpress.result.facts import SampleFacts, Verdict
from shardpress.result.finished import Result, Use, load_statistics, stored_name
from shardpress.result.records import Part, Range, RunFacts
from shardpress.run.encoding_stage import Encoding
from shardpress.run.fitted import name_of_extra
from shardpress.run.new_rows import reference_of, verdict_on
from shardpress.run.use import use_of_rows

log = logging.getLogger(__name__)


class ResultRows:
    """All rows of a result that is not published yet, with their files."""

    def __init__(self, encoding: Encoding, folder: Path) -> None:
        self._task = encoding.fit.task
        self._fit = encoding.fit
        self._model = encoding.fit.model
        self._folder = folder  # the output directory
        self._shards = encoding.shards
        self.ranges = encoding.ranges
        self.use = use_of_rows(encoding.fit, encoding.shards)
        settings = self._task.settings
        self.spec = SampleSpec(
            self._model,
            settings.bad_data.missing_value,
            self._task.has_other_rows and settings.bad_data.on_drift == "clip",
            settings.machine.memory_budget,
            settings.training.seed,
        )

    @property
    def added(self) -> list[tuple[Part, Range]]:
        """The ranges of new and changed shards."""
        change = self._task.change
        added = set(self._task.ids_of([*change.new, *change.replaced]))
        return [(part, rows) for part, rows in self.ranges if rows.shard in added]

    def sample(self, labels: str | None) -> SampleFacts | None:
        """Return facts about some rows and their features for the report. Log a warning if they are incomplete.

        `labels` names the extra with which the features are judged; None for the first one that looks like labels.
        """
        settings = self._task.settings
        include = settings.inputs.include
        if settings.training.target is not None:
            include = (settings.training.target, *include)
        if self._task.kept is not None:  # another extra does not change the labels
            include = (*_labels_of(self._task.kept.facts), *include)
        if labels is not None:
            labels = stored_name(name_of_extra("labels", labels, self._task.inputs.shards))
        choice = self._label_choice(labels, include)
        return sample_facts(self._sources(self.ranges), self.spec, choice, settings.storage.row_error)

    def verdict(self, kept: Result) -> Verdict | None:
        """Return the verdict on the added rows, compared with those of the training; None if there are none."""
        added = self.added
        if not added:
            return None
        return verdict_on(self._sources(added), [rows for _, rows in added], self.spec, kept)

    def statistics(self) -> Mapping[str, np.ndarray]:
        """Return the statistics of held-out rows with which appended rows are compared; none if there are none."""
        given = self._task.settings.inputs.model
        if self._task.kept is not None:
            return self._task.kept.statistics()
        if given is not None:
            return load_statistics(given, self._model.fingerprint)
        ranges = [rows for _, rows in self.ranges]
        try:
            reference = reference_of(self._sources(self.ranges), ranges, self.use, self.spec)
        except (DataError, NoInput, NotPermitted) as error:  # the features are complete nevertheless
            log.warning("later appends will have no verdict, because the held-out rows cannot be read: %s", error)
            return {}
        return {} if reference is None else reference.stored()

    def encoded(self) -> EncodedRows:
        """Return the rows for a comparison with those of another result."""
        return EncodedRows(
            self._folder,
            self.ranges,
            self._model.n_features,
            self._model.fingerprint,
            self._shards,
            self.use,
            self._model.target is not None,
        )

    def classes(self, sample: SampleFacts | None) -> LabelChoice | None:
        """Return the choice of the labels that a sample has, if they are classes."""
        probe = None if sample is None else sample.probe or sample.no_test
        if probe is None or probe.score_name != "accuracy":
            return None
        return self._label_choice(probe.labels, ())

    def _label_choice(self, named: str | None, include: Sequence[str]) -> LabelChoice:
        extras = self._task.inputs.shards[0].extras  # earlier parts lack the categories of later rows
        categories = [np.array(extra.categories) for extra in extras if extra.categories is not None]
        by_name = dict(zip(stored_categories(extras), categories, strict=True))
        missing = self._task.settings.inputs.missing_label
        return LabelChoice(tuple(include), named, stored_masks(extras), by_name, missing)

    def _sources(self, pairs: Sequence[tuple[Part, Range]]) -> list[PartSource]:
        """Return the rows of ranges whose files can be read."""
        starts = first_rows(self._task.inputs.shards)
        sources = []
        for part, rows in pairs:
            shard = self._task.by_id[rows.shard]
            if not isinstance(shard, UnreadableShard):
                first = int(starts[self._task.positions[rows.shard]]) + rows.start
                trained = ~self._are_held_out[first : first + rows.n_rows]
                fitted = self.use[first : first + rows.n_rows] == Use.TRAINING
                block = Block(shard, rows.start, rows.stop)
                sources.append(PartSource(block, self._folder / part.file, rows.first, trained, fitted, rows.lost))
        return sources

    @cached_property
    def _are_held_out(self) -> np.ndarray:
        """Mask of all rows that can test linear models on supervised features, bool (n_rows,).

        Targets of validation rows decide at most which epoch is the best. So these rows test supervised features unless
        there are others.
        """
        is_left_out = self.use > Use.VALIDATION
        is_validation = self.use == Use.VALIDATION
        target = self._model.target
        if target is None or target.fit_on is not None or is_left_out.sum() > is_validation.sum():
            return is_left_out
        return is_validation


def _labels_of(facts: RunFacts) -> tuple[str, ...]:
    """Return the dataset with the labels of the report, if there is one."""
    sample = facts.rows.sample
    name = None if sample is None else sample.points.dataset
    return () if name is None else (name,)
