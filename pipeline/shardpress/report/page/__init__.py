"""Conversion of the plain values of report.json to a page in HTML or text."""
