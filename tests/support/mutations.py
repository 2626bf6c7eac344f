"""The mutations that tests must catch: faults that would hurt a user and that are easily made.

`tests.support.mutants` plants them. Each is one replacement in one file; its text occurs exactly once there. When code
changes, choose a new text with the same meaning. The mutations are grouped by rows of packages, and the groups begin
with those whose tests are the fastest, because a sample takes the first mutation of each of the first groups.
"""

from __future__ import annotations

from dataclasses import dataclass

ROWS = {
    "report": (
        "pipeline/shardpress/report/",
        "pipeline/shardpress/alignment.py",
        "pipeline/shardpress/asof.py",
        "pipeline/shardpress/ridge.py",
    ),
    "training": ("pipeline/shardpress/training/",),
    "output": ("pipeline/shardpress/output/",),
    "model": (
        "pipeline/shardpress/model.py",
        "pipeline/shardpress/modelfile.py",
        "pipeline/shardpress/device.py",
        "pipeline/shardpress/scan/scaler.py",
    ),
    "scan": ("pipeline/shardpress/scan/",),
    "encoding": ("pipeline/shardpress/encoding/",),
    "run": ("pipeline/shardpress/run/",),
    "settings": ("pipeline/shardpress/settings/",),
    "hdf5 and shards": ("pipeline/shardpress/hdf5/", "pipeline/shardpress/shards/"),
    "cluster": ("pipeline/shardpress/cluster/",),
    "interop": ("pipeline/shardpress/interop/", "pipeline/shardpress/features.py", "pipeline/shardpress/frames.py"),
    "commands, doctor and gpu": (
        "pipeline/shardpress/commands/",
        "pipeline/shardpress/doctor/",
        "pipeline/shardpress/gpu/",
        "pipeline/shardpress/cli.py",
        "pipeline/shardpress/commandline.py",
    ),
    "kernels": ("kernels/shardpress_kernels/",),
    "base": ("pipeline/shardpress/",),
}
"""Groups of packages, each with the beginnings of its files. The first row that fits a file counts."""


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes
    ----------
    name : str
        Unique name that describes the fault.
    file : str
        Path from the root of the checkout.
    text, replacement : str
        Text in the file, and its replacement.
    tests : tuple of str
        Files or node ids. At least one of these tests must fail.
    needs : tuple of str
        Features of the processor, as the kernel names them. A processor with none of them does not use the mutated
        code.
    """

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """The row of `ROWS` that the file belongs to."""
        return next(row for row, beginnings in ROWS.items() if self.file.startswith(beginnings))


_REPORT = (
    Mutation(
        "verify-accepts-good-rows-as-bad",
        "pipeline/shardpress/report/rows.py",
        "is_nan & (expected.is_bad | expected.may_be_bad)",
        "is_nan",
        ("tests/report/test_verify.py::test_wrong_rows_are_found_despite_correct_digests",),
    ),
    Mutation(
        "verify-allows-rounding-twice",
        "pipeline/shardpress/report/rows.py",
        "part.max_error or 0.0",
        "2 * (part.max_error or 0.0)",
        ("tests/report/test_verify.py::test_rounding_error_is_allowed_once",),
    ),
    Mutation(
        "verify-tolerance-times-ten",
        "pipeline/shardpress/report/rows.py",
        "_SAFETY = 4.0",
        "_SAFETY = 40.0",
        ("tests/report/test_rounding.py::test_float32_in_any_order_stays_within_tight_bounds",),
    ),
    Mutation(
        "compare-uses-rows-that-are-bad-in-one-run",
        "pipeline/shardpress/report/commonrows.py",
        "is_valid = valid_a & valid_b",
        "is_valid = valid_a",
        ("tests/report/test_compare.py::test_rows_bad_in_one_run_are_not_compared",),
    ),
    Mutation(
        "map-is-measured-on-rows-that-it-was-fitted-to",
        "pipeline/shardpress/alignment.py",
        "fit_ridge(source[~is_held_out], known / unit, _PENALTIES)",
        "fit_ridge(source, target / unit, _PENALTIES)",
        ("tests/report/test_alignment.py::test_rows_that_are_held_out_choose_nothing",),
    ),
    Mutation(
        "rows-without-a-label-are-a-class",
        "pipeline/shardpress/report/mapquality.py",
        "has_label = labels.codes != NONE",
        "has_label = labels.codes >= NONE",
        ("tests/run/test_generations.py::test_the_report_says_what_a_classifier_keeps",),
    ),
    Mutation(
        "maps-are-measured-on-rows-that-trained-the-new-model",
        "pipeline/shardpress/report/commonrows.py",
        " & (b.use[rows_b] != Use.TRAINING)",
        "",
        ("tests/report/test_compare.py::test_rows_are_held_out_that_trained_neither_model",),
    ),
    Mutation(
        "classifier-is-trained-on-its-test-rows",
        "pipeline/shardpress/report/baselines.py",
        "fit_ridge(rows[~is_test], targets[~is_test])",
        "fit_ridge(rows, targets)",
        ("tests/report/test_judgment.py::test_baselines_equal_scikit_learn_on_the_same_split",),
    ),
    Mutation(
        "a-target-is-tested-on-rows-without-a-value",
        "pipeline/shardpress/report/measures.py",
        "has_value = choice.has_value(name, sample.extras, sample.lost)",
        "has_value = np.ones(len(sample.rows), dtype=bool)",
        ("tests/report/test_judgment.py::test_a_target_is_probed_unless_labels_are_named",),
    ),
    Mutation(
        "report-of-an-earlier-index-stays",
        "pipeline/shardpress/report/page/build.py",
        "return digest.encode() in file.read(_HEAD_BYTES)",
        "return bool(file.read(_HEAD_BYTES))",
        ("tests/run/test_rerun.py::test_a_derived_file_is_written_again_and_nothing_else",),
    ),
    Mutation(
        "map-is-applied-to-features-of-its-target",
        "pipeline/shardpress/asof.py",
        " or found.encoder_to == encoder",
        "",
        ("tests/run/test_generations.py::test_features_can_be_read_as_those_of_another_output",),
    ),
    Mutation(
        "errors-are-not-verified",
        "pipeline/shardpress/report/rows.py",
        "errors = file[ERROR][rows] if ERROR in file else None",
        "errors = None",
        ("tests/run/test_row_error.py::test_a_changed_error_is_a_fault",),
    ),
)

_TRAINING = (
    Mutation(
        "replica-shares-are-not-sorted",
        "pipeline/shardpress/training/rounds.py",
        "for slab in np.sort(slabs)",
        "for slab in slabs",
        ("tests/training/test_rounds.py::test_a_share_lists_its_rows_in_order",),
    ),
    Mutation(
        "one-row-decides-the-comparison",
        "pipeline/shardpress/training/components.py",
        "excess = (errors - self.components)[is_usual]",
        "excess = errors - self.components",
        ("tests/report/test_judgment.py::test_a_damaged_validation_row_does_not_decide_the_comparison",),
    ),
    Mutation(
        "replicas-count-the-fewest-steps",
        "pipeline/shardpress/training/averaging.py",
        "np.maximum(sums.get(name, array), array)",
        "np.minimum(sums.get(name, array), array)",
        ("tests/training/test_averaging.py::test_replicas_are_averaged_by_their_rows",),
    ),
    Mutation(
        "validation-rows-are-trained-on",
        "pipeline/shardpress/training/order.py",
        "rows[~np.isin(rows, self.left_out)]",
        "rows",
        ("tests/training/test_order.py::test_an_epoch_visits_each_training_row_once",),
    ),
    Mutation(
        "resumed-epoch-starts-its-window-again",
        "pipeline/shardpress/training/order.py",
        "yield window, rows[n_skipped:]",
        "yield window, rows",
        ("tests/training/test_rows.py::test_an_epoch_can_start_at_any_minibatch",),
    ),
    Mutation(
        "every-step-has-the-same-noise",
        "pipeline/shardpress/training/order.py",
        "(seed, _NOISE, step)",
        "(seed, _NOISE)",
        ("tests/training/test_order.py::test_noise_depends_only_on_seed_and_step",),
    ),
    Mutation(
        "checkpoints-may-hold-nan",
        "pipeline/shardpress/training/checkpoint.py",
        "array.dtype == np.float32 and np.isfinite(array).all()",
        "array.dtype == np.float32",
        ("tests/run/test_checkpoints.py::test_an_invalid_checkpoint_is_ignored",),
    ),
    Mutation(
        "targets-of-other-rows-are-learned",
        "pipeline/shardpress/training/targets.py",
        "has_target &= fitted",
        "has_target |= fitted",
        ("tests/run/test_target.py::test_rows_and_targets_that_are_left_out_have_no_influence",),
    ),
    Mutation(
        "targets-meet-other-rows",
        "pipeline/shardpress/training/epochs.py",
        "values[numbers] for numbers in",
        "values[::-1][numbers] for numbers in",
        ("tests/run/test_target.py::test_each_row_is_trained_with_its_own_target",),
    ),
    Mutation(
        "last-epoch-counts-as-the-best",
        "pipeline/shardpress/training/epochs.py",
        "(objective or 0.0) < state.best_cost",
        "(objective or 0.0) < math.inf",
        ("tests/training/test_epochs.py::test_early_stopping_restores_the_best_weights",),
    ),
    Mutation(
        "validation-rows-ignore-the-seed",
        "pipeline/shardpress/training/order.py",
        "rng = np.random.default_rng((seed, purpose))",
        "rng = np.random.default_rng(purpose)",
        ("tests/training/test_order.py::test_validation_rows_exclude_bad_rows_and_depend_on_the_seed",),
    ),
    Mutation(
        "short-last-minibatch-is-not-trained-on",
        "pipeline/shardpress/training/rows.py",
        "if rest is not None:\n        yield rest",
        "if rest is not None and len(rest) == batch_size:\n        yield rest",
        ("tests/training/test_rows.py::test_resident_and_streamed_rows_give_equal_minibatches",),
    ),
    Mutation(
        "means-of-columns-are-summed-in-float32",
        "pipeline/shardpress/training/components.py",
        "mean = x.mean(axis=0, dtype=np.float64)",
        "mean = x.mean(axis=0).astype(np.float64)",
        ("tests/training/test_components.py::test_the_mean_of_many_rows_keeps_its_digits",),
    ),
    Mutation(
        "resumed-training-starts-its-optimizer-again",
        "pipeline/shardpress/training/epochs.py",
        "self.step.set_state(weights.rule)",
        "pass",
        ("tests/training/test_checkpoint.py::test_training_resumes_after_any_step_with_the_same_bits",),
    ),
)

_OUTPUT = (
    Mutation(
        "journal-names-files-before-their-names-are-synced",
        "pipeline/shardpress/output/journal.py",
        "        if waits:\n            self._sync_names()\n",
        "",
        ("tests/run/test_power_cuts.py::test_power_can_be_cut_after_some_calls",),
    ),
    Mutation(
        "journal-is-not-rewritten-after-an-error",
        "pipeline/shardpress/output/journal.py",
        "        self._is_written = False  # after an error, the file may end with a part of a line\n",
        "",
        ("tests/output/test_journal.py::test_a_journal_is_rewritten_after_a_failed_change",),
    ),
    Mutation(
        "journal-of-another-index-is-used",
        "pipeline/shardpress/output/journal.py",
        "return line.digest == self._base.digest or (line.restarts and self.published is None)",
        "return True",
        ("tests/output/test_journal.py::test_a_journal_of_another_index_is_ignored",),
    ),
    Mutation(
        "index-is-renamed-before-its-parts-are-synced",
        "pipeline/shardpress/output/journal.py",
        '``generation-N.h5``.\n        """\n',
        '``generation-N.h5``.\n        """\n        publish(self.disk, self.directory / INDEX, data)\n',
        ("tests/output/test_journal.py::test_all_names_are_synced_before_the_commit",),
    ),
    Mutation(
        "child-processes-inherit-the-lock",
        "pipeline/shardpress/output/lock.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "os.set_inheritable(descriptor, True), fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        ("tests/output/test_lock.py::test_a_child_that_outlives_a_run_does_not_keep_its_lock",),
    ),
    Mutation(
        "journal-loads-damaged-results",
        "pipeline/shardpress/output/journal.py",
        "if digest([data]) != record.entry.blake3:",
        "if len(data) != record.entry.n_bytes:",
        ("tests/output/test_journal.py::test_a_damaged_file_has_a_fault_and_is_not_loaded",),
    ),
    Mutation(
        "records-of-other-settings-are-reused",
        "pipeline/shardpress/output/journal.py",
        " and fingerprint in (None, record.fingerprint)",
        "",
        ("tests/output/test_journal.py::test_records_are_selected_by_kind_and_fingerprint_in_order",),
    ),
    Mutation(
        "record-may-name-any-file",
        "pipeline/shardpress/output/journal.py",
        "if isinstance(content, Record) and not is_result(content.entry.file):",
        "if False:",
        ("tests/output/test_journal.py::test_a_forged_record_is_ignored",),
    ),
    Mutation(
        "withdrawn-part-of-the-result-is-removed",
        "pipeline/shardpress/output/journal.py",
        "is_named = self.published is not None and name in self.published.files",
        "is_named = False",
        ("tests/output/test_journal.py::test_a_withdrawn_part_of_the_published_result_stays",),
    ),
    Mutation(
        "sweep-removes-parts-of-earlier-generations",
        "pipeline/shardpress/output/journal.py",
        "yield from self.published.generation(each.generation).files",
        "self.published.generation(each.generation)",
        ("tests/run/test_generations.py::test_a_new_model_becomes_the_next_generation",),
    ),
    Mutation(
        "file-is-renamed-before-it-is-synced",
        "pipeline/shardpress/output/disk.py",
        "        disk.sync(descriptor)\n    finally:",
        "    finally:",
        ("tests/run/test_power_cuts.py::test_power_can_be_cut_after_some_calls",),
    ),
    Mutation(
        "run-writes-into-a-directory-that-it-lost",
        "pipeline/shardpress/output/disk.py",
        "self._guarded(self._disk.replace, source, target)",
        "self._disk.replace(source, target)",
        ("tests/output/test_moved.py::test_a_directory_that_moves_after_the_check_is_detected",),
    ),
)

