"""Judgment of the features of a run: their error and their use for a linear model, compared with baselines.

Features are good unless a linear model predicts better from a baseline by more than the error bar of the difference, or
no better than the most frequent label or the mean, or unless they explain next to nothing. Outliers, which can have
almost all of the squared error, do not change the judgment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from shardpress.base.errors import printable
from shardpress.base.outliers import Outlier
from shardpress.report.baselines import MIN_TEST_ROWS
from shardpress.report.words import cut, score
from shardpress.result.facts import Judgment, LinearProbe, NoTest, SampleFacts, Summary
from shardpress.settings.config import Config
from shardpress.training.components import NOTHING

_SAME = 0.02  # errors with a smaller relative difference count as equal; another seed can cause this difference
_LITTLE = 0.05  # fraction of the variance; features that explain less are not good
_NARROW = 64  # most columns of the tables for which wide features, and more features with a target, were measured
_MAX_NAME = 40  # characters of the name of the labels


def judge(summary: Summary, sample: SampleFacts | None, config: Config) -> Judgment:
    """Return the judgment of the features of a run."""
    errors = _errors_of(summary, sample)
    explained = _explained_sentence(errors)
    better: list[str] = []
    is_useless = False
    classifier = ""
    suggestion = ""
    if sample is not None and sample.probe is not None:
        probe = sample.probe
        better = _better_baselines(probe)
        is_useless = not _is_better_than_constant(probe.features, probe)
        classifier = _probe_sentence(probe, better, summary.n_inputs)
        if is_useless and not better and not _is_better_than_constant(probe.columns.score, probe):
            suggestion = _no_information(probe, config)
        elif better or is_useless or explained:
            suggestion = _suggestion(config, summary, better, probe.labels)
    elif explained:
        suggestion = _suggestion(config, summary, better, "")
    if sample is not None:
        if sample.no_test is not None:
            classifier = _no_test_sentence(sample.no_test)
        classifier = f"{classifier} {sample.labels_remark}".strip()
    return Judgment(
        is_good=not (explained or better or is_useless),
        error=_error_sentence(errors, summary.n_components),
        outlier=_remark_on_outlier(errors.outlier) if summary.outlier is None else "",
        classifier=classifier,
        explained=explained,
        suggestion=suggestion,
    )


# -- the reconstruction error --------------------------------------------------------------------------------------


class _Errors(NamedTuple):
    """Mean squared errors of features, principal components and column means, each of which can be unknown."""

    cost: float | None
    components: float | None
    mean: float | None
    outlier: Outlier | None

    @property
    def usual(self) -> _Errors:
        """The errors without outliers."""
        if self.outlier is None:
            return self
        return _Errors(self.outlier.cost, self.outlier.components, self.outlier.mean, None)


def _errors_of(summary: Summary, sample: SampleFacts | None) -> _Errors:
    """Return the errors of the validation rows, or those of the sample if there are none, and their outlier."""
    if summary.cost is not None and summary.components is not None:
        return _Errors(summary.cost, summary.components, summary.mean, summary.outlier)
    if sample is None:
        return _Errors(summary.cost, None, None, None)
    return _Errors(sample.mean_error, None, sample.of_mean, sample.outlier)


def _explained_sentence(errors: _Errors) -> str:
    usual = errors.usual
    if usual.cost is None or not usual.mean:
        return ""
    share = 1 - usual.cost / usual.mean
    return f"The features explain only {score(max(share, 0.0))} of the variance." if share < _LITTLE else ""


def _error_sentence(errors: _Errors, n_components: int) -> str:
    remark = _remark_on_outlier(errors.outlier)
    if errors.cost is None:
        return ""
    usual = errors.usual
    if usual.cost is None or usual.components is None:
        return f"The mean squared reconstruction error is {errors.cost:.3g}. {remark}".strip()
    comparison = "about as well as"
    negligible = NOTHING * (usual.mean or 0.0)
    if abs(usual.cost - usual.components) >= max(_SAME * usual.components, negligible):
        change = usual.cost / usual.components - 1 if usual.components else 0.0
        comparison = f"{100 * abs(change):.0f} % {'worse' if change > 0 else 'better'} than"
    return f"The features reconstruct rows {comparison} {n_components} principal components. {remark}".strip()


def _remark_on_outlier(outlier: Outlier | None) -> str:
    """Return a sentence that names the row that has most of the squared error, if there is one."""
    if outlier is None or not outlier.has_most:
        return ""
    return f"One row ({outlier}) has {100 * outlier.share:.3g} % of the squared error; comparisons leave it out."


# -- the linear model ----------------------------------------------------------------------------------------------


def _better_baselines(probe: LinearProbe) -> list[str]:
    """Return the names of the baselines with a higher score than the error bar explains, the best one first."""
    baselines = probe.baselines
    better = [name for name, of_rows in baselines.items() if of_rows.score - probe.features > of_rows.margin]
    return sorted(better, key=lambda name: -baselines[name].score)


def _is_better_than_constant(value: float, probe: LinearProbe) -> bool:
    return value - probe.constant.score > probe.constant.margin


def _probe_sentence(probe: LinearProbe, better: Sequence[str], n_inputs: int) -> str:
    """Return the scores on the features and on the best baseline."""
    baselines = probe.baselines
    name = max(better or baselines, key=lambda name: baselines[name].score)
    best = baselines[name]
    components = f"{probe.n_components} principal components"
    baseline = {
        "components": f"{components} of {probe.n_fitted:,} rows",
        "standardized": f"{components} of the standardized columns of {probe.n_fitted:,} rows",
        "columns": f"the {n_inputs:,} raw columns",
    }[name]
    labels = cut(probe.labels, _MAX_NAME)
    if probe.score_name == "R2":
        return (
            f"A linear regression predicts {labels} of {probe.n_test:,} held-out rows with R2 = {probe.features:.3f} "
            f"from the features, and with R2 = {best.score:.3f} from {baseline} (difference ± {best.margin:.3f})."
        )
    return (
        f"A linear classifier of {labels} is right for {score(probe.features)} of {probe.n_test:,} held-out rows on "
        f"the features, and for {score(best.score)} on {baseline} (difference ± {score(best.margin)}). The most "
        f"frequent label is right for {score(probe.constant.score)}."
    )


def _no_test_sentence(no_test: NoTest) -> str:
    if no_test.has_trained == "all rows":
        return (
            "The features were trained with targets of all sampled rows, so that no honest test of a linear model is "
            "possible. --fit-on keeps rows for a test."
        )
    return (
        f"Fewer than {MIN_TEST_ROWS} of the sampled rows that did not train the features have a value of "
        f"{printable(no_test.labels)}, or all values are the same, so that no honest test of a linear model is "
        "possible. --fit-on keeps rows for a test."
    )


# -- suggestions ---------------------------------------------------------------------------------------------------


def _no_information(probe: LinearProbe, config: Config) -> str:
    """Return a sentence for values that a linear model cannot predict from the raw columns either."""
    if probe.score_name == "R2":
        return "The raw columns do no better than the mean."
    advice = "" if config.training.target else " Try other labels with --labels."
    return f"The raw columns do no better than the most frequent label.{advice}"


def _suggestion(config: Config, summary: Summary, better: Sequence[str], labels: str) -> str:
    """Return a sentence with the flags to try, given the baselines that are better."""
    if config.inputs.model is not None:
        return "Try a model that is trained on rows like these (without --model)."
    flags = list(_flags(config, summary, better, labels))
    if not flags:
        return "Consider the baseline instead of these features."
    return f"Try {' or '.join(flags)}."


def _flags(config: Config, summary: Summary, better: Sequence[str], labels: str) -> Iterator[str]:
    """Yield flags that differ from the settings of the run, and that improved features in such a case.

    docs/performance.md has the measurements.
    """
    is_narrow = summary.n_inputs <= _NARROW
    has_target = config.training.target is not None
    has_hidden = bool(config.network.hidden)
    if better and "columns" not in better:
        if has_hidden and not has_target:
            yield "--hidden none"
        return
    if better and is_narrow and has_hidden and config.network.output_layer != "hidden":
        yield "--output-layer hidden"
    if better and not has_target:
        yield f"--target {cut(labels, _MAX_NAME)} (with --fit-on)"
    width = summary.n_components
    n_features = min(2 * width, summary.n_inputs - 1)
    if n_features > width and (is_narrow or not has_target):
        yield f"--n-features {n_features}"
