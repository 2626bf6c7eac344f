"""What `shardpress NAME` does, a file for each name: flags in, an answer on standard output, an exit code."""