_SCAN = (
    Mutation(
        "drift-below-the-minimum-is-not-counted",
        "pipeline/shardpress/scan/drift.py",
        "np.count_nonzero(rows < low, axis=0)",
        "np.count_nonzero(rows < 10 * low, axis=0)",
        ("tests/scan/test_drift.py::test_values_outside_are_counted_by_column_with_the_extreme",),
    ),
    Mutation(
        "missing-values-widen-the-range",
        "pipeline/shardpress/scan/blocks.py",
        "may_be_bad = settings.missing is not None or not (np.isfinite",
        "may_be_bad = not (np.isfinite",
        ("tests/scan/test_ranges.py::test_a_missing_value_is_found_in_the_dtype_of_its_file",),
    ),
    Mutation(
        "rows-that-are-left-out-widen-the-range",
        "pipeline/shardpress/scan/blocks.py",
        "if may_be_bad or len(left_out):",
        "if may_be_bad:",
        ("tests/run/test_fit_on.py::test_the_range_is_that_of_the_selected_rows",),
    ),
    Mutation(
        "bad-rows-keep-numbers-of-lost-shards",
        "pipeline/shardpress/scan/ranges.py",
        "(scan_result.bad_rows - shift)[is_readable]",
        "scan_result.bad_rows[is_readable]",
        ("tests/scan/test_ranges.py::test_unreadable_shards_count_as_bad_rows_or_are_dropped",),
    ),
    Mutation(
        "sample-lacks-the-first-row-of-a-block",
        "pipeline/shardpress/scan/sample.py",
        "(numbers >= first)",
        "(numbers > first)",
        ("tests/scan/test_sample.py::test_the_sample_does_not_depend_on_the_blocks",),
    ),
    Mutation(
        "quantiles-count-missing-values",
        "pipeline/shardpress/scan/sample.py",
        "last = np.maximum(0, n_values - 1)",
        "last = np.full(sample.shape[1], len(sample) - 1)",
        ("tests/scan/test_sample.py::test_quantiles_equal_numpy",),
    ),
)

