"""Conversion of the facts about a run to a page in HTML or text."""
