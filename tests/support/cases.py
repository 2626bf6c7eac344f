"""Many cases in one test: what fails names its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import Any

import numpy as np

__all__ = ["case", "each"]


@contextmanager
def case(*values: object, **named: object) -> Iterator[None]:
    """Note the case at whatever is raised inside."""
    try:
        yield
    except BaseException as error:
        words = [*map(repr, values), *(f"{name}={value!r}" for name, value in named.items())]
        error.add_note(f"in the case {', '.join(words)}")
        raise


def each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call a test for each case, as ``pytest.mark.parametrize`` would, but as one test: cheap to collect and to count.

    Random generators among its fixtures start anew in each case; all other fixtures are shared by all of them.
    """
    arguments, listed = [name.strip() for name in names.split(",")], list(cases)
    assert listed

    def over_cases(test: Callable[..., None]) -> Callable[..., None]:
        @wraps(test)
        def loop(**fixtures: Any) -> None:
            for values in listed:
                given = dict(zip(arguments, values if len(arguments) > 1 else [values], strict=True))
                fresh = {name: deepcopy(f) if isinstance(f, np.random.Generator) else f for name, f in fixtures.items()}
                with case(**given):
                    test(**fresh, **given)

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name not in arguments]
        assert len(others) == len(signature.parameters) - len(arguments), f"{test.__name__} takes no {names}"
        loop.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined] # which pytest reads
        return loop

    return over_cases
