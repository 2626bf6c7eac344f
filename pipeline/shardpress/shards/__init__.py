"""Input files as shards: found, vetted and read."""