_MODEL = (
    Mutation(
        "tiny-ranges-are-divided-by",
        "pipeline/shardpress/scan/scaler.py",
        "half >= np.finfo(np.float64).tiny",
        "half > 0",
        ("tests/scan/test_scaler.py::test_a_range_without_a_finite_inverse_becomes_0",),
    ),
    Mutation(
        "tiny-missing-value-makes-zeros-missing",
        "pipeline/shardpress/scan/scaler.py",
        " and bool(rounded) == bool(missing)",
        "",
        ("tests/scan/test_ranges.py::test_a_missing_value_outside_the_dtype_is_never_found",),
    ),
    Mutation(
        "exported-encoder-adds-the-minimum",
        "pipeline/shardpress/model.py",
        "maps[0][1] - self.scaler.shift @ W",
        "maps[0][1] + self.scaler.shift @ W",
        ("tests/test_model.py::test_the_folded_encoder_needs_only_numpy",),
    ),
    Mutation(
        "decoded-rows-lack-the-minimum",
        "pipeline/shardpress/scan/scaler.py",
        "x[:, : self.n_columns] * width + columns.shift",
        "x[:, : self.n_columns] * width",
        ("tests/interop/test_estimator.py::test_results_equal_the_formulas_with_and_without_theano",),
    ),
    Mutation(
        "fingerprint-of-a-model-forgets-its-scaling",
        "pipeline/shardpress/model.py",
        "for name, array in self._arrays().items():\n            digest",
        "for name, array in self.parameters.items():\n            digest",
        ("tests/test_model.py::test_what_changes_features_is_stored_and_fingerprinted",),
    ),
    Mutation(
        "indicators-are-scaled-like-columns",
        "pipeline/shardpress/scan/scaler.py",
        "factor = np.concatenate([factor, ones])",
        "factor = np.concatenate([factor, zeros])",
        ("tests/scan/test_scaler.py::test_indicators_keep_their_values_in_any_scaling",),
    ),
)

