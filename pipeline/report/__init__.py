"""The report of a finished run: measurements of some rows, verification, comparison, and the page."""
