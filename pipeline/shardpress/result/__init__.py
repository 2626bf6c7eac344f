"""The result of a run: its records, its index, and the features."""