_ENCODING = (
    Mutation(
        "overlapping-parts-are-both-used",
        "pipeline/shardpress/encoding/parts.py",
        "if ends[each.shard] <= each.start and each.stop",
        "if each.stop",
        ("tests/encoding/test_parts.py::test_only_ranges_that_overlap_or_pass_the_end_are_dropped",),
    ),
    Mutation(
        "drift-below-the-minimum-passes-as-inside",
        "pipeline/shardpress/encoding/bad_data.py",
        "(good.min(axis=0) >= low).all() and ",
        "",
        ("tests/encoding/test_bad_data.py::test_rows_below_or_above_the_range_are_counted",),
    ),
    Mutation(
        "bad-rows-keep-their-features",
        "pipeline/shardpress/encoding/bad_data.py",
        "features[bad] = np.nan",
        "features[overflown] = np.nan",
        ("tests/encoding/test_bad_data.py::test_bad_rows_are_reported_with_their_place",),
    ),
    Mutation(
        "float16-features-overflow-to-inf",
        "pipeline/shardpress/encoding/storage.py",
        "np.clip(features[rows], -largest_value, largest_value)",
        "np.clip(features[rows], -largest_value, None)",
        ("tests/encoding/test_storage.py::test_overflow_of_float16_is_clipped_and_reported",),
    ),
    Mutation(
        "bad-rows-are-marked-in-the-first-block",
        "pipeline/shardpress/encoding/encode.py",
        "out.valid[bad] = False",
        "arrays.valid[bad] = False",
        ("tests/run/test_bad_rows.py::test_skipped_rows_keep_their_places_and_change_no_other_row",),
    ),
    Mutation(
        "error-is-that-of-clipped-rows",
        "pipeline/shardpress/encoding/encode.py",
        "worker.errors(filled, out.features)",
        "worker.errors(cleaned, out.features)",
        ("tests/run/test_row_error.py::test_the_report_lists_the_worst_of_all_rows",),
    ),
    Mutation(
        "reason-of-an-unreadable-shard-concerns-its-neighbours",
        "pipeline/shardpress/encoding/encode.py",
        "task.unreadable.get(place.piece.shard)",
        "next(iter(task.unreadable.values()), None)",
        ("tests/run/test_spanning.py::test_an_unreadable_file_keeps_its_rows_of_a_part",),
    ),
    Mutation(
        "index-shows-dead-rows",
        "pipeline/shardpress/encoding/index.py",
        "select_hyperslab((first, *corner)",
        "select_hyperslab((0, *corner)",
        ("tests/encoding/test_index.py::test_an_index_shows_only_live_rows_in_the_order_of_the_result",),
    ),
    Mutation(
        "extras-of-all-shards-go-to-the-first-rows",
        "pipeline/shardpress/encoding/encode.py",
        "narrow[name][place.rows] = each",
        "narrow[name][: len(each)] = each",
        ("tests/encoding/test_encode.py::test_a_part_of_several_shards_equals_parts_of_one",),
    ),
    Mutation(
        "encoder-of-another-model-is-reused",
        "pipeline/shardpress/encoding/worker.py",
        "(self.model.blake3, *sizes, self.storage)",
        "(*sizes, self.storage)",
        ("tests/encoding/test_worker.py::test_another_model_or_size_replaces_the_worker",),
    ),
    Mutation(
        "rows-are-scaled-in-the-dtype-of-others",
        "pipeline/shardpress/encoding/worker.py",
        "shift, _ = self._model.scaler.arrays(dtype)",
        "shift, _ = self._model.scaler.arrays(np.dtype(np.float64))",
        ("tests/encoding/test_worker.py::test_a_model_is_made_once_for_all_threads",),
    ),
)

