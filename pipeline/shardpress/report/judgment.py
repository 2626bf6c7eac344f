"""Judgment of the features of a run: their error and their use for a classifier, compared with baselines.

Features are good unless a linear classifier is more accurate on a baseline by more than the error bar of the
difference, or no more accurate than the most frequent label, or unless they explain next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shardpress.errors import printable
from shardpress.report.baselines import BASELINES

_SAME = 0.02  # errors with a smaller relative difference count as equal; another seed can cause this difference
_NEGLIGIBLE = 1e-3  # fraction of the mean's error; the same as `NOTHING` in `shardpress.training.components`
_LITTLE = 0.05  # fraction of the variance; features that explain less are not good
_MAX_NAME = 40  # characters of the name of the labels


@dataclass(frozen=True)
class Judgment:
    """Judgment of the features.

    Attributes
    ----------
    is_good : bool
        Whether nothing speaks against the features.
    error : str
        Sentence on the reconstruction error, or an empty string if it is unknown.
    classifier : str
        Sentence on the linear classifier, or an empty string without labels.
    explained : str
        Sentence on the explained variance, or an empty string unless it is next to nothing.
    suggestion : str
        Sentence that suggests what to try, or an empty string if the features are good.
    better : tuple of str
        Keys of the baselines on which the classifier is more accurate by more than the error bar.
    """

    is_good: bool
    error: str
    classifier: str
    explained: str
    suggestion: str
    better: tuple[str, ...]

    @property
    def text(self) -> str:
        """All sentences except the suggestion."""
        return " ".join(part for part in (self.error, self.classifier, self.explained) if part)

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

    Parameters
    ----------
    summary : mapping
        Numbers of the run: ``cost``, ``components`` and ``mean`` are errors or None.
    sample : mapping or None
        Measurements of a sample of rows.
    config : mapping
        Settings of the run.
    scan : mapping or None
        Facts about the scan, with the chosen scaling as ``scale``. Without a scan, the setting is used.
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
    better: tuple[str, ...] = ()
    is_useless = False
    classifier = probe.get("no_test", "")
    if probe and not classifier:
        better = _better_baselines(probe)
        is_useless = _difference(probe, "commonest") >= -_margin(probe, "commonest")
        classifier = _classifier_sentence(probe, better, is_useless, summary["n_inputs"])
    is_good = not (explains_little or better or is_useless)
    suggestion = ""
    if is_useless and not better and _are_columns_useless(sample["probe"]):
        suggestion = "The raw columns do no better. Try other labels with --labels."
    elif not is_good:
        suggestion = _suggestion(config, summary, better, probe.get("labels"))
    return Judgment(is_good, _error_sentence(summary, sample), classifier, explained, suggestion, better)


def judgment_facts(judgment: Judgment) -> dict[str, Any]:
    """Return a judgment as plain values for report.json."""
    return {**asdict(judgment), "better": list(judgment.better)}


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
    cost = summary.get("cost")
    if cost is not None and summary.get("components") is not None:
        return _error_and_components(summary)
    error = sample.get("mean_error", cost)
    if error is None:
        return ""
    return f"The mean squared reconstruction error is {error:.3g}."


def _error_and_components(summary: Mapping[str, Any]) -> str:
    error = summary["cost"]
    components = summary["components"]
    baseline = f"{_code_width(summary)} principal components"
    negligible = _NEGLIGIBLE * (summary.get("mean") or 0.0)
    if abs(error - components) < max(_SAME * components, negligible):
        return f"The features reconstruct rows about as well as {baseline}."
    change = 0.0
    if components:
        change = error / components - 1
    if change > 0:
        return f"The features reconstruct rows {change:.0%} worse than {baseline}.".replace("%", " %")
    return f"The features reconstruct rows {-change:.0%} better than {baseline}.".replace("%", " %")


# -- the classifier ------------------------------------------------------------------------------------------------


def _difference(probe: Mapping[str, Any], name: str) -> float:
    """Return by how much the classifier is more accurate on a baseline than on the features."""
    return float(probe[name] - probe["features"])


def _margin(probe: Mapping[str, Any], name: str) -> float:
    """Return the error bar of a difference: two standard errors."""
    return float(probe["margins"][name])


def _better_baselines(probe: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of the baselines with a higher accuracy than the error bar explains, the best one first."""
    known = [name for name in BASELINES if name in probe]
    better = [name for name in known if _difference(probe, name) > _margin(probe, name)]
    return tuple(sorted(better, key=lambda name: -probe[name]))


def _are_columns_useless(probe: Mapping[str, Any]) -> bool:
    """Return whether the classifier is not more accurate on the raw columns than the most frequent label, either."""
    return bool(probe["columns"] - probe["commonest"] <= _margin(probe, "commonest"))


def _classifier_sentence(probe: Mapping[str, Any], better: Sequence[str], is_useless: bool, n_inputs: int) -> str:
    classifier = f"A linear classifier of {printable(probe['labels'])[:_MAX_NAME]}"
    rows = f"{probe['n_test']:,} held-out rows"
    on_features = _percent(probe["features"])
    if better:
        name = better[0]
        other = _baseline_in_words(name, probe, n_inputs)
        difference = f"{_percent(_difference(probe, name))} ± {_percent(_margin(probe, name))}"
        return (
            f"{classifier} is more accurate on {other}: {_percent(probe[name])} of {rows}, compared with "
            f"{on_features} on the features (difference: {difference})."
        )
    if is_useless:
        return (
            f"{classifier} is no more accurate on the features than the most frequent label: {on_features} of {rows}, "
            f"compared with {_percent(probe['commonest'])}."
        )
    return f"{classifier} {_comparison(probe, n_inputs, rows)}"


def _comparison(probe: Mapping[str, Any], n_inputs: int, rows: str) -> str:
    """Return how the classifier does on the features, compared with the better kind of principal components."""
    name = max((name for name in ("components", "standardized") if name in probe), key=lambda name: float(probe[name]))
    other = _baseline_in_words(name, probe, n_inputs)
    verb = "does no better on them than on"
    if -_difference(probe, name) > _margin(probe, name):
        verb = "also does better on them than on"
    return (
        f"{verb} {other}: {_percent(probe['features'])} of {rows}, compared with {_percent(probe[name])} "
        f"(± {_percent(_margin(probe, name))})."
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
    return f"Try {_joined(flags)}."


def _flags(config: Mapping[str, Any], summary: Mapping[str, Any], better: Sequence[str]) -> Iterator[str]:
    """Yield flags that differ from the settings of the run, the most promising first."""
    if "standardized" in better:
        yield from _flags_of_scaling(config)
    if "columns" in better or not better:
        width = _code_width(summary)
        n_features = min(2 * width, summary["n_inputs"] - 1)
        if n_features > width:
            yield f"--n-features {n_features}"
    if "components" in better or not better:
        if config.get("epochs"):
            yield f"--epochs {2 * config['epochs']}"
        yield "--hidden none" if config.get("hidden") else "--hidden 512"


def _flags_of_scaling(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield flags that scale the columns in another way, if the run has such a setting."""
    if config["scale"] != "std":
        yield "--scale std"
    if config.get("clip_quantile") == 0:
        yield "--clip-quantile 0.001"


def _joined(words: Sequence[str]) -> str:
    if len(words) == 1:
        return words[0]
    return f"{', '.join(words[:-1])} or {words[-1]}"
