"""The commit that the golden set compares with, and the differences from it that are intended."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE = "21e2429c"
"""The commit that resolved the previous issue. When it moves on, empty `EXPLAINED`."""


@dataclass(frozen=True)
class Explained:
    """Intended differences of one scenario.

    Attributes
    ----------
    scenario : str
    arrays : str
        Patterns of the names of the arrays that differ, separated by spaces, for example "features model/*".
    why : str
    """

    scenario: str
    arrays: str
    why: str


_FLOAT64 = "--row-scale and log1p are computed in float64, whatever dtype stores the rows"
_SCORES = "errors are those of the features as a run computes them, with other roundings than before"
_SCORED = (
    *("float32", "uint8-rank-3", "uint8-binary", "sigmoid"),
    *("nested", "wide", "masking-noise", "momentum"),
    *("nesterov", "rmsprop", "impute-mean", "target-fit-on"),
    *("target-numbers", "target-few-labels", "replicas-two-workers", "columns-by-name"),
    *("model", "append-new-files", "append-changed-file", "retrain"),
)

EXPLAINED: tuple[Explained, ...] = (
    Explained("uint16-total", "features model/*", _FLOAT64),
    Explained("int16-max", "features model/*", _FLOAT64),
    Explained("float16-storage", "model/*", _FLOAT64),
    Explained("bad-rows", "features model/*", _FLOAT64),
    Explained("anndata", "features model/*", _FLOAT64),
    *(Explained(name, "model/score_samples", _SCORES) for name in _SCORED),
    Explained("missing-value", "model/score_samples", "errors compare values before they are clipped"),
    Explained("retrain", "as_of=1/features", "maps are fitted only to rows that do not measure them"),
)
