"""The output directory: changed safely, one commit record for each result."""
