"""The commands `shardpress NAME`, one module each: they parse flags, print an answer and return an exit code."""
