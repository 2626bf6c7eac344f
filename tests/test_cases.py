"""Tests of the decorators that run a test for several cases."""

import numpy as np
import pytest

from tests.support.cases import cross, each, sample


def test_each_case_is_run_and_a_failing_case_is_named():
    seen = []

    @each("a, b", [(1, 2), (3, 4)])
    @each("c", "xyz")
    def test(a, b, c):
        seen.append((a, b, c))
        assert (a, c) != (3, "y")

    with pytest.raises(AssertionError) as failed:
        test()
    assert seen == [(1, 2, "x"), (1, 2, "y"), (1, 2, "z"), (3, 4, "x"), (3, 4, "y")]
    assert failed.value.__notes__ == ["in the case c='y'", "in the case a=3, b=4"]


def test_only_random_generators_are_renewed_for_each_case():
    seen = []
    shared = []

    @each("n", range(3))
    def test(n, rng, shared):
        shared.append(n)
        seen.append(rng.random())

    test(rng=np.random.default_rng(0), shared=shared)
    assert len(set(seen)) == 1
    assert shared == [0, 1, 2]


def test_a_case_for_an_unknown_argument_is_refused():
    with pytest.raises(AssertionError, match="test takes no m"):

        @each("m", [1])
        def test(n):
            """Test another case."""


def test_a_sample_holds_the_first_and_the_last_case():
    assert sample(range(10), 4, all_cases=False) == [0, 3, 6, 9]
    assert sample(range(10), 2, all_cases=False) == [0, 9]
    assert sample("abc", 4, all_cases=False) == ["a", "b", "c"]


def test_a_sample_of_combinations_holds_each_value():
    assert cross([1, 2], "abc", all_cases=False) == [(1, "a"), (2, "b"), (1, "c")]


def test_all_cases_run_where_they_are_requested():
    assert sample(range(10), 4, all_cases=True) == list(range(10))
    assert cross([1, 2], "ab", all_cases=True) == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