_RUN = (
    Mutation(
        "rows-of-new-files-count-as-trained",
        "pipeline/shardpress/run/use.py",
        "Use.TRAINING if may_have_trained else Use.LATER",
        "Use.TRAINING",
        ("tests/run/test_trained_rows.py::test_rows_of_new_files_are_test_rows_but_copies_are_not",),
    ),
    Mutation(
        "rows-that-are-left-out-are-trained-on",
        "pipeline/shardpress/run/prepare.py",
        "np.union1d(scan.bad_rows, self.not_fitted())",
        "scan.bad_rows",
        ("tests/run/test_fit_on.py::test_rows_that_are_left_out_do_not_change_the_model",),
    ),
    Mutation(
        "parts-of-another-model-are-reused",
        "pipeline/shardpress/run/difference.py",
        "is_encoded_alike = not trains and base.features",
        "is_encoded_alike = base.features",
        ("tests/run/test_replacing.py::test_overwriting_reuses_results_that_still_fit",),
    ),
    Mutation(
        "ranges-keep-the-positions-of-the-base",
        "pipeline/shardpress/run/difference.py",
        "structs.replace(each, shard=positions[each.shard]) for",
        "each for",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "ranges-of-changed-files-stay",
        "pipeline/shardpress/run/difference.py",
        "for i, place in enumerate(places) if place.is_same}",
        "for i, place in enumerate(places)}",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "only-live-parts-are-rewritten",
        "pipeline/shardpress/run/difference.py",
        "stays or part.n_live >= _LIVE * part.n_rows",
        "stays or part.n_live <= _LIVE * part.n_rows",
        ("tests/run/test_difference.py::test_parts_that_are_mostly_dead_or_small_do_not_stay",),
    ),
    Mutation(
        "one-part-too-many-stays",
        "pipeline/shardpress/run/difference.py",
        "> MOST_PARTS:",
        "> MOST_PARTS + 1:",
        ("tests/run/test_difference.py::test_parts_that_are_mostly_dead_or_small_do_not_stay",),
    ),
    Mutation(
        "parts-of-unreadable-files-are-rewritten",
        "pipeline/shardpress/run/difference.py",
        "any(each.shard in unreadable for each in part.ranges)",
        "False",
        ("tests/run/test_difference.py::test_parts_that_are_mostly_dead_or_small_do_not_stay",),
    ),
    Mutation(
        "rows-have-the-append-of-the-first-shard-of-their-part",
        "pipeline/shardpress/run/encoding_stage.py",
        "append_id=prepared.append_ids[each.shard]",
        "append_id=prepared.append_ids[part.ranges[0].shard]",
        ("tests/run/test_sequences.py::test_each_run_of_a_random_sequence_is_right",),
    ),
    Mutation(
        "resumed-ranges-keep-their-positions",
        "pipeline/shardpress/run/resume.py",
        "ranges.append(structs.replace(each, shard=positions[identity]))",
        "ranges.append(each)",
        ("tests/run/test_spanning.py::test_a_resumed_run_encodes_only_the_other_rows",),
    ),
    Mutation(
        "ranges-of-other-files-are-resumed",
        "pipeline/shardpress/run/resume.py",
        "if identity in positions:",
        "positions.setdefault(identity, each.shard)\n                if identity:",
        ("tests/run/test_spanning.py::test_a_resumed_run_encodes_only_the_other_rows",),
    ),
    Mutation(
        "parts-with-other-categories-are-resumed",
        "pipeline/shardpress/run/encoding_stage.py",
        "fingerprint(self.prepared.wanted.features(self.model.fingerprint), categories_of(extras))",
        "fingerprint(self.prepared.wanted.features(self.model.fingerprint), len(extras))",
        ("tests/run/test_differences_found.py::test_labels_survive_new_categories_after_an_interruption",),
    ),
    Mutation(
        "features-of-another-storage-are-reused",
        "pipeline/shardpress/run/request.py",
        'encoding = {**fingerprint_values(settings, "features"), "format": _ENCODING}',
        'encoding = {"include": [], "format": _ENCODING}',
        ("tests/run/test_request.py::test_every_setting_changes_the_stages_that_it_declares",),
    ),
    Mutation(
        "changed-inputs-are-not-noticed",
        "pipeline/shardpress/run/request.py",
        "Stat(identity.size, identity.mtime_ns, identity.ctime_ns, identity.inode)",
        "Stat(identity.size, 0, 0, 0)",
        ("tests/run/test_replacing.py::test_changed_inputs_are_detected_and_discard_nothing",),
    ),
    Mutation(
        "files-are-compared-with-those-of-an-unfinished-run",
        "pipeline/shardpress/run/base.py",
        "if other is not None and (other.kind, other.rows, other.extras) == (shard.kind, shard.rows, shard.extras):",
        "if other is not None:",
        ("tests/run/test_directories.py::test_files_are_compared_with_those_of_the_finished_run",),
    ),
    Mutation(
        "two-shards-are-the-same-earlier-one",
        "pipeline/shardpress/run/difference.py",
        "same |= _pairs(before, now, rest, key, set(same.values()))",
        "same |= _pairs(before, now, rest, key)",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "changed-extras-are-not-noticed",
        "pipeline/shardpress/run/difference.py",
        "return shard.kind, shard.rows, shard.extras",
        "return shard.kind, shard.rows",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "copied-files-are-new",
        "pipeline/shardpress/run/difference.py",
        "keys.append(_content_key)",
        "pass",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "the-model-of-changed-rows-stays",
        "pipeline/shardpress/run/difference.py",
        "            return True",
        "            continue",
        ("tests/run/test_difference.py::test_the_table",),
    ),
    Mutation(
        "other-labels-remove-the-verdict-on-an-append",
        "pipeline/shardpress/run/extension.py",
        '_OF_SUMMARY = ("appended", "verdict", ',
        "_OF_SUMMARY = (",
        ("tests/run/test_requests.py::test_a_request_changes_only_what_it_names",),
    ),
    Mutation(
        "corrected-labels-are-taken-for-new-rows",
        "pipeline/shardpress/run/difference.py",
        "if i not in self.relabelled]",
        "]",
        ("tests/run/test_requests.py::test_a_request_changes_only_what_it_names",),
    ),
    Mutation(
        "rows-that-change-after-the-scan-are-not-noticed",
        "pipeline/shardpress/run/finish.py",
        "and known.rows != found.rows",
        "and False",
        ("tests/run/test_differences_found.py::test_contents_that_change_during_a_run_stop_it",),
    ),
    Mutation(
        "copies-of-training-rows-are-test-rows",
        "pipeline/shardpress/run/use.py",
        "may_have_trained = unknown or shard.rows in trained",
        "may_have_trained = unknown",
        ("tests/run/test_trained_rows.py::test_rows_of_new_files_are_test_rows_but_copies_are_not",),
    ),
    Mutation(
        "bad-rows-of-an-append-hide-among-earlier-rows",
        "pipeline/shardpress/run/prepare.py",
        "if self.config.results.append:\n            return sorted",
        "if False:\n            return sorted",
        ("tests/run/test_bad_data.py::test_the_limit_of_bad_rows_of_an_append_refers_to_its_rows",),
    ),
    Mutation(
        "rows-of-damaged-files-are-limited",
        "pipeline/shardpress/run/inputs.py",
        "check_bad_shards(config, left_out,",
        "check_bad_shards(config, refused,",
        ("tests/run/test_append.py::test_rows_of_damaged_files_stay_until_they_are_dropped",),
    ),
    Mutation(
        "bad-shards-of-reused-results-are-not-limited",
        "pipeline/shardpress/run/encoding_stage.py",
        "if len(found) > prepared.max_bad_shards:",
        "if False:",
        ("tests/run/test_bad_data.py::test_results_with_more_bad_shards_than_allowed_are_refused",),
    ),
    Mutation(
        "one-bad-row-more-than-allowed-passes",
        "pipeline/shardpress/run/prepare.py",
        "n_allowed(self.config.bad_data.max_bad, n_rows) if",
        "1 + n_allowed(self.config.bad_data.max_bad, n_rows) if",
        ("tests/run/test_bad_rows.py::test_the_limit_of_bad_rows_is_exact",),
    ),
    Mutation(
        "limit-of-an-append-refers-to-all-rows",
        "pipeline/shardpress/run/prepare.py",
        "sum(self.shards[i].n_rows for i in self.limited)",
        "self.n_rows",
        ("tests/run/test_bad_data.py::test_the_limit_of_bad_rows_of_an_append_refers_to_its_rows",),
    ),
    Mutation(
        "deadline-leaves-no-time-to-encode",
        "pipeline/shardpress/run/deadline.py",
        "self._validation_seconds + self._reserve > self._ends_by",
        "self._validation_seconds > self._ends_by",
        ("tests/run/test_deadline.py::test_a_training_uses_its_time_and_ends_early_enough",),
    ),
)

_SETTINGS = (
    Mutation(
        "percentages-are-rounded-in-binary",
        "pipeline/shardpress/settings/kinds.py",
        "Fraction(limit[:-1]) * total / 100",
        "float(limit[:-1]) / 100 * total",
        ("tests/settings/test_kinds.py::test_a_percentage_is_counted_exactly_and_rounded_down",),
    ),
    Mutation(
        "megabytes-are-mebibytes",
        "pipeline/shardpress/settings/kinds.py",
        "base = 1024 if match[3] or not match[4] else 1000",
        "base = 1024",
        ("tests/settings/test_kinds.py::test_bytes_are_read_with_their_units",),
    ),
    Mutation(
        "file-overrides-environment",
        "pipeline/shardpress/settings/flags.py",
        'values |= convert_settings(variables, "environment: ", ConfigError, _variable)',
        'values = convert_settings(variables, "environment: ", ConfigError, _variable) | values',
        ("tests/settings/test_flags.py::test_flags_override_environment_file_and_defaults",),
    ),
    Mutation(
        "repeated-keys-of-a-file-are-accepted",
        "pipeline/shardpress/settings/configfile.py",
        "seen.add(key.value)",
        "seen.add(None)",
        ("tests/settings/test_configfile.py::test_repeated_keys_are_refused_at_any_depth",),
    ),
    Mutation(
        "hours-are-minutes",
        "pipeline/shardpress/settings/deadline.py",
        "return start + 3600 * hours",
        "return start + 60 * hours",
        ("tests/run/test_deadline.py::test_the_deadline_follows_the_time_settings",),
    ),
    Mutation(
        "invalid-flags-are-configuration-errors",
        "pipeline/shardpress/settings/flags.py",
        'raise UsageError("; ".join(wrong))',
        'raise ConfigError("; ".join(wrong))',
        ("tests/settings/test_flags.py::test_invalid_flags_are_usage_errors",),
    ),
    Mutation(
        "fingerprint-forgets-the-seed",
        "pipeline/shardpress/settings/config.py",
        '"Seed of all random numbers.", default=0',
        '"Seed of all random numbers.", default=0, affects="nothing"',
        ("tests/run/test_request.py::test_settings_declare_what_they_affect",),
    ),
)

