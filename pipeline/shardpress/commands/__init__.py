"""The commands `shardpress NAME`. Each module parses flags, prints a result and returns an exit code."""
