"""Directories of the two packages of shardpress.

A checkout has two source roots, `pipeline/` and `kernels/`. A wheel installs both packages into one directory.

This module must run with Python 3.6.
"""

import os

_PACKAGE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_ROOT = os.path.dirname(_PACKAGE)
CHECKOUT = os.path.dirname(_ROOT)
"""Directory of the checkout. It has no meaning for code from a wheel."""

_KERNELS_ROOT = os.path.join(CHECKOUT, "kernels")
if not os.path.isdir(os.path.join(_KERNELS_ROOT, "shardpress_kernels")):
    _KERNELS_ROOT = _ROOT
KERNELS = os.path.join(_KERNELS_ROOT, "shardpress_kernels")
SOURCE_ROOTS = sorted({_ROOT, _KERNELS_ROOT}, reverse=True)
"""Directories from which the packages are imported: one or two."""
