"""The report of a finished run: measurements of a sample of rows, verification, comparison, and the report page."""
