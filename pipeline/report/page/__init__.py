"""From the plain values of report.json to a page, or to a text."""
