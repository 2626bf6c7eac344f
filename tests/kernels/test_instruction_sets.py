"""Tests of the C kernels with the instruction sets of this machine's processor.

Sample: core tests of `test_ops` on one layer with sse2, and on a network with avx2, in addition to the best instruction
set; with TEST_CASES=all, both groups of core tests with every instruction set.
"""

import os
import re
import subprocess
import sys
from itertools import product

import pytest

from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, limits, missing
from tests.support.cases import ALL_CASES
from tests.support.interpreters import REPOSITORY, environment, run_python

pytestmark = pytest.mark.process

# For each instruction set, a macro that the compiler must define, and one that it must not define.
MACROS = {
    "sse2": ("__SSE2__", "__AVX__"),
    "avx2": ("__AVX2__", "__AVXVNNI__"),
    "avxvnni": ("__AVXVNNI__", "__AVX512F__"),
    "avx512": ("__AVX512F__", "__AVX512VNNI__"),
    "avx512vnni": ("__AVX512VNNI__", "__AVXVNNI__"),
}
COMPILED = "from tests.support.compiler import macros\nfacts['macros'] = sorted(macros())"


def skip_if_missing(name):
    """Skip an instruction set that the processor lacks, or that the test session excludes."""
    missing_flags = missing(name)
    requested = os.environ.get("TEST_ISA")
    if missing_flags:
        pytest.skip(f"missing on this machine: a processor with {', '.join(missing_flags)}")
    if requested not in (None, name):
        pytest.skip(f"TEST_ISA={requested} selects another instruction set")


# Words in the names of core tests: products, sigmoid, gradients, rows of bytes and floats. Other tests compile much
# more code; a run of all tests with TEST_ISA includes these tests.
CORE = {
    "one layer": ["of_one_layer", "bytes", "floats", "sigmoid", "nan", "after_the_last_row"],
    "networks": ["every_option"],
}
SAMPLE = [("sse2", "one layer"), ("avx2", "networks")]


@pytest.mark.parametrize(("name", "group"), list(product(INSTRUCTION_SETS, CORE)) if ALL_CASES else SAMPLE)
def test_kernels_are_correct_with_every_instruction_set(name, group):
    # All other tests use only the best instruction set of the processor.
    skip_if_missing(name)
    if os.environ.get("TEST_ISA"):
        return  # this run already includes the same tests
    words = CORE[group]
    tests = ["tests/kernels/test_ops.py", "-k", " or ".join(words)]
    command = [sys.executable, "-m", "pytest", "-q", "-rp", "-x", "-p", "no:cacheprovider", *tests]
    env = environment(TEST_ISA=name, THEANORC=None)
    result = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-20_000:]
    passed_tests = re.findall(r"^PASSED .*::(test_\w+)", result.stdout, re.MULTILINE)
    assert all(any(word in test for test in passed_tests) for word in words), result.stdout


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_compiler_uses_the_requested_instruction_set(name):
    # The requested instruction set also applies to the processes of the benchmark and of other tests.
    skip_if_missing(name)
    defined, forbidden = MACROS[name]
    found = set(run_python(COMPILED, **limits(name)).facts["macros"])
    assert (defined in found, forbidden in found) == (True, False)


def test_instruction_sets_cover_all_vectors_of_the_kernels():
    # The kernels use these macros to choose vectors and instructions.
    text = "".join(path.read_text() for path in (REPOSITORY / "kernels/shardpress_kernels/native").iterdir())
    named = set(re.findall(r"defined\((__(?:AVX|SSE)\w+__)\)", text))
    assert named <= {"__AVX__", *(defined for defined, _ in MACROS.values())}
