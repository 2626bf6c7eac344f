"""The sections of a page, each from the plain values of a report."""
