"""Compare arrays of two trees bit for bit, and match the differences with the explanations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

import numpy as np

from tests.golden.explained import Explained

Arrays = Mapping[str, np.ndarray]


def differences(arrays: Arrays, reference: Arrays) -> dict[str, str]:
    """Return a description of each array that is not bit for bit the same, by its name."""
    found = {}
    for name in sorted({*arrays, *reference}):
        if name not in reference:
            found[name] = "is new"
        elif name not in arrays:
            found[name] = "is missing"
        else:
            words = _difference(arrays[name], reference[name])
            if words:
                found[name] = words
    return found


def _difference(values: np.ndarray, reference: np.ndarray) -> str:
    """Return how an array differs from the reference; empty if all bits are equal."""
    before = _type_of(reference)
    if _type_of(values) != before:
        return f"is {_type_of(values)}, was {before}"
    if values.tobytes() == reference.tobytes():
        return ""
    is_different = values != reference
    if values.dtype.kind == "U" and not is_different.any():  # stored with other widths
        return ""
    if values.dtype.kind == "f":
        is_different &= ~(np.isnan(values) & np.isnan(reference))
    n_different = np.count_nonzero(is_different)
    if n_different == 0:
        return "the bits of NaN or of zeros differ"
    words = f"{n_different:,} of {values.size:,} values differ"
    if values.dtype.kind != "f":
        return words
    gaps = np.abs(values.astype(np.float64) - reference)[is_different]
    n_nan = np.count_nonzero(np.isnan(gaps))
    if n_nan:
        words += f", {n_nan:,} of them NaN in only one tree"
    if n_nan < n_different:
        words += f", by up to {np.nanmax(gaps):.2g}"
    return words


def _type_of(values: np.ndarray) -> str:
    # The length of the longest string is not part of the type.
    kind = "text" if values.dtype.kind == "U" else str(values.dtype)
    return f"{kind} {values.shape}"


def judge(scenario: str, found: Mapping[str, str], explained: Iterable[Explained]) -> tuple[bool, str]:
    """Return whether all differences of a scenario are explained and all explanations apply, and a line about it."""
    rest = dict(found)
    reasons = []
    problems = []
    for line in explained:
        if line.scenario != scenario:
            continue
        reasons.append(line.why)
        for pattern in line.arrays.split():
            matches = [name for name in found if fnmatchcase(name, pattern)]
            if not matches:
                problems.append(f"the explanation of {pattern} ({line.why}) no longer applies")
            for name in matches:
                rest.pop(name, None)
    problems = [f"{name}: {words}" for name, words in rest.items()] + problems
    if problems:
        return False, f"DIFFERENT  {scenario}: {'; '.join(problems)}"
    if found:
        return True, f"explained  {scenario}: {'; '.join(reasons)}"
    return True, f"equal      {scenario}"