_HDF5_AND_SHARDS = (
    Mutation(
        "only-the-first-damaged-file-is-named",
        "pipeline/shardpress/shards/open.py",
        "elif len(self._reasons) == MOST_NAMED:",
        "else:",
        ("tests/run/test_append.py::test_damaged_files_are_named_with_flags_that_continue",),
    ),
    Mutation(
        "sparse-rows-may-have-any-number-of-entries",
        "pipeline/shardpress/hdf5/forms/sparse.py",
        " | (sizes > shard.n_inputs)",
        "",
        ("tests/shards/test_rows.py::test_invalid_sparse_rows_are_refused_with_their_row",),
    ),
    Mutation(
        "check-of-a-result-ignores-the-end-of-a-source",
        "pipeline/shardpress/hdf5/child/results.py",
        "_SOURCE.fullmatch(",
        "_SOURCE.match(",
        ("tests/hdf5/child/test_results.py::test_other_content_is_refused",),
    ),
    Mutation(
        "skipped-filters-are-undone",
        "pipeline/shardpress/hdf5/filters/codecs.py",
        "if mask >> i & 1:",
        "if mask >> i & 2:",
        ("tests/hdf5/test_values.py::test_filters_masked_for_a_chunk_are_not_applied_to_it",),
    ),
    Mutation(
        "chunk-checksums-are-not-compared",
        "pipeline/shardpress/hdf5/filters/codecs.py",
        " or stored not in (summed, older)",
        "",
        ("tests/hdf5/test_values.py::test_wrong_checksum_is_reported_with_its_rows",),
    ),
    Mutation(
        "values-may-overlap-in-a-file",
        "pipeline/shardpress/hdf5/child/places.py",
        "overlaps = offsets[1:] < offsets[:-1] + sizes[:-1]",
        "overlaps = offsets[1:] < offsets[:-1]",
        ("tests/shards/test_untrusted.py::test_chunks_at_forged_places_are_refused",),
    ),
    Mutation(
        "cached-chunks-are-those-of-another-file",
        "pipeline/shardpress/hdf5/values.py",
        "CHUNKS.get((request.file, layout.name, cells[0]),",
        "CHUNKS.get((layout.name, cells[0]),",
        ("tests/hdf5/test_chunkcache.py::test_changed_file_is_not_read_from_the_cache",),
    ),
    Mutation(
        "last-partial-chunk-is-not-read",
        "pipeline/shardpress/hdf5/values.py",
        "range(low // size, -(-high // size))",
        "range(low // size, high // size)",
        ("tests/shards/test_rows.py::test_pickled_block_is_small_and_reads_the_same_rows",),
    ),
    Mutation(
        "code-after-the-last-category-is-accepted",
        "pipeline/shardpress/shards/rows.py",
        "(stored >= n_categories)",
        "(stored > n_categories)",
        ("tests/shards/test_include.py::test_code_without_a_category_is_an_error",),
    ),
    Mutation(
        "integer-labels-are-rounded-to-floats",
        "pipeline/shardpress/shards/extras.py",
        "np.finfo(common).nmant + 1",
        "np.finfo(common).nmant + 11",
        ("tests/shards/test_extras.py::test_common_dtype_holds_every_value_of_both",),
    ),
    Mutation(
        "rows-of-a-part-are-its-first-ones",
        "pipeline/shardpress/shards/rows.py",
        "first = block.shard.first_row",
        "first = 0",
        ("tests/shards/test_parts_as_input.py::test_rows_and_extras_are_those_of_open_features",),
    ),
    Mutation(
        "link-to-a-directory-of-a-similar-name-is-followed",
        "pipeline/shardpress/shards/sources.py",
        "return os.path.commonpath([directory, path]) == directory",
        "return path.startswith(directory)",
        ("tests/shards/test_sources.py::test_link_out_of_a_listed_directory_is_refused",),
    ),
    Mutation(
        "file-replaced-since-it-was-checked-is-read",
        "pipeline/shardpress/hdf5/files.py",
        "_check_same(path, identity, expected or identity)",
        "_check_same(path, identity, identity)",
        ("tests/hdf5/test_values.py::test_file_changed_after_vetting_is_refused",),
    ),
    Mutation(
        "exchanged-units-have-one-digest",
        "pipeline/shardpress/shards/digests.py",
        "unit.data, unit_number + (n_before << 40)",
        "unit.data, 0",
        ("tests/shards/test_digests.py::test_different_rows_have_different_digests",),
    ),
    Mutation(
        "exchanged-units-of-extras-have-one-digest",
        "pipeline/shardpress/shards/digests.py",
        'f"{first_row // UNIT_ROWS} {name} "',
        'f"{name} "',
        ("tests/shards/test_digests.py::test_different_extras_have_different_digests",),
    ),
    Mutation(
        "joined-texts-have-one-digest",
        "pipeline/shardpress/shards/digests.py",
        'parts += [len(text).to_bytes(8, "little"), text]',
        "parts += [text]",
        ("tests/shards/test_digests.py::test_different_extras_have_different_digests",),
    ),
    Mutation(
        "columns-are-digested-in-the-order-of-the-file",
        "pipeline/shardpress/shards/conversion.py",
        "digest.add_rows(stored, block.start)",
        "digest.add_rows(rows.read(block), block.start)",
        ("tests/shards/test_digests.py::test_columns_are_digested_in_the_order_of_the_model",),
    ),
)

