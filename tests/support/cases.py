"""Run many cases in one test, and sample cases that are too many for `make test`."""

from __future__ import annotations

import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import Any, TypeVar

import numpy as np

Value = TypeVar("Value")

ALL_CASES = os.environ.get("TEST_CASES") == "all"
"""True if tests run all their cases, as in `make soak`, instead of a sample."""


def sample(cases: Iterable[Value], n: int) -> list[Value]:
    """Return `n` > 1 evenly spaced cases, including the first and the last, or all cases with TEST_CASES=all."""
    listed = list(cases)
    if ALL_CASES or len(listed) <= n:
        return listed
    return [listed[i * (len(listed) - 1) // (n - 1)] for i in range(n)]


def cross(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return combinations of the factors in which each value occurs, or all of them with TEST_CASES=all.

    The number of combinations is the number of values of the longest factor.
    """
    if ALL_CASES:
        return list(itertools.product(*factors))
    n_combinations = max(len(factor) for factor in factors)
    return [tuple(factor[i % len(factor)] for factor in factors) for i in range(n_combinations)]


@contextmanager
def case(*values: object, **named: object) -> Iterator[None]:
    """Add the case as a note to each exception that is raised in the context."""
    try:
        yield
    except BaseException as error:
        words = [*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())]
        error.add_note(f"in the case {', '.join(words)}")
        raise


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for each case, like ``pytest.mark.parametrize``, but as one test, which is cheaper to collect.

    Random generators among the fixtures are reset for each case. All cases share the other fixtures.
    """
    arguments = [name.strip() for name in names.split(",")]
    listed = list(cases)
    assert listed

    def over_cases(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def loop(**fixtures: Any) -> None:
            for values in listed:
                values_by_name = dict(zip(arguments, values if len(arguments) > 1 else [values], strict=True))
                fresh = {name: deepcopy(f) if isinstance(f, np.random.Generator) else f for name, f in fixtures.items()}
                with case(**values_by_name):
                    test(**fresh, **values_by_name)

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        assert len(others) == len(signature.parameters) - len(arguments), f"{test.__name__} takes no {names}"
        loop.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined] # pytest reads it
        return loop

    return over_cases
