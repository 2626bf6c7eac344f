"""The page: from the plain values of report.json to HTML or text."""
