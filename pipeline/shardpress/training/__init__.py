"""Training: rows in, parameters out."""
