"""Dry runs: checks and short samples that show, without writing anything, what a run would do and need."""