_CLUSTER = (
    Mutation(
        "another-machine-needs-no-tls",
        "pipeline/shardpress/cluster/security.py",
        '.strip("[]")) and not is_insecure',
        '.strip("[]")) and is_insecure',
        ("tests/cluster/test_security.py::test_only_this_machine_is_allowed_without_tls",),
    ),
    Mutation(
        "merged-results-count-as-rows",
        "pipeline/shardpress/cluster/executor.py",
        "if not _is_merge(self._graph[key]):",
        "if self._graph[key]:",
        ("tests/cluster/test_stats.py::test_results_count_for_the_process_that_made_them",),
    ),
    Mutation(
        "card-number-ignores-the-visible-cards",
        "pipeline/shardpress/cluster/devices.py",
        "return visible[number]",
        "return str(number)",
        ("tests/cluster/test_devices.py::test_cards_are_numbered_among_those_visible_to_the_driver",),
    ),
    Mutation(
        "run-ends-before-its-tasks",
        "pipeline/shardpress/cluster/executor.py",
        "            run.wait()\n",
        "",
        ("tests/cluster/test_executor.py::test_an_error_is_raised_after_the_end_of_the_last_task",),
    ),
    Mutation(
        "results-of-tasks-are-merged-in-reverse",
        "pipeline/shardpress/cluster/executor.py",
        "graph[key] = (merge, group)",
        "graph[key] = (merge, group[::-1])",
        ("tests/cluster/test_executor.py::test_results_are_merged_in_order_and_reported_once",),
    ),
    Mutation(
        "worker-of-another-version-is-accepted",
        "pipeline/shardpress/cluster/probe.py",
        "facts = packages()",
        "facts = dict[str, str]()",
        ("tests/cluster/test_probe.py::test_differences_name_both_values",),
    ),
)

_BASE = (
    Mutation(
        "rate-counts-rows-of-earlier-runs",
        "pipeline/shardpress/progress.py",
        "rate = (self._done - self._before) /",
        "rate = self._done /",
        ("tests/test_progress.py::test_earlier_work_does_not_count_for_rate_and_remaining_time",),
    ),
    Mutation(
        "signals-are-lost-during-deferred-work",
        "pipeline/shardpress/signals.py",
        "_caught.append(number)",
        "_caught.extend([number] if _n_deferred == 0 else [])",
        ("tests/test_signals.py::test_a_deferred_signal_waits_for_the_next_check",),
    ),
    Mutation(
        "digest-of-the-footer-is-not-compared",
        "pipeline/shardpress/sealed.py",
        " or digest([memoryview(data)[:n_bytes]]) != stored.hex()",
        "",
        ("tests/test_result.py::test_a_flipped_bit_anywhere_is_refused",),
    ),
    Mutation(
        "stretches-join-across-a-dead-row",
        "pipeline/shardpress/records.py",
        "found[-1].first + found[-1].n_rows == each.first",
        "each.first - found[-1].first - found[-1].n_rows in (0, 1)",
        ("tests/test_features.py::test_ranges_of_parts_are_opened_in_their_order",),
    ),
    Mutation(
        "rows-of-a-part-may-be-used-twice",
        "pipeline/shardpress/result.py",
        "if each.first < end:",
        "if each.first < 0:",
        ("tests/encoding/test_index.py::test_ranges_that_overlap_or_lie_outside_are_refused",),
    ),
    Mutation(
        "nan-differs-from-a-number",
        "pipeline/shardpress/conditions.py",
        "~is_equal & (values == values)",
        "~is_equal",
        ("tests/test_conditions.py::test_nan_fulfils_no_condition",),
    ),
    Mutation(
        "index-may-name-files-elsewhere",
        "pipeline/shardpress/result.py",
        "if not _PART.fullmatch(part.file)",
        "if not _PART.search(part.file)",
        ("tests/test_result.py::test_forged_facts_are_refused",),
    ),
    Mutation(
        "model-of-another-user-is-not-checked-first",
        "pipeline/shardpress/result.py",
        "read_model_file(file_of(path), is_foreign=True)",
        "read_model_file(file_of(path))",
        ("tests/test_modelfile.py::test_no_other_file_is_opened",),
    ),
    Mutation(
        "other-file-is-read-as-a-whole",
        "pipeline/shardpress/sealed.py",
        "return read_at(descriptor, 0, identity.size) if last.startswith(_NAME) else last",
        "return read_at(descriptor, 0, identity.size)",
        ("tests/test_modelfile.py::test_hostile_models_take_little_memory",),
    ),
    Mutation(
        "temporary-failures-exit-like-failed-writes",
        "pipeline/shardpress/errors.py",
        "exit_code = 75",
        "exit_code = 74",
        ("tests/run/test_moved.py::test_a_run_whose_directory_was_moved_stops_and_harms_no_run",),
    ),
    Mutation(
        "threads-make-the-same-value-at-once",
        "pipeline/shardpress/processcache.py",
        "with self._lock:\n            value = self._get(key)\n            if",
        "with threading.Lock():\n            value = self._get(key)\n            if",
        ("tests/test_processcache.py::test_a_value_is_made_once_by_all_threads",),
    ),
)

_COMMANDS = (
    Mutation(
        "too-new-packages-fit",
        "pipeline/shardpress/doctor/packages.py",
        '"<": operator.lt',
        '"<": operator.le',
        ("tests/test_installed.py::test_versions_are_compared_by_their_numbers",),
    ),
    Mutation(
        "verify-command-always-succeeds",
        "pipeline/shardpress/commands/verify.py",
        "return VerificationFailed.exit_code if verification.faults else 0",
        "return 0",
        ("tests/report/test_verify.py::test_every_damaged_file_is_named_and_others_are_checked",),
    ),
    Mutation(
        "inspect-succeeds-although-files-are-refused",
        "pipeline/shardpress/commands/inspect.py",
        "return DataError.exit_code if inspection.refused else 0",
        "return 0",
        ("tests/commands/test_inspect.py::test_a_refused_file_is_listed_with_its_contents",),
    ),
    Mutation(
        "doctor-takes-settings-for-the-machine",
        "pipeline/shardpress/doctor/check.py",
        "if any(each.is_setting for each in failed):",
        "if failed and all(each.is_setting for each in failed):",
        ("tests/doctor/test_doctor.py::test_exit_code_separates_settings_from_the_machine",),
    ),
    Mutation(
        "newest-card-decides-the-version-of-cuda",
        "pipeline/shardpress/gpu/fitting.py",
        "min(driver.capabilities, default",
        "max(driver.capabilities, default",
        ("tests/gpu/test_fitting.py::test_oldest_card_decides_the_version_of_cuda",),
    ),
    Mutation(
        "cuda-of-the-driver-is-not-allowed",
        "pipeline/shardpress/gpu/fitting.py",
        'end = f"{major}.{minor + 1}"',
        'end = f"{major}.{minor}"',
        ("tests/gpu/test_fitting.py::test_newest_libraries_that_the_driver_accepts_are_chosen",),
    ),
)

