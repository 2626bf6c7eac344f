"""Judgment of the features of a run: their error and their use for a classifier, compared with baselines.

Features are good unless a linear classifier is more accurate on a baseline by more than the error bar of the
difference, or no more accurate than the most frequent label, or unless they explain next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shardpress.errors import printable
from shardpress.report.baselines import BASELINES
from shardpress.training.components import NOTHING

_SAME = 0.02  # errors with a smaller relative difference count as equal; another seed can cause this difference
_LITTLE = 0.05  # fraction of the variance; features that explain less are not good
_MAX_NAME = 40  # characters of the name of the labels


@dataclass(frozen=True)
class Judgment:
    """Judgment of the features. A sentence that does not apply is an empty string."""

    is_good: bool  # whether nothing speaks against the features
    error: str  # sentence on the reconstruction error
    classifier: str  # sentence on the linear classifier
    explained: str  # sentence on the explained variance, if it is next to nothing
    suggestion: str  # sentence that suggests what to try

    @property
    def remark(self) -> str:
        """Sentences for the last line of the log, which contains the reconstruction error as a number."""
        return " ".join(part for part in (self.classifier, self.explained, self.suggestion) if part)


def judge(
    summary: Mapping[str, Any],
    sample: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    scan: Mapping[str, Any] | None = None,
) -> Judgment:
    """Return the judgment of the features of a run.

    In the summary, ``cost``, ``components`` and ``mean`` are errors or None. `sample` contains the measurements of a
    sample of rows. The facts about the scan contain the chosen scaling as ``scale``; without a scan, the setting is
    used.
    """
    sample = sample or {}
    if scan and "scale" in scan:
        config = {**config, "scale": scan["scale"]}
    share = _explained_share(summary, sample)
    explains_little = share is not None and share < _LITTLE
    explained = ""
    if explains_little:
        explained = f"The features explain only {_percent(max(share or 0.0, 0.0))} of the variance."
    probe = sample.get("probe") or {}
    better: list[str] = []
    is_useless = False
    classifier = probe.get("no_test", "")
    if probe and not classifier:
        better = _better_baselines(probe)
        is_useless = not _is_better_than_commonest("features", probe)
        classifier = _classifier_sentence(probe, better, summary["n_inputs"])
    is_good = not (explains_little or better or is_useless)
    suggestion = ""
    if is_useless and not better and not _is_better_than_commonest("columns", probe):
        suggestion = "The raw columns do no better than the most frequent label. Try other labels with --labels."
    elif not is_good:
        suggestion = _suggestion(config, summary, better, probe.get("labels"))
    return Judgment(is_good, _error_sentence(summary, sample), classifier, explained, suggestion)


# -- the reconstruction error --------------------------------------------------------------------------------------


def _explained_share(summary: Mapping[str, Any], sample: Mapping[str, Any]) -> float | None:
    """Return the share of the variance that the features explain, or None if it is unknown."""
    error = summary.get("cost")
    mean = summary.get("mean")
    if error is None or mean is None:
        error = sample.get("mean_error")
        mean = sample.get("of_mean")
    if error is None or not mean:
        return None
    return float(1 - error / mean)


def _code_width(summary: Mapping[str, Any]) -> int:
    """Return the number of features that the decoder gets."""
    return int(summary.get("n_components") or summary["n_features"])


def _error_sentence(summary: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
    error = summary.get("cost")
    components = summary.get("components")
    if error is None or components is None:
        error = sample.get("mean_error", error)
        return "" if error is None else f"The mean squared reconstruction error is {error:.3g}."
    comparison = "about as well as"
    negligible = NOTHING * (summary.get("mean") or 0.0)
    if abs(error - components) >= max(_SAME * components, negligible):
        change = error / components - 1 if components else 0.0
        comparison = f"{100 * abs(change):.0f} % {'worse' if change > 0 else 'better'} than"
    return f"The features reconstruct rows {comparison} {_code_width(summary)} principal components."


# -- the classifier ------------------------------------------------------------------------------------------------


def _better_baselines(probe: Mapping[str, Any]) -> list[str]:
    """Return the keys of the baselines with a higher accuracy than the error bar explains, the best one first."""
    better = [name for name in BASELINES if probe[name] - probe["features"] > probe["margins"][name]]
    return sorted(better, key=lambda name: -probe[name])


def _is_better_than_commonest(name: str, probe: Mapping[str, Any]) -> bool:
    return bool(probe[name] - probe["commonest"] > probe["margins"]["commonest"])


def _classifier_sentence(probe: Mapping[str, Any], better: Sequence[str], n_inputs: int) -> str:
    """Return the accuracies on the features, and on the better baseline or kind of principal components."""
    kinds = better or ("components", "standardized")
    name = max(kinds, key=lambda name: float(probe[name]))
    return (
        f"A linear classifier of {printable(probe['labels'])[:_MAX_NAME]} is right for {_percent(probe['features'])} "
        f"of {probe['n_test']:,} held-out rows on the features, and for {_percent(probe[name])} on "
        f"{_baseline_in_words(name, probe, n_inputs)} (difference ± {_percent(probe['margins'][name])}). The most "
        f"frequent label is right for {_percent(probe['commonest'])}."
    )


def _baseline_in_words(name: str, probe: Mapping[str, Any], n_inputs: int) -> str:
    components = f"{probe['n_components']} principal components"
    return {
        "components": components,
        "standardized": f"{components} of standardized columns",
        "columns": f"the {n_inputs:,} raw columns",
    }[name]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# -- suggestions ---------------------------------------------------------------------------------------------------


def _suggestion(
    config: Mapping[str, Any], summary: Mapping[str, Any], better: Sequence[str], labels: str | None
) -> str:
    """Return a sentence with the flags to try, given the baselines that are better."""
    if config.get("model") is not None:
        return "Try a model that is trained on rows like these (without --model)."
    flags = list(_flags(config, summary, better))
    if labels is not None and "columns" in better and not config.get("target"):
        flags.append(f"--target {printable(labels)[:_MAX_NAME]} (with --fit-on)")
    if not flags:
        return "Consider the baseline instead of these features."
    return f"Try {' or '.join(flags)}."


def _flags(config: Mapping[str, Any], summary: Mapping[str, Any], better: Sequence[str]) -> Iterator[str]:
    """Yield flags that differ from the settings of the run, the most promising first."""
    if "standardized" in better and config["scale"] != "std":
        yield "--scale std"
    if "standardized" in better and config.get("clip_quantile") == 0:
        yield "--clip-quantile 0.001"
    if "columns" in better or not better:
        width = _code_width(summary)
        n_features = min(2 * width, summary["n_inputs"] - 1)
        if n_features > width:
            yield f"--n-features {n_features}"
    if "components" in better or not better:
        if config.get("epochs"):
            yield f"--epochs {2 * config['epochs']}"
        yield "--hidden none" if config.get("hidden") else "--hidden 512"
