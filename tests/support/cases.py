"""Many cases in one test: what fails names its own."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(**values: object) -> Iterator[None]:
    """Note the case at whatever is raised inside."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the case {', '.join(f'{name}={value!r}' for name, value in values.items())}")
        raise
