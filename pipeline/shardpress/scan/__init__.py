"""Scan of the rows before training, and scaling of rows."""
