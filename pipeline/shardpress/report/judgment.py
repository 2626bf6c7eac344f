"""Judgment of the features of a run: their error and their use for a linear model, compared with baselines.

Features are good unless a linear model predicts better from a baseline by more than the error bar of the difference, or
no better than the most frequent label or the mean, or unless they explain next to nothing. Outliers, which can have
almost all of the squared error, do not change the judgment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardpress.base.outliers import MOST_OF_ALL, place_of
from shardpress.report.baselines import BASELINES
from shardpress.report.words import cut, score
from shardpress.training.components import NOTHING

_SAME = 0.02  # errors with a smaller relative difference count as equal; another seed can cause this difference
_LITTLE = 0.05  # fraction of the variance; features that explain less are not good
_NARROW = 64  # most columns of the tables for which wide features, and more features with a target, were measured
_MAX_NAME = 40  # characters of the name of the labels


@dataclass(frozen=True)
class Judgment:
    """Judgment of the features. A sentence that does not apply is an empty string."""

    is_good: bool  # whether nothing speaks against the features
    error: str  # sentences on the reconstruction error
    outlier: str  # sentence on the row with most of the error, unless the summary has it
    classifier: str  # sentence on the linear classifier or regression
    explained: str  # sentence on the explained variance, if it is next to nothing
    suggestion: str  # sentence that suggests what to try

    @property
    def remark(self) -> str:
        """Sentences for the last line of the log, which contains the reconstruction error as a number."""
        parts = (self.outlier, self.classifier, self.explained, self.suggestion)
        return " ".join(part for part in parts if part)


def judge(
    summary: Mapping[str, Any],
    sample: Mapping[str, Any] | None,
    config: Mapping[str, Any],
) -> Judgment:
    """Return the judgment of the features of a run.

    In the summary, ``cost``, ``components`` and ``mean`` are errors or None, and ``outlier``, if there is one, contains
    them without outliers. `sample` contains the measurements of a sample of rows.
    """
    sample = sample or {}
    errors = _errors_of(summary, sample)
    explained = _explained_sentence(_usual(errors))
    probe = sample.get("probe") or {}
    better: list[str] = []
    is_useless = False
    classifier = probe.get("no_test", "")
    if probe and not classifier:
        better = _better_baselines(probe)
        is_useless = not _is_better_than_constant("features", probe)
        classifier = _probe_sentence(probe, better, summary["n_inputs"], sample["n_fitted"])
    classifier = f"{classifier} {sample.get('labels_remark', '')}".strip()
    is_good = not (explained or better or is_useless)
    suggestion = ""
    if is_useless and not better and not _is_better_than_constant("columns", probe):
        suggestion = _no_information(probe, config)
    elif not is_good:
        suggestion = _suggestion(config, summary, better, probe)
    error = _error_sentence(errors, _code_width(summary))
    outlier = _remark_on_outlier(errors) if summary.get("outlier") is None else ""
    return Judgment(is_good, error, outlier, classifier, explained, suggestion)


# -- the reconstruction error --------------------------------------------------------------------------------------


def _errors_of(summary: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the errors of the validation rows, or those of the sample if there are none, and their outlier."""
    errors = {name: summary.get(name) for name in ("cost", "components", "mean", "outlier")}
    if errors["cost"] is not None and errors["components"] is not None:
        return errors
    cost = sample.get("mean_error", errors["cost"])
    return {"cost": cost, "components": None, "mean": sample.get("of_mean"), "outlier": sample.get("outlier")}