_INTEROP = (
    Mutation(
        "part-may-have-other-rows-than-the-manifest",
        "pipeline/shardpress/features.py",
        "if n_found != part.n_rows:",
        "if n_found < part.n_rows:",
        ("tests/test_features.py::test_a_damaged_part_is_refused_by_name",),
    ),
    Mutation(
        "dead-rows-of-a-part-are-read",
        "pipeline/shardpress/features.py",
        "shapes[part.file], first, n_rows)",
        "shapes[part.file], 0, n_rows)",
        ("tests/test_features.py::test_ranges_of_parts_are_opened_in_their_order",),
    ),
    Mutation(
        "score-has-the-wrong-sign",
        "pipeline/shardpress/interop/estimator.py",
        "return -self._apply(reconstruction_errors, X)",
        "return self._apply(reconstruction_errors, X)",
        ("tests/interop/test_estimator.py::test_results_equal_the_formulas_with_and_without_theano",),
    ),
    Mutation(
        "parquet-files-of-other-parts-are-reused",
        "pipeline/shardpress/interop/parquet.py",
        "fingerprint(columns, part.entry.blake3, first, n_rows, append_ids)",
        "fingerprint(columns, first, n_rows, append_ids)",
        ("tests/interop/test_export.py::test_only_changed_parquet_files_are_written",),
    ),
    Mutation(
        "exports-of-other-runs-are-replaced",
        "pipeline/shardpress/interop/export.py",
        "if found != target.source:",
        "if False:",
        ("tests/interop/test_export.py::test_an_export_replaces_an_earlier_one_of_the_same_run_only",),
    ),
    Mutation(
        "partial-fit-starts-its-optimizer-again",
        "pipeline/shardpress/interop/fitting.py",
        "fit.training.resume(checkpoint)",
        "pass",
        ("tests/interop/test_estimator.py::test_partial_fits_equal_epochs_at_a_constant_rate",),
    ),
    Mutation(
        "features-of-several-encoders-are-joined",
        "pipeline/shardpress/features.py",
        "if found is None or found != expected:",
        "if found is None:",
        ("tests/test_features_joined.py::test_different_encoders_are_refused_with_both_runs",),
    ),
    Mutation(
        "lazy-rows-with-nan-are-encoded",
        "pipeline/shardpress/interop/applying.py",
        'if model.scaler.fill is None and rows.dtype.kind == "f" and',
        "if model.scaler.fill is not None and",
        ("tests/interop/test_estimator.py::test_unusable_rows_are_refused_with_the_parameter_that_helps",),
    ),
    Mutation(
        "missing-category-becomes-the-first-one",
        "pipeline/shardpress/features.py",
        "for category in each), -1], dtype)",
        "for category in each), 0], dtype)",
        ("tests/test_features_joined.py::test_codes_refer_to_the_categories_of_all_runs",),
    ),
)

_KERNELS = (
    Mutation(
        "nesterov-is-plain-momentum",
        "kernels/shardpress_kernels/rules.py",
        "return p + decay * velocity - rate * g, velocity",
        "return p + velocity, velocity",
        ("tests/kernels/test_step.py::test_every_rule_with_every_option_equals_numpy[theano-nesterov]",),
    ),
    Mutation(
        "adam-forgets-squares-too-soon",
        "kernels/shardpress_kernels/rules.py",
        "_BETA2 = 0.999",
        "_BETA2 = 0.99",
        ("tests/kernels/test_step.py::test_every_rule_with_every_option_equals_numpy[theano-adam]",),
    ),
    Mutation(
        "nesterov-in-c-is-plain-momentum",
        "kernels/shardpress_kernels/rules.py",
        "p[i] += fused(DECAY, velocity[i], -rate * g[i]);",
        "p[i] += velocity[i];",
        ("tests/kernels/test_step.py::test_every_rule_with_every_option_equals_numpy[ops-nesterov]",),
    ),
    Mutation(
        "adam-in-c-forgets-squares-too-soon",
        "kernels/shardpress_kernels/rules.py",
        "const float beta2 = 0.999f;",
        "const float beta2 = 0.99f;",
        ("tests/kernels/test_step.py::test_every_rule_with_every_option_equals_numpy[ops-adam]",),
    ),
    Mutation(
        "last-tile-of-bytes-lacks-a-row",
        "kernels/shardpress_kernels/native/encode.c",
        "for (long i = first; n_rows > 0 && i < n_rows; i++)",
        "for (long i = first; n_rows > 0 && i < n_rows - 1; i++)",
        ("tests/kernels/test_ops.py::test_features_and_errors_of_one_layer_equal_numpy_at_edges",),
        needs=("avx_vnni", "avx512_vnni"),
    ),
    Mutation(
        "deep-layers-take-the-bias-of-the-first",
        "kernels/shardpress_kernels/native/forward.h",
        "layers[level - 1].bias_hidden + column",
        "layers[0].bias_hidden + column",
        ("tests/kernels/test_ops.py::test_features_and_errors_of_networks_equal_numpy",),
    ),
    Mutation(
        "features-that-are-inf-count-as-finite",
        "kernels/shardpress_kernels/native/encode.c",
        "all &= fabsf(values[i]) < INFINITY;",
        "all &= fabsf(values[i]) <= INFINITY;",
        ("tests/kernels/test_ops.py::test_rows_with_features_that_are_not_finite_are_reported",),
    ),
    Mutation(
        "values-above-the-range-are-not-reported",
        "kernels/shardpress_kernels/native/rows.h",
        "worst = worst > below ? worst : below;",
        "worst = worst > below ? worst : worst;",
        ("tests/kernels/test_ops.py::test_rows_outside_the_range_are_reported[ops]",),
    ),
    Mutation(
        "later-blocks-replace-the-gradient-of-earlier-ones",
        "kernels/shardpress_kernels/native/step.c",
        "sums[i] += before[i];",
        "sums[i] += 0 * before[i];",
        ("tests/kernels/test_step.py::test_every_rule_with_every_option_equals_numpy[ops-momentum]",),
    ),
    Mutation(
        "compile-cache-may-be-written-by-a-group",
        "kernels/shardpress_kernels/compilecache.py",
        "stat.S_IMODE(found.st_mode) & 0o077",
        "stat.S_IMODE(found.st_mode) & 0o007",
        ("tests/kernels/test_compilecache.py::test_cache_that_others_can_write_is_refused_before_use",),
    ),
)

MUTATIONS = (
    *_REPORT,
    *_TRAINING,
    *_OUTPUT,
    *_SCAN,
    *_MODEL,
    *_ENCODING,
    *_RUN,
    *_SETTINGS,
    *_HDF5_AND_SHARDS,
    *_CLUSTER,
    *_BASE,
    *_COMMANDS,
    *_INTEROP,
    *_KERNELS,
)
"""All mutations."""
