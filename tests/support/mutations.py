"""The mutations that tests must catch: faults that would hurt a user and that are easily made.

`tests.support.mutants` plants them. Each is one replacement in one file; its text occurs exactly once there. When code
changes, choose a new text with the same meaning. The mutations are grouped by package, and the groups begin with those
whose tests are the fastest, because a sample takes the first mutation of each of the first groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

__all__ = ["MUTATIONS", "Mutation"]


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
    def package(self) -> str:
        """The package or module of the file: ``kernels``, ``report`` or ``model``."""
        path = PurePosixPath(self.file)
        return "kernels" if path.parts[0] == "kernels" else path.with_suffix("").parts[2]


_REPORT = (
    Mutation(
        "verify-accepts-good-rows-as-bad",
        "pipeline/shardpress/report/rows.py",
        "is_nan & (expected.is_bad | expected.may_be_bad)",
        "is_nan",
        ("tests/report/test_verify.py::test_good_rows_stored_as_bad_are_a_fault",),
    ),
    Mutation(
        "verify-allows-rounding-twice",
        "pipeline/shardpress/report/rows.py",
        'part.get("max_error", 0.0)',
        '2 * part.get("max_error", 0.0)',
        ("tests/report/test_verify.py::test_rounding_error_is_allowed_once",),
    ),
    Mutation(
        "verify-tolerance-times-ten",
        "pipeline/shardpress/report/rows.py",
        "_SAFETY = 4.0",
        "_SAFETY = 40.0",
        ("tests/report/test_rounding.py",),
    ),
    Mutation(
        "compare-uses-rows-that-are-bad-in-one-run",
        "pipeline/shardpress/report/commonrows.py",
        "return features_a, features_b, valid_a & valid_b",
        "return features_a, features_b, valid_a",
        ("tests/report/test_compare.py::test_rows_bad_in_one_run_are_not_compared",),
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
        "replicas-count-the-fewest-steps",
        "pipeline/shardpress/training/averaging.py",
        "np.maximum(sums.get(name, array), array)",
        "np.minimum(sums.get(name, array), array)",
        ("tests/training/test_averaging.py",),
    ),
    Mutation(
        "validation-rows-are-trained-on",
        "pipeline/shardpress/training/order.py",
        "rows[~np.isin(rows, self.left_out)]",
        "rows",
        ("tests/training/test_order.py",),
    ),
    Mutation(
        "resumed-epoch-starts-its-window-again",
        "pipeline/shardpress/training/order.py",
        "yield window, rows[n_skipped:]",
        "yield window, rows",
        ("tests/training/test_order.py::test_an_epoch_can_be_resumed_after_any_number_of_rows",),
    ),
    Mutation(
        "every-step-has-the-same-noise",
        "pipeline/shardpress/training/order.py",
        "(seed, _NOISE, step)",
        "(seed, _NOISE)",
        ("tests/training/test_order.py",),
    ),
    Mutation(
        "checkpoints-may-hold-nan",
        "pipeline/shardpress/training/checkpoint.py",
        "array.dtype == np.float32 and np.isfinite(array).all()",
        "array.dtype == np.float32",
        ("tests/training/test_checkpoint.py::test_invalid_checkpoints_are_refused",),
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
)

_OUTPUT = (
    Mutation(
        "commit-does-not-sync-its-record",
        "pipeline/shardpress/output/ledger.py",
        'sealed(records))\n        self._sync("commits")',
        "sealed(records))",
        ("tests/output/test_ledger.py::test_files_are_synced_before_their_record_is_written",),
    ),
    Mutation(
        "child-processes-inherit-the-lock",
        "pipeline/shardpress/output/lock.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "os.set_inheritable(descriptor, True), fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        ("tests/output/test_lock.py::test_a_child_that_outlives_a_run_does_not_keep_its_lock",),
    ),
    Mutation(
        "ledger-loads-damaged-results",
        "pipeline/shardpress/output/ledger.py",
        "if digest([data]) != record.entry.blake3:",
        "if len(data) != record.entry.n_bytes:",
        ("tests/output/test_records.py::test_a_damaged_result_is_not_loaded",),
    ),
    Mutation(
        "records-of-other-settings-are-reused",
        "pipeline/shardpress/output/ledger.py",
        " and fingerprint in (None, record.fingerprint)",
        "",
        ("tests/output/test_ledger.py::test_records_are_selected_by_kind_and_fingerprint_in_order",),
    ),
    Mutation(
        "record-may-name-any-file",
        "pipeline/shardpress/output/records.py",
        " or not _RESULT.fullmatch(record.entry.file)",
        "",
        ("tests/output/test_records.py::test_a_damaged_record_file_is_ignored_and_named",),
    ),
    Mutation(
        "manifest-may-name-files-elsewhere",
        "pipeline/shardpress/output/records.py",
        ' or ".." in Path(name).parts',
        "",
        ("tests/output/test_records.py::test_a_manifest_with_paths_outside_is_refused",),
    ),
)

_SCAN = (
    Mutation(
        "tiny-ranges-are-divided-by",
        "pipeline/shardpress/scan/scaler.py",
        "half >= np.finfo(np.float64).tiny",
        "half > 0",
        ("tests/scan/test_scaler.py",),
    ),
    Mutation(
        "drift-below-the-minimum-is-not-counted",
        "pipeline/shardpress/scan/drift.py",
        "np.count_nonzero(rows < low, axis=0)",
        "np.count_nonzero(rows < 10 * low, axis=0)",
        ("tests/scan/test_drift.py",),
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
        "rows-that-are-left-out-are-trained-on",
        "pipeline/shardpress/run/training_stage.py",
        "np.union1d(self.scan.bad_rows, prepared.not_fitted())",
        "self.scan.bad_rows",
        ("tests/run/test_fit_on.py::test_rows_that_are_left_out_do_not_change_the_model",),
    ),
    Mutation(
        "bad-rows-keep-numbers-of-lost-shards",
        "pipeline/shardpress/scan/ranges.py",
        "(scan_result.bad_rows - shift)[is_readable]",
        "scan_result.bad_rows[is_readable]",
        ("tests/scan/test_ranges.py::test_a_scan_can_drop_its_unreadable_shards",),
    ),
    Mutation(
        "tiny-missing-value-makes-zeros-missing",
        "pipeline/shardpress/scan/scaler.py",
        " and bool(rounded) == bool(missing)",
        "",
        ("tests/scan/test_ranges.py::test_a_missing_value_outside_the_dtype_is_never_found",),
    ),
)

_ENCODING = (
    Mutation(
        "overlapping-parts-are-both-used",
        "pipeline/shardpress/encoding/parts.py",
        "if part.start < first or part.stop > shard.n_rows:",
        "if part.stop > shard.n_rows:",
        ("tests/encoding/test_parts.py",),
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
        ("tests/encoding/test_bad_data.py",),
    ),
    Mutation(
        "float16-features-overflow-to-inf",
        "pipeline/shardpress/encoding/storage.py",
        "np.clip(features, -largest, largest)",
        "np.clip(features, -largest, None)",
        ("tests/encoding/test_storage.py",),
    ),
    Mutation(
        "rounding-above-the-limit-is-stored",
        "pipeline/shardpress/encoding/storage.py",
        "error > self.max_error:",
        "error > 2 * self.max_error:",
        ("tests/encoding/test_storage.py::test_features_with_too_large_rounding_errors_are_refused",),
    ),
)

_RUN = (
    Mutation(
        "features-of-another-model-are-reused",
        "pipeline/shardpress/run/fingerprints.py",
        "self.encoding, model)",
        "self.encoding)",
        ("tests/run/test_fingerprints.py::test_another_model_makes_other_features",),
    ),
    Mutation(
        "features-of-another-storage-are-reused",
        "pipeline/shardpress/run/encoding_stage.py",
        "            key = fingerprint(key, asdict(storage))",
        "            pass",
        ("tests/run/test_storage.py::test_float16_parts_are_dropped_if_others_need_float32",),
    ),
    Mutation(
        "changed-inputs-are-not-noticed",
        "pipeline/shardpress/run/fingerprints.py",
        '"changed": shard.identity.mtime_ns',
        '"changed": 0',
        ("tests/run/test_fingerprints.py::test_a_changed_input_changes_every_stage_and_is_named",),
    ),
    Mutation(
        "one-bad-row-more-than-allowed-passes",
        "pipeline/shardpress/run/scan_stage.py",
        "if n_bad > limit:",
        "if n_bad > limit + 1:",
        ("tests/run/test_bad_rows.py::test_the_limit_of_bad_rows_is_exact",),
    ),
    Mutation(
        "parquet-files-of-other-parts-are-reused",
        "pipeline/shardpress/run/parquet_stage.py",
        'context.earlier.drop(*(record for record in records if record.facts.get("part") not in digests))',
        "pass",
        ("tests/run/test_parquet.py::test_the_parquet_file_of_a_damaged_part_is_rewritten",),
    ),
)

_SETTINGS = (
    Mutation(
        "percentages-are-rounded-in-binary",
        "pipeline/shardpress/settings/kinds.py",
        "Fraction(limit[:-1]) * total / 100",
        "float(limit[:-1]) / 100 * total",
        ("tests/settings/test_kinds.py",),
    ),
    Mutation(
        "megabytes-are-mebibytes",
        "pipeline/shardpress/settings/kinds.py",
        "base = 1024 if match[3] or not match[4] else 1000",
        "base = 1024",
        ("tests/settings/test_kinds.py",),
    ),
)

_SHARDS = (
    Mutation(
        "sparse-rows-may-have-any-number-of-entries",
        "pipeline/shardpress/shards/rows.py",
        " | (sizes > shard.n_inputs)",
        "",
        ("tests/shards/test_rows.py::test_invalid_sparse_rows_are_refused_with_their_row",),
    ),
)

_HDF5 = (
    Mutation(
        "metadata-checksums-are-not-compared",
        "pipeline/shardpress/hdf5/plain/metadata.py",
        "expect(block[-4:] == checksum(block[:-4]))",
        "expect(len(block) > 4)",
        ("tests/hdf5/plain/test_describe.py::test_reader_answers_damaged_files_as_the_child_or_not_at_all",),
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
        "pipeline/shardpress/hdf5/layout.py",
        "overlaps = offsets[1:] < offsets[:-1] + sizes[:-1]",
        "overlaps = offsets[1:] < offsets[:-1]",
        ("tests/hdf5/test_layout.py::test_overlapping_chunks_are_refused",),
    ),
)

_CLUSTER = (
    Mutation(
        "another-machine-needs-no-tls",
        "pipeline/shardpress/cluster/security.py",
        "not _is_loopback(host) and not is_insecure",
        "host and _is_loopback(host) and is_insecure",
        ("tests/cluster/test_security.py",),
    ),
    Mutation(
        "merged-results-count-as-rows",
        "pipeline/shardpress/cluster/executor.py",
        "if not _is_merge(self._graph[key]):",
        "if self._graph[key]:",
        ("tests/cluster/test_stats.py::test_results_count_for_the_process_that_made_them",),
    ),
)

_REST = (
    Mutation(
        "too-new-packages-fit",
        "pipeline/shardpress/doctor/packages.py",
        '"<": operator.lt',
        '"<": operator.le',
        ("tests/test_installed.py::test_versions_are_compared_by_their_numbers",),
    ),
    Mutation(
        "small-classes-are-not-tested",
        "pipeline/shardpress/classify/rows.py",
        "np.maximum(1, np.round(_HELD_OUT * sizes))",
        "np.round(_HELD_OUT * sizes)",
        ("tests/classify/test_compare.py::test_a_fifth_of_every_class_is_held_out",),
    ),
    Mutation(
        "part-may-have-other-rows-than-the-manifest",
        "pipeline/shardpress/features.py",
        "if n_found != n_rows:",
        "if n_found < n_rows:",
        ("tests/test_features.py::test_a_part_with_another_number_of_rows_is_refused",),
    ),
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
        "exported-encoder-adds-the-minimum",
        "pipeline/shardpress/model.py",
        "maps[0][1] - self.scaler.shift @ W",
        "maps[0][1] + self.scaler.shift @ W",
        ("tests/test_model.py::test_the_folded_encoder_needs_only_numpy",),
    ),
    Mutation(
        "sealed-files-may-have-a-key-twice",
        "pipeline/shardpress/formats.py",
        "if _with_seal(body, expected) != data:",
        "if len(seal(form, content)) > len(data):",
        ("tests/test_formats.py::test_a_repeated_key_is_refused",),
    ),
)


_INTEROP = (
    Mutation(
        "score-has-the-wrong-sign",
        "pipeline/shardpress/interop/estimator.py",
        "return -self._apply(reconstruction_errors, X)",
        "return self._apply(reconstruction_errors, X)",
        ("tests/interop/test_applying.py::test_scores_are_negative_mean_squared_errors",),
    ),
    Mutation(
        "decoded-rows-lack-the-minimum",
        "pipeline/shardpress/scan/scaler.py",
        "x[:, : self.n_columns] * width + columns.shift",
        "x[:, : self.n_columns] * width",
        ("tests/interop/test_applying.py::test_decoded_features_are_rows_in_original_units",),
    ),
)

_KERNELS = (
    Mutation(
        "nesterov-is-plain-momentum",
        "kernels/shardpress_kernels/rules.py",
        "return p + decay * velocity - rate * g, velocity",
        "return p + velocity, velocity",
        ("tests/kernels/test_updates.py::test_rule_equals_a_numpy_loop_over_ten_steps",),
    ),
    Mutation(
        "adam-forgets-squares-too-soon",
        "kernels/shardpress_kernels/rules.py",
        "_BETA2 = 0.999",
        "_BETA2 = 0.99",
        ("tests/kernels/test_updates.py::test_rule_equals_a_numpy_loop_over_ten_steps",),
    ),
    Mutation(
        "nesterov-in-c-is-plain-momentum",
        "kernels/shardpress_kernels/rules.py",
        "p[i] += fused(decay, velocity[i], -rate * g[i]);",
        "p[i] += velocity[i];",
        ("tests/kernels/test_ops.py::test_every_rule_equals_its_numpy_reference[nesterov]",),
    ),
    Mutation(
        "adam-in-c-forgets-squares-too-soon",
        "kernels/shardpress_kernels/rules.py",
        "const float beta2 = 0.999f;",
        "const float beta2 = 0.99f;",
        ("tests/kernels/test_ops.py::test_every_rule_equals_its_numpy_reference[adam]",),
    ),
    Mutation(
        "last-tile-of-bytes-lacks-a-row",
        "kernels/shardpress_kernels/native/encode.c",
        "for (long i = first; n_rows > 0 && i < n_rows; i++)",
        "for (long i = first; n_rows > 0 && i < n_rows - 1; i++)",
        ("tests/kernels/test_ops.py::test_features_of_bytes_equal_numpy_at_tile_edges",),
        needs=("avx_vnni", "avx512_vnni"),
    ),
    Mutation(
        "deep-layers-take-the-bias-of-the-first",
        "kernels/shardpress_kernels/native/forward.h",
        "layers[level - 1].bias_hidden + column",
        "layers[0].bias_hidden + column",
        ("tests/kernels/test_ops_networks.py::test_features_and_errors_equal_numpy_at_tile_edges",),
    ),
    Mutation(
        "features-that-are-inf-count-as-finite",
        "kernels/shardpress_kernels/native/encode.c",
        "all &= fabsf(values[i]) < INFINITY;",
        "all &= fabsf(values[i]) <= INFINITY;",
        ("tests/kernels/test_ops_networks.py::test_rows_with_features_that_are_not_finite_are_reported",),
    ),
    Mutation(
        "values-above-the-range-are-not-reported",
        "kernels/shardpress_kernels/native/rows.h",
        "worst = worst > below ? worst : below;",
        "worst = worst > below ? worst : worst;",
        ("tests/kernels/test_ops.py::test_rows_outside_the_range_are_reported[]",),
    ),
    Mutation(
        "weight-decay-grows-weights",
        "kernels/shardpress_kernels/native/step.c",
        "values[i] *= 1 - s->shrinks;",
        "values[i] *= 1 + s->shrinks;",
        ("tests/kernels/test_ops_networks.py::test_every_rule_equals_its_numpy_reference",),
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
    *_ENCODING,
    *_RUN,
    *_SETTINGS,
    *_SHARDS,
    *_HDF5,
    *_CLUSTER,
    *_REST,
    *_INTEROP,
    *_KERNELS,
)
"""All mutations."""