def _usual(errors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the errors without outliers."""
    return {**errors, **(errors["outlier"] or {})}


def _explained_sentence(usual: Mapping[str, Any]) -> str:
    if usual["cost"] is None or not usual["mean"]:
        return ""
    share = 1 - usual["cost"] / usual["mean"]
    return f"The features explain only {score(max(share, 0.0))} of the variance." if share < _LITTLE else ""


def _code_width(summary: Mapping[str, Any]) -> int:
    """Return the number of features that the decoder gets."""
    return int(summary.get("n_components") or summary["n_features"])


def _error_sentence(errors: Mapping[str, Any], n_components: int) -> str:
    if errors["cost"] is None:
        return ""
    if errors["components"] is None:
        return f"The mean squared reconstruction error is {errors['cost']:.3g}. {_remark_on_outlier(errors)}".strip()
    usual = _usual(errors)
    components = usual["components"]
    comparison = "about as well as"
    negligible = NOTHING * (usual["mean"] or 0.0)
    if abs(usual["cost"] - components) >= max(_SAME * components, negligible):
        change = usual["cost"] / components - 1 if components else 0.0
        comparison = f"{100 * abs(change):.0f} % {'worse' if change > 0 else 'better'} than"
    sentence = f"The features reconstruct rows {comparison} {n_components} principal components."
    return f"{sentence} {_remark_on_outlier(errors)}".strip()


def _remark_on_outlier(errors: Mapping[str, Any]) -> str:
    """Return a sentence that names the row that has most of the squared error, if there is one."""
    outlier = errors["outlier"]
    if outlier is None or outlier["share"] < MOST_OF_ALL:
        return ""
    share = f"{100 * outlier['share']:.3g} %"
    return f"One row ({place_of(outlier)}) has {share} of the squared error; comparisons leave it out."


# -- the linear model ----------------------------------------------------------------------------------------------


def _better_baselines(probe: Mapping[str, Any]) -> list[str]:
    """Return the keys of the baselines with a higher score than the error bar explains, the best one first."""
    better = [name for name in BASELINES if probe[name] - probe["features"] > probe["margins"][name]]
    return sorted(better, key=lambda name: -probe[name])


def _is_better_than_constant(name: str, probe: Mapping[str, Any]) -> bool:
    return bool(probe[name] - probe["constant"] > probe["margins"]["constant"])


def _probe_sentence(probe: Mapping[str, Any], better: Sequence[str], n_inputs: int, n_fitted: int) -> str:
    """Return the scores on the features and on the best baseline."""
    best = max(better or BASELINES, key=lambda name: float(probe[name]))
    baseline = _baseline_in_words(best, probe, n_inputs, n_fitted)
    name = cut(probe["labels"], _MAX_NAME)
    n_test = f"{probe['n_test']:,}"
    if probe["score"] == "R2":
        return (
            f"A linear regression predicts {name} of {n_test} held-out rows with R2 = {probe['features']:.3f} from the "
            f"features, and with R2 = {probe[best]:.3f} from {baseline} (difference ± {probe['margins'][best]:.3f})."
        )
    return (
        f"A linear classifier of {name} is right for {score(probe['features'])} of {n_test} held-out rows on the "
        f"features, and for {score(probe[best])} on {baseline} (difference ± {score(probe['margins'][best])}). "
        f"The most frequent label is right for {score(probe['constant'])}."
    )


def _baseline_in_words(name: str, probe: Mapping[str, Any], n_inputs: int, n_fitted: int) -> str:
    components = f"{probe['n_components']} principal components"
    return {
        "components": f"{components} of {n_fitted:,} rows",
        "standardized": f"{components} of the standardized columns of {n_fitted:,} rows",
        "columns": f"the {n_inputs:,} raw columns",
    }[name]


# -- suggestions ---------------------------------------------------------------------------------------------------


def _no_information(probe: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Return a sentence for values that a linear model cannot predict from the raw columns either."""
    if probe["score"] == "R2":
        return "The raw columns do no better than the mean."
    advice = "" if config.get("target") else " Try other labels with --labels."
    return f"The raw columns do no better than the most frequent label.{advice}"


def _suggestion(
    config: Mapping[str, Any], summary: Mapping[str, Any], better: Sequence[str], probe: Mapping[str, Any]
) -> str:
    """Return a sentence with the flags to try, given the baselines that are better."""
    if config.get("model") is not None:
        return "Try a model that is trained on rows like these (without --model)."
    flags = list(_flags(config, summary, better, probe))
    if not flags:
        return "Consider the baseline instead of these features."
    return f"Try {' or '.join(flags)}."


def _flags(
    config: Mapping[str, Any], summary: Mapping[str, Any], better: Sequence[str], probe: Mapping[str, Any]
) -> Iterator[str]:
    """Yield flags that differ from the settings of the run, and that improved features in such a case.

    docs/performance.md has the measurements.
    """
    n_inputs = summary["n_inputs"]
    is_narrow = n_inputs <= _NARROW
    has_target = bool(config.get("target"))
    has_hidden = bool(config.get("hidden"))
    if better and "columns" not in better:
        if has_hidden and not has_target:
            yield "--hidden none"
        return
    if better and is_narrow and has_hidden and config.get("output_layer") != "hidden":
        yield "--output-layer hidden"
    if better and not has_target:
        yield f"--target {cut(probe['labels'], _MAX_NAME)} (with --fit-on)"
    width = _code_width(summary)
    n_features = min(2 * width, n_inputs - 1)
    if n_features > width and (is_narrow or not has_target):
        yield f"--n-features {n_features}"
