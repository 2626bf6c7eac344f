"""Names that settings and stages share. This module loads no library, because the command line imports it."""

ROW_SCALES = ("total", "median", "norm", "max")
"""Sizes that rows are divided by."""
TRANSFORMS = ("log1p",)
"""Transformations of values."""
