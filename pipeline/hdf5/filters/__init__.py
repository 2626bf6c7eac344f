"""Decoding of filtered chunks."""
