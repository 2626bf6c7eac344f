"""Input files as shards: found, vetted, read."""
